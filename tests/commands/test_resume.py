"""sscl finetune --resume: the bits of a run without an interruption; what says that a training has not ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl import api
from sscl import run as runs
from sscl.config import FinetuneConfig, load_config
from sscl.evaluate import model_card
from sscl.models.checkpoint import load_checkpoint, unfinished_notes
from sscl.records import write_record
from sscl.train import folds

TIMES = ("tiles_per_second", "busy", "seconds")
TINY = ["model.name=timm:test_resnet", "train.epochs=3", "train.head_learning_rate=1e-1", "log.every_seconds=99"]
JOINT = ["contrast.kind=cross_view", "contrast.projection.dim=8", "train.balance=draws", "train.label_fraction=0.8"]
FROZEN = ["train.freeze_encoder=true", "train.optimizer=sgd", "train.select=loss"]


def read_rows(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def read_best(run: Path) -> dict[str, Any]:
    content = dict(torch.load(run / "checkpoints/best.pt", weights_only=True))
    validation = {key: value for key, value in content["validation"].items() if key not in TIMES}
    train = {**content["config"]["train"], "stop_after_epoch": None}
    return {**content, "validation": validation, "config": {**content["config"], "train": train, "run": ""}}


@pytest.fixture(scope="module")
def stopped(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint training, left after 1 of 3 epochs."""
    run: Path = tmp_path_factory.mktemp("runs") / "stopped"
    result = cli.finetune(run, *TINY, *JOINT, "train.stop_after_epoch=1")
    assert result.code == 0, result.err
    assert "--resume" in result.out
    return run


@pytest.mark.parametrize("words", [JOINT, FROZEN], ids=["joint", "frozen"])
def test_interrupted_equals_straight_through(
    cli: Any, stopped: Path, tmp_path: Path, differing_tensors: Any, words: list[str]
) -> None:
    straight, run = tmp_path / "uninterrupted", tmp_path / "other_name"
    assert cli.finetune(straight, *TINY, *words).code == 0
    if words is JOINT:
        shutil.copytree(stopped, run)
    else:
        assert cli.finetune(run, *TINY, *words, "train.stop_after_epoch=1").code == 0
    if words is JOINT:  # as if killed after a new best.pt and before the last.pt that belongs to it
        first = (run / "checkpoints/last.pt").read_bytes()
        second = cli("finetune", f"run={run}", "--resume", "train.stop_after_epoch=2")
        assert second.code == 0, second.err
        assert "after epoch 1 of 3" in second.out
        (run / "checkpoints/last.pt").write_bytes(first)
        (run / runs.ENDING).unlink()
        (run / "checkpoints/.last.pt.0123456789ab.tmp").write_bytes(first[:9])

    result = cli("finetune", f"run={run}", "--resume")

    assert result.code == 0, result.err
    assert differing_tensors(read_best(run), read_best(straight)) == []
    assert read_rows(run) == read_rows(straight)
    assert [row["epoch"] for row in read_rows(run)] == [1, 2, 3]
    cards = [
        (folder / model_card.FILE).read_text().replace("uninterrupted", "other_name") for folder in (run, straight)
    ]
    assert cards[0] == cards[1]
    assert "Unfinished" not in cards[0]
    ending = json.loads((run / runs.ENDING).read_text())
    assert ending == {"epochs": 3, "planned": 3, "reason": "train.epochs"}
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best.pt"]
    again = cli("finetune", f"run={run}", "--resume")
    assert (again.code, "has ended" in again.err) == (2, True)


def test_patience_goes_on_where_it_was(cli: Any, tmp_path: Path) -> None:
    """Nothing is learned without a learning rate, so that the first epoch stays the best."""
    words = [
        *TINY,
        *FROZEN,
        "train.head_learning_rate=1e-30",
        "train.select=accuracy",
        "train.patience=2",
        "train.epochs=9",
    ]
    assert cli.finetune(tmp_path / "run", *words, "train.stop_after_epoch=2").code == 0
    assert json.loads((tmp_path / "run" / runs.ENDING).read_text())["reason"] == "train.stop_after_epoch"
    assert cli("finetune", f"run={tmp_path / 'run'}", "--resume").code == 0
    ending = json.loads((tmp_path / "run" / runs.ENDING).read_text())
    assert ending == {"epochs": 3, "planned": 9, "reason": "train.patience"}


def test_a_run_is_named_alone_and_its_tiles_may_have_moved(
    cli: Any, stopped: Path, tiles: Path, tmp_path: Path, snapshot: Any
) -> None:
    run, moved = (Path(shutil.copytree(stopped, tmp_path / "r")), Path(shutil.copytree(tiles, tmp_path / "moved")))
    before = snapshot(run)
    words = ["finetune", f"run={run}", "--resume", "train.stop_after_epoch=2"]

    changed = cli(*words, "seed=5", "train.balance=none", f"data.root={moved}")
    assert changed.code == 2
    assert [line.split(": ")[1] for line in changed.err.splitlines()] == ["seed", "train.balance"]
    other = cli("pretrain", *words[1:])
    assert (other.code, "contrast" in other.err) == (2, True)
    nothing = cli("finetune", f"run={tmp_path / 'none'}", "--resume")
    assert (nothing.code, "nothing to resume" in nothing.err) == (2, True)
    assert snapshot(run) == before

    result = cli(*words, f"data.root={moved}", "log.every_seconds=99")
    assert result.code == 0, result.err
    assert str(moved) in (run / "config.yaml").read_text()  # where to look next time
    assert str(moved) in load_checkpoint(run, tensors=False).finetune_config.data.root or "epoch 1" in result.out


def test_what_has_not_ended_is_marked(cli: Any, stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    said = "unfinished: epoch 1 of 3"
    assert "**Unfinished: epoch 1 of 3.**" in (run / model_card.FILE).read_text()
    assert said in unfinished_notes(run)[0]
    assert said in unfinished_notes(run / "checkpoints/best.pt")[0]
    (run / runs.ENDING).unlink()  # killed
    with pytest.warns(api.Unfinished, match=said):
        api.load(run, device="cpu")
    evaluated = cli.evaluate(run)
    assert (evaluated.code, said in evaluated.out) == (0, True)
    assert any(said in text for text in json.loads((run / "eval_test/metrics.json").read_text())["caveats"])
    assert said in (run / model_card.FILE).read_text()
    compared = cli("compare", run, run / "eval_test")
    assert (compared.code, compared.err.count(said)) == (2, 2)
    other = cli("eval", f"checkpoint={run}/checkpoints/last.pt")
    assert (other.code, "best.pt" in other.err) == (2, True)


def test_a_fold_goes_on_with_the_configuration_and_the_weights_it_began_with(stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    config = load_config(FinetuneConfig, run / "config.yaml", overrides=[f"run={run}"])
    assert folds.is_interrupted(config)
    assert not folds.is_interrupted(config.model_copy(update={"seed": 5}))
    write_record(run / runs.ENDING, runs.Ending(epochs=3, planned=3, reason=runs.Reason.COMPLETED))
    assert not folds.is_interrupted(config)


def test_a_checkpoint_beside_no_run_says_nothing(stopped: Path, tmp_path: Path) -> None:
    shutil.copy(stopped / "checkpoints/best.pt", tmp_path / "model.pt")
    assert unfinished_notes(tmp_path / "model.pt") == []
