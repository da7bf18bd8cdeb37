"""Every way to train and to use a model on a GPU, as far as it shows without one: see fake_cuda.py.

Device mix-ups raise, and the host must not wait for the device, nor copy from memory that is not pinned, once a batch.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as td
from torch import nn

from sscl.cli import main
from sscl.data.synthetic import write_synthetic
from sscl.data.tiles import place_store, upload
from sscl.device import Later
from sscl.draws import Augmentation
from sscl.models.encoders import build_encoder
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.train import optim
from sscl.train.step import ContrastiveStep, Views

SIZE_PX, BATCH = 32, 4
STEPS = 4  # of an epoch: 16 training tiles that are not held out


def load_harness() -> Any:
    spec = importlib.util.spec_from_file_location("fake_cuda", Path(__file__).with_name("fake_cuda.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


harness = load_harness()
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the real one is tested")


@pytest.fixture(scope="module", autouse=True)
def own_cache_and_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)
def blank_and_estimated_once(blank_pictures: None, estimated_once: Any) -> Iterator[None]:
    """Neither the pictures nor a second estimate of the same model's memory say more of the device."""
    with estimated_once():
        yield


@pytest.fixture
def gpu() -> Iterator[Any]:
    with harness.fake_cuda() as machine:
        yield machine


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 tiles: 24 train, 12 test."""
    root = tmp_path_factory.mktemp("tiles") / "polyps"
    write_synthetic(root, count=36, size_px=SIZE_PX, workers=1)
    return root


@dataclass(frozen=True)
class Commands:
    """sscl's commands with the keys that keep them tiny."""

    tiles: Path

    def __call__(self, machine: Any, command: str, *words: object) -> Any:
        """Run a command and return what was counted."""
        with machine.counting() as counts:
            assert main([command, "device=cuda", *map(str, words)]) == 0
        return counts

    def pretrain(self, machine: Any, run: Path, *words: object) -> Any:
        tiny = ["train.epochs=1", "train.warmup_epochs=1", "health.tiles=8"]
        return self(machine, "pretrain", f"run={run}", *self._common(), *tiny, *words)

    def finetune(self, machine: Any, run: Path, *words: object) -> Any:
        return self(machine, "finetune", f"run={run}", *self._common(), "train.epochs=1", *words)

    def _common(self) -> list[str]:
        data = [f"data.root={self.tiles}", "data.published=false", f"data.size_px={SIZE_PX}"]
        return [*data, "model.name=timm:test_resnet", "progress=false", f"train.batch_size={BATCH}"]


@pytest.fixture(scope="module")
def sscl(tiles: Path) -> Commands:
    return Commands(tiles)


@pytest.fixture(scope="module")
def finetuned(sscl: Commands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run, and what it counted."""
    run = tmp_path_factory.mktemp("runs") / "finetune"
    with harness.fake_cuda() as machine:
        counts = sscl.finetune(machine, run)
    return run, counts


@pytest.fixture(scope="module")
def run(finetuned: tuple[Path, Any]) -> Path:
    return finetuned[0]


# --- the harness itself ---


def test_tensors_of_two_devices_do_not_mix(gpu):
    there, here = torch.ones(2, device="cuda"), torch.ones(2)
    for mix in (
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: here.add_(there),
        lambda: here[there > 0],
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mix()
    with pytest.raises(TypeError, match="convert cuda:0 device type tensor to numpy"):
        there.numpy()
    assert (there + torch.tensor(1.0)).device == torch.device("cuda:0")  # a number on the CPU may
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.ones(2, device="cuda:1")


@pytest.mark.parametrize(
    ("waits", "copies", "do"),
    [
        (1, 0, lambda x: x.sum().item()),
        (1, 0, lambda x: x.tolist()),
        (1, 0, lambda x: x.cpu()),
        (1, 0, lambda x: x[x > 1]),
        (1, 0, lambda x: bool((x > 1).all())),
        (0, 1, lambda x: torch.tensor([1.0, 2.0], device=x.device)),
        (0, 1, lambda x: x[torch.tensor([0, 1])]),
        (0, 1, lambda x: torch.empty(2**20).to(x.device, non_blocking=True)),
        (0, 0, lambda x: torch.empty(2**20, pin_memory=True).to(x.device, non_blocking=True)),
        (0, 0, lambda x: upload(torch.empty(2**20), x.device)),
        (0, 0, lambda x: x.mul_(2).add_(torch.arange(3, device=x.device))),
        (1, 0, lambda x: Later(x).tensor()),
        (0, 0, lambda x: (Later(x), x + 1)[0].tensor()),  # the device has more to do
    ],
)
def test_what_waits(gpu, waits, copies, do):
    x = torch.ones(3, device="cuda")
    with gpu.counting() as counts:
        do(x)
    assert (counts.waits.total(), counts.copies.total()) == (waits, copies)


def test_memory_without_content_is_nan(gpu):
    assert torch.empty(3, device="cuda").isnan().all()
    assert torch.ones(3, device="cuda").new_empty(2).isnan().all()


def test_launches_and_bytes(gpu):
    x = torch.ones(4, 256, device="cuda")
    with gpu.counting() as counts:
        y = x.view(2, 2, 256)[0].T + 1  # one kernel: reads and writes 2 x 256 numbers
        y = torch.empty_like(y)
    assert counts.launches == {"add": 1}
    assert counts.read_written["add"] == 2 * 2 * 256 * 4


def test_a_run_gives_the_cpus_numbers(sscl, tmp_path):
    """Of a card before Volta, which computes in fp32 and has no Triton."""
    words = ["train.learning_rate=0.01", "projection.kind=mlp", "projection.hidden=16", "augment.stain_probability=1"]
    with harness.fake_cuda(capability=(6, 1)) as machine:
        sscl.pretrain(machine, tmp_path / "gpu", *words)
    assert main(["pretrain", f"run={tmp_path / 'cpu'}", "device=cpu", *pretraining_words(sscl), *words]) == 0

    there, here = (json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("gpu", "cpu"))
    for key in ("loss", "positive_similarity", "negative_similarity", "effective_rank", "knn_balanced_accuracy"):
        assert there[key] == pytest.approx(here[key], rel=1e-4), key
    there, here = (torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("gpu", "cpu"))
    torch.testing.assert_close(there["model"], here["model"], rtol=1e-4, atol=1e-4)


def pretraining_words(sscl: Commands) -> list[str]:
    return [*sscl._common(), "train.epochs=1", "train.warmup_epochs=1", "health.tiles=8"]


# --- training ---

WAYS = {
    "plain": [],
    "microbatches, fp16": ["train.microbatch=2", "precision=fp16"],
    "cross-view, fp32": ["train.second_view=clean", "train.loss=cross_view", "precision=fp32"],
    "LARS, fp16, tiles that do not fit": [
        *("train.optimizer=lars", "precision=fp16", "data.device_budget_gb=0"),
        *("projection.kind=mlp", "projection.hidden=16"),
    ],
}


@pytest.mark.parametrize("words", WAYS.values(), ids=WAYS)
def test_pretraining(gpu, sscl, words, tmp_path):
    counts = sscl.pretrain(gpu, tmp_path / "run", *words)

    assert counts.launches["_warp"] >= STEPS
    assert counts.stops("train_epoch", times=STEPS - 1) == []
    assert counts.stops("health_metrics", times=3) == []  # batches of the bank: 4


def test_finetuning(finetuned):
    _, counts = finetuned
    assert counts.launches["_warp"] >= STEPS
    assert counts.stops("train_epoch", times=STEPS - 1) == []


def test_joint_finetuning_in_fp16_of_tiles_that_do_not_fit(gpu, sscl, tmp_path):
    words = ["contrast.kind=cross_view", "precision=fp16", "data.device_budget_gb=0"]
    counts = sscl.finetune(gpu, tmp_path / "run", *words)

    assert counts.launches["_warp"] >= STEPS
    assert counts.stops("train_epoch", times=STEPS - 1) == []


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be rank 0 of two; what the other would send is made up."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    parallel = nn.parallel.DistributedDataParallel
    real = parallel.__init__

    def average(state, bucket):  # what the fake process group does not answer
        future: Any = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        self.register_comm_hook(None, average)

    monkeypatch.setattr(parallel, "__init__", init)
    td.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    if td.is_initialized():
        td.destroy_process_group()


@pytest.mark.parametrize("words", [[], ["train.microbatch=1", "precision=fp16"]], ids=["plain", "microbatches, fp16"])
def test_pretraining_over_ranks(two_ranks, sscl, words, tmp_path):
    with harness.fake_cuda(gpus=2) as machine:
        counts = sscl.pretrain(machine, tmp_path / "run", *words)
    assert counts.stops("train_epoch", times=STEPS - 1) == []


def test_finetuning_over_ranks(two_ranks, sscl, tmp_path):
    with harness.fake_cuda(gpus=2) as machine:
        counts = sscl.finetune(machine, tmp_path / "run", "contrast.kind=nt_xent", "contrast.projection.kind=mlp")
    assert counts.stops("train_epoch", times=STEPS - 1) == []


def test_fp16_survives_a_first_step_that_its_scaler_skips(sscl, tmp_path):
    """torch's fused SGD then starts from a momentum that nothing was written to. Of a card before Volta: real views."""
    with harness.fake_cuda(capability=(6, 1)) as machine:
        sscl.pretrain(machine, tmp_path / "run", "precision=fp16", "model.name=resnet18")
    kept = torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)
    assert kept["scaler"]["scale"] < 65536  # it was skipped
    assert all(value.isfinite().all() for value in kept["model"].values())


# --- a trained model ---


def test_evaluation(gpu, sscl, run, tmp_path):
    counts = sscl(gpu, "eval", f"checkpoint={run}", f"out={tmp_path / 'o'}", "progress=false", "batch_size=2")
    assert counts.launches["convolution"] == 6 * 15  # 12 tiles through 15 convolutions
    assert counts.stops("outputs", times=5) == []


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "hirescam", "eigencam"])
def test_heatmaps(gpu, sscl, run, tiles, method, tmp_path):
    words = [f"checkpoint={run}", f"out={tmp_path / 'o'}", "progress=false", f"method={method}", "batch_size=4"]
    (tmp_path / "few").mkdir()
    for path in sorted((tiles / "images").iterdir())[:3]:
        shutil.copy(path, tmp_path / "few")
    more = {
        "gradcam": ["checks=true", f"images={tmp_path / 'few'}"],
        "layercam": ["layer=[encoder.net.layer2, encoder.net.layer3]"],
    }
    counts = sscl(gpu, "gradcam", *words, *more.get(method, []), "per_class=1")
    # In 7 batches, of 3 calls; each call waits for its last. CUDA's decomposition asks whether it converged.
    waited = [line for line in counts.stops("heatmaps", times=5) if "_linalg_svd" not in line]
    assert waited == []
    assert (counts.stops("heatmaps", times=5) != []) == (method == "eigencam")
    with (tmp_path / "o" / "boxes.csv").open(newline="") as handle:
        assert len(list(csv.DictReader(handle))) >= 2


def test_prediction(gpu, sscl, run, tiles, tmp_path):
    words = [f"checkpoint={run}", f"paths=[{tiles / 'images'}]", f"out={tmp_path / 'o'}", "progress=false"]
    counts = sscl(gpu, "predict", *words, "batch_size=4", "panels=1")
    assert counts.launches["convolution"] >= 9 * 15
    assert counts.stops("predicted_rows", times=8) == []


def test_probe_of_tiles_that_do_not_fit(gpu, sscl, run, tiles, tmp_path):
    data = f"root: {tiles}, published: false, size_px: {SIZE_PX}, device_budget_gb: 0"
    words = [f"encoders=[{{name: e, weights: {run}}}]", f"sets=[{{name: polyps, source: mhist, {data}}}]"]
    words += [f"out={tmp_path / 'o'}", f"cache_dir={tmp_path / 'cache'}", "batch_size=2", "progress=false"]
    counts = sscl(gpu, "probe", *words, "fractions=[1.0]", "c_grid=[1]")
    assert counts.launches["convolution"] >= 8 * 15
    assert counts.stops("outputs", times=5) == []


def test_embedding(gpu, sscl, run, tiles, tmp_path):
    words = [f"data.root={tiles}", "data.published=false", f"data.size_px={SIZE_PX}", "batch_size=2", "progress=false"]
    counts = sscl(gpu, "embed", *words, f"out={tmp_path / 'o'}", f"encoder.weights={run}", "split=test")
    assert counts.launches["convolution"] == 6 * 15
    assert counts.stops("outputs", times=5) == []


# --- budgets ---


def on_gpu(size_px: int, *, count: int) -> tuple[Views, torch.Tensor, torch.Tensor]:
    views = Views(
        Augmentation(), 3, *(torch.full((3,), x, device="cuda") for x in (0.5, 0.25)), size_px=size_px, precision="bf16"
    )
    images = np.random.default_rng(0).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
    return views, place_store(images, device="cuda", budget_gb=1).images, torch.arange(count, device="cuda")


def test_two_views_cost_at_most_5_kernels_and_5_mb_each(gpu):
    views, images, rows = on_gpu(224, count=4)
    drawn = views.batch(rows, torch.zeros_like(rows), epoch=0)

    with gpu.counting() as counts:
        made = views.render(images, drawn)

    assert made.dtype == torch.bfloat16
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert counts.launches.total() <= 5
    assert counts.read_written.total() <= 8 * 5e6
    assert counts.waits.total() == counts.copies.total() == 0


def test_the_draws_of_64_steps_cost_as_many_launches_as_those_of_one(gpu):
    views, _, rows = on_gpu(32, count=4)
    found = []
    for steps in (1, 64):
        with gpu.counting() as counts:
            list(views.steps(rows.repeat(steps, 1), torch.zeros_like(rows).repeat(steps, 1), epoch=0))
        found.append(counts.launches.total())
    assert found[0] == found[1] <= 450
    assert counts.waits.total() == counts.copies.total() == 0


@pytest.mark.parametrize(("microbatch", "budget"), [(None, 600), (2, 1200)])
def test_a_step_costs_few_launches(gpu, microbatch, budget):
    """Of a ResNet18 in bf16, with SGD; the host gives a GPU about 100,000 to 200,000 launches a second."""
    views, images, rows = on_gpu(32, count=4)
    model = ContrastiveModel(build_encoder("resnet18"), projection=build_projection(512)).to("cuda")
    step = ContrastiveStep(model.to(memory_format=torch.channels_last), views=views, microbatch=microbatch)
    optimizer = optim.build_optimizer("sgd", optim.parameter_groups(model, learning_rate=0.1, weight_decay=1e-4))
    drawn = views.batch(rows, torch.zeros_like(rows), epoch=0)
    for _ in range(2):  # momentum is made in the first
        with gpu.counting() as counts:
            optimizer.zero_grad(set_to_none=True)
            step.backward(images, drawn)
            optimizer.step()

    assert counts.waits.total() == counts.copies.total() == 0
    assert counts.launches.total() <= budget, counts.launches
