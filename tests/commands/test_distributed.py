"""pretrain and finetune under torchrun, over gloo: ranks equal one process, and a rank that dies ends the job.

With microbatches batch norm is frozen: their own statistics are not those of the whole batch.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl.config import PretrainConfig
from sscl.train.setup import check_batch

SECONDS = 240
BEST = "checkpoints/best.pt"
FROZEN = ["train.freeze_batch_norm=true", "projection.kind=mlp_no_norm", "projection.hidden=64", "seed=5"]


def started(ranks: int, *words: object, **options: Any) -> subprocess.Popen[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [*torchrun, "-m", "sscl", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"hung:\n{out}\n{err}") from None
    return process.returncode, out, err


def words_of(cli: Any, command: str, run: Path, *words: object) -> list[object]:
    tiny = ["train.batch_size=8", "train.warmup_epochs=1"]
    return [command, f"run={run}", *cli._common(), *tiny, *words]


@pytest.fixture(scope="module")
def pretrain_words(pretrained: Path, folder3_words: list[str]) -> list[str]:
    """Tiles of noise: in a drawn lumen all pixels are equal, and rounding decides which of them max-pool takes."""
    start = f"model.weights={pretrained}"
    return [*folder3_words, start, *FROZEN, "train.epochs=2", "health.tiles=8", "train.learning_rate=0.02"]


@pytest.fixture(scope="module")
def alone(cli: Any, pretrain_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run: Path = tmp_path_factory.mktemp("runs") / "alone"
    result = cli(*words_of(cli, "pretrain", run, *pretrain_words))
    assert result.code == 0, result.err
    return run


@pytest.fixture(scope="module")
def together(cli: Any, pretrain_words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The first epoch on one rank, the second on two, in microbatches of one tile."""
    run: Path = tmp_path_factory.mktemp("runs") / "together"
    words = words_of(cli, "pretrain", run, *pretrain_words, "train.microbatch=1")
    result = cli(*words, "train.stop_after_epoch=1")
    assert result.code == 0, result.err
    code, second, err = finished(started(2, *words, "--resume"))
    assert code == 0, err
    return run, result.out, second


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The Euclidean distance of two states' tensors, taken as one vector."""
    assert a.keys() == b.keys()
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) ** 0.5


def test_ranks_and_a_resumption_on_more_of_them_equal_one_process(
    alone: Path, together: tuple[Path, str, str], pretrained: Path, read_metrics: Any
) -> None:
    run, first, second = together
    ours, expected = (torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in (run, alone))
    begun = dict(torch.load(pretrained / "encoder.pt", weights_only=True))

    assert " ranks" not in first
    assert "2 ranks" in second
    assert second.count(" training tiles") == 1  # only rank 0 speaks
    assert ours["epoch"] == 2
    moved = distance(begun, dict(expected["encoder"]))
    # In double precision tests/test_dist.py asks for 1e-12.
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-3
    assert distance(ours["model"], expected["model"]) < moved * 1e-3
    rows, straight = read_metrics(run), read_metrics(alone)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, other in zip(rows, straight, strict=True):
        for key in other.keys() - {"seconds", "tiles_per_second", "busy"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_pretraining_with_batch_norm_on_ranks_equals_one_process(
    cli: Any, pretrained: Path, folder3_words: list[str], tmp_path: Path, read_metrics: Any
) -> None:
    """Of the encoder and of the projection: they move, by the statistics of all ranks' tiles."""
    words = [*folder3_words, f"model.weights={pretrained}", "projection.kind=mlp", "projection.hidden=64", "seed=5"]
    words += ["train.epochs=1", "health.tiles=8", "train.learning_rate=0.02"]

    result = cli(*words_of(cli, "pretrain", tmp_path / "alone", *words))
    code, _, err = finished(started(2, *words_of(cli, "pretrain", tmp_path / "together", *words)))

    assert result.code == 0, result.err
    assert code == 0, err
    begun = dict(torch.load(pretrained / "encoder.pt", weights_only=True))
    ours, expected = (
        torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True) for run in ("together", "alone")
    )
    moved = distance(begun, dict(expected["encoder"]))
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-3
    assert distance(ours["model"], expected["model"]) < moved * 1e-3
    assert read_metrics(tmp_path / "together")[0]["loss"] == pytest.approx(
        read_metrics(tmp_path / "alone")[0]["loss"], abs=1e-5
    )


@pytest.fixture
def unequal(folder3: Path, tmp_path: Path) -> Path:
    """Two tiles less of one class than of the others, and four of another, so that class weights differ."""
    root = Path(shutil.copytree(folder3, tmp_path / "colours"))
    for name, less in (("benign", 2), ("stroma", 4)):
        for path in sorted((root / "train" / name).iterdir())[:less]:
            path.unlink()
    return root


def test_finetuning_on_ranks_equals_one_process(cli: Any, unequal: Path, tmp_path: Path, read_metrics: Any) -> None:
    """Class weights, of which the ranks' halves of a batch have different sums, and contrastive steps.

    The model is smooth: at a kink of ReLU, rounding can decide. The projection has the only batch norm.
    """
    words = ["data.source=folder", f"data.root={unequal}", "model.name=timm:test_vit"]
    start = cli.pretrain(tmp_path / "start", *words)
    words += [
        f"model.weights={tmp_path / 'start'}",
        "train.loss=weighted_focal",
        "contrast.kind=nt_xent",
        "contrast.projection.kind=mlp",
        "contrast.projection.hidden=32",
        "train.epochs=2",
        "train.optimizer=sgd",
        "train.learning_rate=1e-2",
        "train.select=loss",
    ]

    result = cli(*words_of(cli, "finetune", tmp_path / "alone", *words))
    code, out, err = finished(started(2, *words_of(cli, "finetune", tmp_path / "together", *words)))

    assert start.code == 0, start.err
    assert result.code == 0, result.err
    assert code == 0, err
    assert out.count("best epoch") == 1
    rows, straight = read_metrics(tmp_path / "together"), read_metrics(tmp_path / "alone")
    for row, other in zip(rows, straight, strict=True):
        for key in other.keys() - {"tiles_per_second", "busy"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    begun, ours, expected = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "start/encoder.pt", *(tmp_path / run / BEST for run in ("together", "alone")))
    )
    moved = distance(begun, expected["encoder"])
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-5
    assert distance(ours["head"], expected["head"]) < 1e-6


def test_a_rank_that_dies_ends_the_job(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = started(2, *words_of(cli, "pretrain", run, "train.epochs=2000", "health.tiles=8"))
    end = time.monotonic() + SECONDS
    while not (run / "checkpoints/last.pt").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)

    os.kill(process_of(run, rank=1), signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = finished(process)

    assert code != 0, err
    assert time.monotonic() - killed < 60
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["epoch"] >= 1  # whole


def process_of(run: Path, *, rank: int) -> int:
    """The process that torchrun started as this rank of the run."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
                variables = (entry / "environ").read_text().split("\0")
            except OSError:
                continue
            if f"run={run}" in words and f"RANK={rank}" in variables:
                return int(entry.name)
    raise AssertionError(f"no rank {rank} of {run}")


def test_a_batch_that_does_not_divide_is_refused() -> None:
    config = PretrainConfig(run="run", data={"root": "nowhere"}, train={"batch_size": 7})
    with pytest.raises(ValueError, match=r"^train\.batch_size: got 7, .* 2 ranks; 6 or 8 would"):
        check_batch(config.train, world=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.microbatch=3"], "train.microbatch: got 3, which does not divide the 8 tiles of a batch"),
        (["train.microbatch=0"], "train.microbatch"),
        (["train.timeout_minutes=0"], "train.timeout_minutes"),
    ],
)
def test_keys_that_make_no_sense_are_refused(cli: Any, tmp_path: Path, words: list[str], message: str) -> None:
    result = cli.pretrain(tmp_path / "run", *words)

    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
