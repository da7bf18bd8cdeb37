from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from sscl import config
from sscl.cli import COMMANDS
from sscl.data import tiles
from sscl.data.tiles import tile_budget_gb
from sscl.device import autocast
from sscl.memory import advice, is_short
from sscl.models import encoders, heads
from sscl.models.blocks import checkpoint_blocks
from sscl.models.lora import add_lora
from sscl.train import memory, optim
from sscl.train.memory import activation_bytes, report
from sscl.train.setup import OpenRun
from sscl.words import readable

CPU = torch.device("cpu")
SHAPE = (4, 3, 32, 32)


def contrastive(name: str) -> nn.Module:
    encoder = encoders.build_encoder(name)
    projection = heads.build_projection(encoder.num_features, kind="mlp", hidden=64, dim=16)
    return heads.ContrastiveModel(encoder, projection=projection).to(memory_format=torch.channels_last)


def really_saved(model: nn.Module, *, precision: str = "fp32") -> int:
    """Bytes of all storages that autograd keeps after a forward pass that computes."""
    model = copy.deepcopy(model)
    images = torch.rand(SHAPE).contiguous(memory_format=torch.channels_last)
    there = {value.untyped_storage().data_ptr() for value in (images, *model.parameters(), *model.buffers())}
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.detach()), lambda _: None)
    with hooks, autocast(CPU, precision):
        model(images)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for address, size in storages.items() if address not in there)


@pytest.mark.parametrize("name", ["resnet50", "resnet18_pathmnist"])
def test_the_estimate_is_what_a_cpu_keeps(name, number):
    """Computed with two and three tiles, and with none."""
    model = contrastive(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = activation_bytes(model, shape=SHAPE, device_type="cpu")
    assert torch.equal(torch.get_rng_state(), random)
    assert found == really_saved(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    number(computed_px=0)
    assert activation_bytes(model, shape=SHAPE, device_type="cpu") == really_saved(model)


def test_under_autocast_too():
    # Exact but for batch norm's saved means, which a CPU keeps in fp32 and torch's shape rules give in bf16.
    model = contrastive("resnet14_small")
    estimate = activation_bytes(model, shape=SHAPE, device_type="cpu", precision="bf16")
    assert estimate == pytest.approx(really_saved(model, precision="bf16"), rel=0.005)
    assert estimate != activation_bytes(model, shape=SHAPE, device_type="cpu")


def test_by_hand():
    # conv keeps its input (the given one: not counted), batch norm its input and two statistics, ReLU its result.
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    assert activation_bytes(model, shape=(2, 3, 16, 16), device_type="cpu") == 2 * (2 * 8 * 16 * 16) * 4 + 2 * 8 * 4


def test_it_grows_with_the_views_and_frozen_parts_keep_nothing():
    model = contrastive("resnet14_small")
    one, two = (activation_bytes(model, shape=(count, 3, 64, 64), device_type="cpu") for count in (64, 128))
    assert two / one == pytest.approx(2, rel=1e-3)
    model.encoder.requires_grad_(False)
    assert activation_bytes(model, shape=(64, 3, 64, 64), device_type="cpu") < one / 100


def test_the_model_stays_as_it_was():
    model = contrastive("resnet14_small").train()
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    activation_bytes(model, shape=SHAPE, device_type="cpu", precision="bf16")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name][0]), name
        assert value.data_ptr() == before[name][1]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert type(next(model.parameters()).data) is torch.Tensor


def test_nothing_of_that_size_is_allocated():
    # 80,000 views of 224 px keep more than half a TB: a computed pass would not end well.
    model = contrastive("resnet14_small")
    assert activation_bytes(model, shape=(80_000, 3, 224, 224), device_type="cpu") > 500 * 2**30


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_the_optimizers_keep_what_the_table_says(name):
    layer = nn.Linear(10, 10, bias=False)
    layer(torch.ones(1, 10)).sum().backward()
    optimizer = optim.build_optimizer(name, optim.parameter_groups(layer, learning_rate=0.1, weight_decay=0.0))
    optimizer.step()
    kept = sum(value.numel() for value in optimizer.state[layer.weight].values() if value.numel() > 1)
    assert kept == memory.OPTIMIZER_STATE[name] * layer.weight.numel()
    assert set(memory.OPTIMIZER_STATE) == set(get_args(optim.Name))


def lines(device: torch.device = CPU, **changes) -> dict[str, str]:
    given = {
        "command": "pretrain",
        "model": nn.Conv2d(3, 256, 16, stride=16, bias=False),  # 0.75 MiB
        "optimizer": "adamw",
        "shape": (4, 3, 32, 32),
        "device": device,
        "free": None,
        "precision": "fp32",
        "store_bytes": 3 * 2**30,
        "budget_gb": 4.0,
    }
    found = report(**{**given, **changes})
    assert found[0] == "memory, estimated:"
    return {re.match(r"\s*(\D+?)(  |:)", line)[1]: " ".join(line.split()) for line in found[1:]}


def test_the_report_on_a_cpu():
    found = lines()
    assert found == {
        "parameters": "parameters 0.8 MiB",
        "gradients": "gradients 0.8 MiB",
        "adamw state": "adamw state 1.5 MiB",
        "activations": "activations 0.0 MiB of 4 views at 32 px, fp32",
        "views": "views 0.0 MiB 4 at 32 px",
        "tiles": "tiles 3.0 GiB in memory, or read as needed",
        "total": "total 3.0 MiB without the tiles",
    }
    assert lines(optimizer="lars")["lars state"] == "lars state 0.8 MiB"


def test_on_a_cpu_it_is_compared_with_the_memory_of_the_machine():
    """2.25 MiB + 1.5 MiB of state: weights, gradients, AdamW."""
    assert "warning" not in lines(free=4 * 2**20)
    near = lines(free=int(3.5 * 2**20))["warning"]  # 3.0 MiB
    assert "close to" in near
    assert "train.microbatch" in near
    found = lines(free=2 * 2**20)
    assert "of 2.0 MiB that are free in memory" in found["total"]
    assert "train.microbatch" in found["warning"]
    assert "budget" not in found["warning"]  # of a GPU
    assert "train.batch_size" in lines(free=2**20, command="finetune")["warning"]


def test_frozen_parameters_have_no_gradient_and_no_state():
    found = lines(model=nn.Conv2d(3, 256, 16, stride=16, bias=False).requires_grad_(False))
    assert (found["gradients"], found["adamw state"]) == ("gradients 0.0 MiB", "adamw state 0.0 MiB")
    assert found["parameters"] == "parameters 0.8 MiB"


@pytest.mark.parametrize(
    ("budget_gb", "memory_gb", "tiles", "total", "warned"),
    [
        (4.0, 16, "on the GPU (data.device_budget_gb 4)", "3.5 GiB of 16.0 GiB that are free", False),
        (4.0, 2, "on the GPU (data.device_budget_gb 4)", "3.5 GiB of 2.0 GiB that are free", True),
        (4.0, 3.25, "on the GPU (data.device_budget_gb 4)", "3.5 GiB of 3.2 GiB that are free", True),  # workspaces
        (2.5, 2, "not on the GPU, above data.device_budget_gb 2.5: each batch is copied there", "515.0 MiB of", False),
    ],
)
def test_the_report_on_a_gpu(budget_gb, memory_gb, tiles, total, warned, with_cards, wrap):
    """Compared with what others leave free, not with what the card has."""
    with_cards((8, 0))
    wrap(activation_bytes=lambda *_, **__: 0)
    found = lines(torch.device("cuda"), budget_gb=budget_gb, free=int(memory_gb * 2**30))
    assert found["tiles"].endswith(tiles)
    assert total in found["total"]
    assert ("warning" in found) == warned
    if warned:
        assert found["warning"] == f"warning: this does not fit; {advice('pretrain')}"


@pytest.mark.parametrize(
    ("given", "free_gb", "expected"), [(None, 80, 4), (None, 8, 2), (None, None, 4), (6.0, 8, 6), (0.0, 80, 0)]
)
def test_tiles_take_a_quarter_of_a_small_gpu(given, free_gb, expected):
    free = None if free_gb is None else free_gb * 2**30
    assert tile_budget_gb(given, free=free) == expected
    opened = OpenRun(Path("run"), CPU, "fp32", 1, writes=True, progress=False, free=free)
    assert opened.budget_gb(given) == expected


def test_a_store_asks_how_much_is_free(wrap):
    """16 tiles of 3 KiB; a quarter of 1 MiB has room for them, a quarter of 0.1 MiB has not."""
    images = np.zeros((16, 32, 32, 3), dtype=np.uint8)
    for free, resident in ((2**20, True), (2**20 // 10, False)):
        wrap(free_memory=lambda real, device, free=free: free)
        assert tiles.place_store(images, device="meta", budget_gb=None).on_device == resident


def test_a_gpu_too_small_for_one_tile_is_refused(with_cards, wrap):
    """No batch and no microbatch helps there: 2 of 64 views, 3 GiB, and 3 MiB of weights."""
    with_cards((8, 0))
    wrap(activation_bytes=lambda *_, **__: 96 * 2**30)
    given = {"device": torch.device("cuda"), "shape": (64, 3, 32, 32), "store_bytes": 0}
    assert "warning" in lines(**given, free=4 * 2**30)
    with pytest.raises(
        ValueError, match=r"data\.size_px: .*32 px takes 3\.0 GiB.* has 3\.0 GiB free; .*model\.name"
    ) as caught:
        lines(**given, free=3 * 2**30)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
@pytest.mark.parametrize("half", ["bf16", "fp16", None])
def test_the_advice_recommends_only_what_the_card_computes_in(command, half):
    text = advice(command, half=half)
    for name in ("bf16", "fp16"):
        assert (name in text) == (name == half)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_advice_names_keys_that_the_command_accepts(command):
    text = advice(command)
    allowed = set(config.keys(getattr(config, COMMANDS[command].config)))
    named = re.findall(r"\b[a-z]+\.[a-z_]+(?:\.[a-z_]+)?|\bbatch_size\b(?<!\.batch_size)|\bprecision\b", text)
    assert set(named) <= allowed
    assert ("batch_size" in named) == ("batch_size" in allowed)
    assert ("train.microbatch" in named) == (command == "pretrain")
    assert ("train.batch_size" in named) == (command in ("pretrain", "finetune"))


def test_sizes():
    assert [readable(size) for size in (0, 2**20, 2**30 - 1, 2**30)] == ["0.0 MiB", "1.0 MiB", "1024.0 MiB", "1.0 GiB"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_allocates_what_was_estimated(precision):
    device, shape = torch.device("cuda"), (64, 3, 128, 128)
    model = contrastive("resnet50").to(device)
    images = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    estimate = activation_bytes(model, shape=shape, device_type="cuda", precision=precision)
    with autocast(device, precision):
        model(images).sum().backward()  # the libraries take their workspaces once
    model.zero_grad(set_to_none=True)
    before = torch.cuda.memory_allocated()
    with autocast(device, precision):
        out = model(images)
        held = torch.cuda.memory_allocated() - before
    del out
    assert estimate == pytest.approx(held, rel=0.1)


def vit(*, rank: int | None = None, checkpointing: bool = False) -> nn.Module:
    torch.manual_seed(0)
    encoder = encoders.build_encoder("timm:test_vit", kwargs={"depth": 4})
    if rank is not None:
        add_lora(encoder, rank=rank, alpha=1.0, targets=("qkv", "proj"), size_px=32)
    if checkpointing:
        checkpoint_blocks(encoder)
    return heads.Classifier(encoder, num_classes=2)


@pytest.mark.parametrize("rank", [None, 2])
def test_checkpoints_keep_the_inputs_of_blocks_and_one_block(rank):
    whole, saving = vit(rank=rank), vit(rank=rank, checkpointing=True)
    given = {"shape": SHAPE, "device_type": "cpu"}
    assert activation_bytes(whole, **given) == really_saved(whole)
    # What autograd keeps until the backward pass, and what a single block keeps while it is computed again.
    block = whole.encoder.net.blocks[1]
    tokens = torch.randn(4, 5, 64, requires_grad=True)
    there = {p.untyped_storage().data_ptr() for p in (tokens, *block.parameters())}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
    ):
        out = block(tokens)
    one = sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in there)
    assert out.shape == tokens.shape
    assert activation_bytes(saving, **given) == really_saved(saving) + one
    assert activation_bytes(saving, **given) < 0.5 * activation_bytes(whole, **given)
    assert 4 * tokens.nbytes < really_saved(saving) < 6 * tokens.nbytes  # four blocks, and what follows them


def test_lora_has_gradients_and_optimizer_state_of_its_matrices_alone():
    model = vit(rank=2)
    matrices = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    found = lines(model=model)
    assert sum(p.numel() for p in model.encoder.parameters() if p.requires_grad) == 4 * (2 * (64 + 192) + 2 * (64 + 64))
    assert f" {readable(matrices)}" in found["gradients"]
    assert f" {readable(2 * matrices)}" in found["adamw state"]
    assert activation_bytes(model, shape=SHAPE, device_type="cpu") < activation_bytes(
        vit(), shape=SHAPE, device_type="cpu"
    )


def test_errors_that_lead_to_each_other_are_asked_once_each():
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_short(first)
    second.__cause__ = MemoryError()
    assert is_short(first)
