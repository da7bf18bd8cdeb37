"""pretrain and finetune on two ranks that talk over gloo equal one process, and a rank that dies ends torchrun's job.

With microbatches batch norm is frozen: their own statistics are not those of the whole batch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
from slide_cohort import draw_all, make_index
from sscl.config import PretrainConfig
from sscl.train.setup import check_batch

SCRIPT = Path(__file__).parents[1] / "rank_tasks.py"
JOB = SCRIPT.with_name("rank_job.py")
SECONDS = 240
BEST = "checkpoints/best.pt"
FROZEN = ["train.freeze_batch_norm=true", "projection.kind=mlp_no_norm"]
MLP = ["projection.hidden=32", "projection.dim=16", "train.learning_rate=0.02", "seed=5"]


@dataclass(frozen=True)
class Runs:
    """Runs of one process and of two ranks, with the checkpoints that they started from."""

    folder: Path
    first: str  # what was printed before the resumption
    printed: dict[str, str]  # by both ranks, by run

    def state(self, run: str, checkpoint: str = "checkpoints/last.pt") -> Any:
        return torch.load(self.folder / run / checkpoint, weights_only=True)

    def encoder(self, run: str) -> dict[str, torch.Tensor]:
        return dict(torch.load(self.folder / run / "encoder.pt", weights_only=True))


@pytest.fixture(scope="module")
def unequal(folder3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles less of one class than of the others, and four of another, so that class weights differ."""
    root = Path(shutil.copytree(folder3, tmp_path_factory.mktemp("unequal") / "colours"))
    for name, less in (("benign", 2), ("stroma", 4)):
        for path in sorted((root / "train" / name).iterdir())[:less]:
            path.unlink()
    return root


@pytest.fixture(scope="module")
def runs(
    cli: Any, folder3_words: list[str], unequal: Path, blank_pictures: None, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    """Three runs, of one process each; then on two ranks, whose start takes the longest and is made once.

    Tiles of noise: in a drawn lumen all pixels are equal, and rounding decides which of them max-pool takes. The
    finetuned model is smooth: at a kink of ReLU, rounding can decide. Its projection has the only batch norm.
    """
    folder = tmp_path_factory.mktemp("ranks")
    resnet, vit = [*folder3_words, "model.name=timm:test_resnet"], ["data.source=folder", f"data.root={unequal}"]
    vit += ["model.name=timm:test_vit"]
    for name, words in (("resnet", resnet), ("vit", vit)):
        assert cli.pretrain(folder / name, *words, "seed=1").code == 0

    tiny = ["train.batch_size=8", "train.warmup_epochs=1"]
    index = make_index(folder / "index", draw_all(folder / "slides"))
    slides = ["data.source=slides", f"data.root={index}", "data.keep=slides", "data.tiles_per_slide=4"]
    pretrain = [*cli._common(), *resnet, f"model.weights={folder / 'resnet'}", *tiny, "health.tiles=8", *MLP]
    contrast = ["contrast.kind=nt_xent", "contrast.projection.kind=mlp", "contrast.projection.hidden=32"]
    finetune = [*cli._common(), *vit, f"model.weights={folder / 'vit'}", *tiny, *contrast, "train.loss=weighted_focal"]
    finetune += ["train.epochs=2", "train.optimizer=sgd", "train.learning_rate=1e-2", "train.select=loss"]
    words = {
        "frozen": ["pretrain", *pretrain, *FROZEN, "train.epochs=2"],
        "normed": ["pretrain", *pretrain, *slides, "projection.kind=mlp", "train.epochs=1"],  # T27
        "finetuned": ["finetune", *finetune],
    }
    for name, command in words.items():
        result = cli(*command, f"run={folder / name}")
        assert result.code == 0, result.err

    # The first epoch on one rank, the second on two, in microbatches of one tile.
    words["frozen"].append("train.microbatch=1")
    first = cli(*words["frozen"], f"run={folder / 'frozen_ranks'}", "train.stop_after_epoch=1")
    assert first.code == 0, first.err
    words["frozen"].append("--resume")
    listed = [[*command, f"run={folder / name}_ranks"] for name, command in words.items()]
    (folder / "commands.json").write_text(json.dumps(listed))
    done = forked.run(SCRIPT, folder, folder / "commands.json", timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return Runs(folder, first.out, {name: (folder / f"{i}.out").read_text() for i, name in enumerate(words)})


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The Euclidean distance of two states' tensors, taken as one vector."""
    assert a.keys() == b.keys()
    return sum(float((a[key].double() - b[key].double()).square().sum()) for key in a) ** 0.5


def test_ranks_and_a_resumption_on_more_of_them_equal_one_process(runs: Runs, read_metrics: Any) -> None:
    ours, expected, begun = runs.state("frozen_ranks"), runs.state("frozen"), runs.encoder("resnet")

    assert " ranks" not in runs.first
    assert "2 ranks" in runs.printed["frozen"]
    assert runs.printed["frozen"].count(" training tiles") == 1  # only rank 0 speaks
    assert ours["epoch"] == 2
    moved = distance(begun, dict(expected["encoder"]))
    # In double precision tests/test_ranks.py asks for 1e-12.
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-3
    assert distance(ours["model"], expected["model"]) < moved * 1e-3
    rows, straight = read_metrics(runs.folder / "frozen_ranks"), read_metrics(runs.folder / "frozen")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, other in zip(rows, straight, strict=True):
        for key in other.keys() - {"seconds", "tiles_per_second", "busy"}:
            assert row[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)


def test_pretraining_with_batch_norm_on_ranks_equals_one_process(runs: Runs, read_metrics: Any) -> None:
    """Of the encoder and of the projection: they move, by the statistics of all ranks' tiles."""
    ours, expected = runs.state("normed_ranks"), runs.state("normed")
    moved = distance(runs.encoder("resnet"), dict(expected["encoder"]))
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-3
    assert distance(ours["model"], expected["model"]) < moved * 1e-3
    loss, other = (read_metrics(runs.folder / run)[0]["loss"] for run in ("normed_ranks", "normed"))
    assert loss == pytest.approx(other, abs=1e-5)


def test_finetuning_on_ranks_equals_one_process(runs: Runs, read_metrics: Any) -> None:
    """Class weights, of which the ranks' halves of a batch have different sums, and contrastive steps."""
    assert runs.printed["finetuned"].count("best epoch") == 1
    rows, straight = read_metrics(runs.folder / "finetuned_ranks"), read_metrics(runs.folder / "finetuned")
    for row, other in zip(rows, straight, strict=True):
        for key in other.keys() - {"tiles_per_second", "busy"}:
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key
    ours, expected = runs.state("finetuned_ranks", BEST), runs.state("finetuned", BEST)
    moved = distance(runs.encoder("vit"), expected["encoder"])
    assert distance(ours["encoder"], expected["encoder"]) < moved * 1e-5
    assert distance(ours["head"], expected["head"]) < 1e-6


def test_a_rank_that_dies_ends_the_job(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["pretrain", f"run={run}", *cli._common(), "train.batch_size=8", "train.epochs=2000", "health.tiles=8"]
    # The agent of torchrun, without its command line, of which each rank would import everything itself.
    with (tmp_path / "log").open("w") as log:
        process = forked.start(JOB, tmp_path, *words, "model.name=resnet14_small", stdout=log, stderr=log)
    end = time.monotonic() + SECONDS
    while not (run / "checkpoints/last.pt").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)

    os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
    killed = time.monotonic()
    code = process.wait(SECONDS)

    assert code != 0, (tmp_path / "log").read_text()
    assert time.monotonic() - killed < 60
    assert torch.load(run / "checkpoints/last.pt", weights_only=True)["epoch"] >= 1  # whole


def test_a_batch_that_does_not_divide_is_refused() -> None:
    config = PretrainConfig(run="run", data={"root": "nowhere"}, train={"batch_size": 7})
    with pytest.raises(ValueError, match=r"^train\.batch_size: got 7, .* 2 ranks; 6 or 8 would"):
        check_batch(config.train, world=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.microbatch=5"], "train.microbatch: got 5, which does not divide the 12 tiles of a batch"),
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
