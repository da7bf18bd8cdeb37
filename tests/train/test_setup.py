"""What both loops do before their first step, and how the loop of pretraining runs ahead of the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from sscl.config import FinetuneConfig, PretrainConfig
from sscl.data.synthetic import write_synthetic
from sscl.models.encoders import build_encoder
from sscl.train import finetune, health, pretrain
from sscl.train.health import health_batch_size, health_metrics
from sscl.train.pace import Pace
from sscl.train.setup import OpenRun, open_run, restore, with_weights_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("tiles") / "polyps"
    write_synthetic(root, count=48, size_px=32, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield root


def pretrain_config(tiles: Path, folder: Path, **train: Any) -> PretrainConfig:
    return PretrainConfig(
        run=str(folder / "run"),
        data={"root": str(tiles), "published": False, "size_px": 32},
        model={"name": "resnet14_small"},
        projection={"hidden": 32, "dim": 16},
        train={"batch_size": 8, "epochs": 1, **train},
        health={"tiles": 8},
        progress=False,
    )


def finetune_config(tiles: Path, folder: Path) -> FinetuneConfig:
    return FinetuneConfig(
        run=str(folder / "run"),
        data={"root": str(tiles), "published": False, "size_px": 32},
        model={"name": "resnet14_small"},
        contrast={"kind": "cross_view"},
        train={"batch_size": 8, "epochs": 1},
        progress=False,
    )


def opened(config: PretrainConfig | FinetuneConfig) -> OpenRun:
    return open_run(config, device=CPU, overwrite=False)


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """This process as rank 0 of two; the other one answers with nothing in particular."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_memory_is_estimated_before_batch_norms_wait_for_other_ranks(
    tiles: Path, tmp_path: Path, two_ranks: None, wrap: Any, capsys: Any, command: str
) -> None:
    """As on two GPUs: torch's synchronised norm takes no fake tensors (and none on a CPU, whatever they are)."""

    def convert(real: Any, model: nn.Module) -> None:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]

    wrap(pretrain_synchronise=convert, finetune_synchronise=convert)
    wrap(parallel=lambda real, module: module)  # torch's takes such norms on GPUs alone

    if command == "pretrain":
        config = pretrain_config(tiles, tmp_path)
        job = pretrain.prepare(config, opened(config), resume=False)
        pretrain.announce(job)
    else:
        other = finetune_config(tiles, tmp_path)
        job = finetune.prepare(other, opened(other))  # type: ignore[assignment]
        finetune.announce(job)  # type: ignore[arg-type]

    assert any(isinstance(module, nn.SyncBatchNorm) for module in job.model.modules())
    assert "activations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [("groups_csv", "{run}/groups.csv"), ("reviews", ("elsewhere.csv", "{run}/b.csv")), ("root", "{run}/tiles")],
)
def test_overwrite_takes_no_file_that_the_run_reads(tmp_path: Path, key: str, value: Any) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "env.json").write_text('{"sscl": "0"}')
    paths = [path.format(run=folder) for path in ((value,) if isinstance(value, str) else value)]
    data = {"root": "tiles", key: paths[0] if isinstance(value, str) else tuple(paths)}

    for config in (FinetuneConfig(run=str(folder), data=data), PretrainConfig(run=str(folder), data=data)):
        with pytest.raises(ValueError, match=rf"holds data\.{key}.*{Path(paths[-1]).name}"):
            open_run(config, device=CPU, overwrite=True)


def test_a_run_goes_on_whatever_has_become_of_its_starting_weights(tiles: Path, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"PK damaged since")
    config = finetune_config(tiles, tmp_path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"weights": str(tmp_path / "w.pt")})})

    assert with_weights_settings(config, resume=True) == config
    with pytest.raises(ValueError, match=r"w\.pt"):
        with_weights_settings(config, resume=False)


def test_a_loss_is_read_once_the_next_step_is_given_to_the_device(tiles: Path, tmp_path: Path, wrap: Any) -> None:
    """On its way to the host at once, and never waited for by what waits for all the device has been given."""
    done: list[str] = []

    class Loss:
        def __init__(self, values: torch.Tensor) -> None:
            self.values, self.step = values, sum(word.startswith("step") for word in done)
            done.append(f"copy {self.step}")

        def value(self) -> float:
            done.append(f"read {self.step}")
            return float(self.values)

    config = pretrain_config(tiles, tmp_path)
    job = pretrain.prepare(config, opened(config), resume=False)

    def step(backward: Any, *words: Any) -> Any:
        done.append("step")
        return backward(*words)

    wrap(later=lambda real, values: Loss(values), pretrain_backward=step)
    with pretrain.progress_bar(job.opened, job.schedule, command="pretrain") as bar:
        profile = pretrain.Profile(tmp_path, enabled=False, steps=3, device=CPU)
        pretrain.train_epoch(job, 0, bar=bar, profile=profile)

    assert " ".join(word for word in done if "copy" not in word) == "step step read 1 step read 2 read 3"
    assert " ".join(word for word in done if "read" not in word) == "step copy 1 step copy 2 step copy 3"


# --- health ---


@pytest.mark.parametrize(
    ("batch_size", "microbatch", "expected"), [(4096, 32, 64), (4096, None, 128), (64, None, 64), (64, 8, 16)]
)
def test_health_embeds_no_more_tiles_at_once_than_a_step_has_views(
    tiles: Path,
    tmp_path: Path,
    wrap: Any,
    batch_size: int,
    microbatch: int | None,
    expected: int,
) -> None:
    config = pretrain_config(tiles, tmp_path, batch_size=batch_size, microbatch=microbatch)
    assert health_batch_size(config) == expected

    small = pretrain_config(tiles, tmp_path, microbatch=2)
    job = pretrain.prepare(small, opened(small), resume=False)
    asked: list[int] = []

    def outputs(real: Any, model: nn.Module, store: Any, rows: Any, *, batch_size: int, **named: Any) -> torch.Tensor:
        asked.append(batch_size)
        return torch.randn(len(rows), 4)

    wrap(outputs=outputs)
    pretrain.metrics_row(
        job, 0, pretrain.EpochMeans(1.0, {}, 0.9, 0.1, 0.1, seconds=1.0, tiles=24), measure=True, pace=Pace(0)
    )
    assert asked == [4, 4]


def test_collapse_shows_whatever_the_precision_of_the_training(tmp_path: Path) -> None:
    """Features of one direction: rounded to bf16 they would seem to have several."""

    class OneDirection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.along = nn.Linear(1, 256, bias=False)
            nn.init.normal_(self.along.weight, generator=torch.Generator().manual_seed(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.along(1 + 0.01 * x.mean((1, 2, 3), keepdim=False)[:, None])

    images = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 3), dtype=np.uint8)
    found = health_metrics(
        OneDirection(),
        pretrain.place_store(images, device=CPU, budget_gb=1),
        np.full(64, -1),
        health.HealthTiles(train=np.arange(64), queries=np.arange(64), bank=np.arange(0)),
        mean=torch.zeros(3),
        std=torch.full((3,), 0.01),
        batch_size=16,
        neighbours=1,
    )
    assert found["effective_rank"] == pytest.approx(1, abs=0.05)


def test_health_of_a_run_in_bf16_is_in_fp32(tiles: Path, tmp_path: Path) -> None:
    config = pretrain_config(tiles, tmp_path).model_copy(update={"precision": "bf16"})
    job = pretrain.prepare(config, opened(config), resume=False)
    row = pretrain.metrics_row(
        job, 0, pretrain.EpochMeans(1.0, {}, 0.9, 0.1, 0.1, seconds=1.0, tiles=24), measure=True, pace=Pace(0)
    )

    torch.manual_seed(config.seed)
    same = build_encoder("resnet14_small")
    alone = health_metrics(
        same,
        job.store,
        job.tiles.labels,
        job.health_tiles,
        mean=job.views.mean,
        std=job.views.std,
        batch_size=8,
        neighbours=config.health.neighbours,
    )
    assert job.opened.precision == "bf16"
    assert row["effective_rank"] == pytest.approx(alone["effective_rank"], rel=1e-6)


class TooLarge(nn.Module):
    """A module whose memory runs out as it is filled."""

    def load_state_dict(self, *_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_memory_that_runs_out_while_a_run_is_resumed_is_no_fault_of_its_checkpoint(tmp_path):
    kept = SimpleNamespace(model={}, optimizer={}, scaler={})
    with pytest.raises(torch.OutOfMemoryError):
        restore(kept, tmp_path, model=TooLarge(), optimizer=None, scaler=None)
