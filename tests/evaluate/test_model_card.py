"""The model card says what a checkpoint says, whatever the names, and eval changes nothing outside its two lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.config import DataConfig, FinetuneConfig, PretrainConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import card_results, model_card
from sscl.evaluate.calibration import fit_calibration
from sscl.evaluate.evaluation import evaluate
from sscl.evaluate.lineage import NO_SLIDE_IDS
from sscl.evaluate.proportions import proportion_interval
from sscl.evaluate.records import Evaluation
from sscl.models.checkpoint import Checkpoint, build_checkpoint

LABELS = np.array([0] * 12 + [1] * 8)
RIGHT = np.array([True] * 10 + [False] * 2 + [True] * 7 + [False])


def logits() -> torch.Tensor:
    """10 of 12 tiles of class 0 and 7 of 8 of class 1 are right."""
    called = np.where(RIGHT, LABELS, 1 - LABELS)
    return torch.eye(2)[called] * torch.linspace(1, 3, 20)[:, None]


def trained(classes: tuple[str, str] = ("HP", "SSA"), **changes: Any) -> Checkpoint:
    """A finetune run's checkpoint without weights; `data` and `train` are sections of its configuration."""
    data = {"root": "/home/someone/polyps", "source": "folder", "size_px": 96, **changes.pop("data", {})}
    config = FinetuneConfig(run="runs/x", data=data, model={"name": "resnet18"}, train=changes.pop("train", {}))
    blank = build_checkpoint(
        config,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        pooling="mean",
        classes=classes,
        lineage=(),
        fingerprint="0123456789abcdef" * 4,
        precision="fp32",
    )
    kept = fit_calibration(logits(), LABELS, classes=classes, positive=1)
    return replace(blank, **{"epoch": 3, "validation": {}, "calibration": kept, **changes})


def card(found: Checkpoint, **keys: Any) -> str:
    first, second = found.classes[:2]
    given: dict[str, Any] = {
        "folder": Path("/somewhere/runs/x"),
        "origin": "random weights",
        "train": model_card.Part({first: 60, second: 80}, None),
        "validation": model_card.Part({first: 12, second: 8}, None),
        "carved": True,
        "groups_are": "slides or patients",
        "slides_known": True,
    }
    return model_card.model_card(found, **{**given, **keys})


def row(text: str, name: str) -> list[str]:
    """The cells of the one table row of that name."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split(" |")]


# --- what finetune writes ---


def test_the_intervals_of_validation_go_by_slides() -> None:
    slides = tuple(str(i // 2) for i in range(20))
    apart, together, few = (
        card(trained(), validation=model_card.Part({"HP": 12, "SSA": 8}, number, group_of=of))
        for number, of in ((None, None), (10, slides), (2, tuple("a" * 10 + "b" * 10)))
    )
    assert "independent tiles" in apart
    assert "over 10 groups" in together
    assert row(together, "accuracy")[2] != row(apart, "accuracy")[2]
    assert row(few, "accuracy")[2] == "too few slides"


def test_the_metrics_are_those_of_the_validation_tiles() -> None:
    text = card(trained())

    assert "20 tiles. They are few" in text
    low, high = proportion_interval(17, 20)
    assert row(text, "accuracy") == ["accuracy", "0.850", f"{low:.3f} to {high:.3f}", "17 of 20"]
    assert row(text, "`SSA` sensitivity")[1::2] == ["0.875", "7 of 8"]
    assert row(text, "`SSA` specificity")[1::2] == ["0.833", "10 of 12"]
    assert row(text, "balanced accuracy")[1::2] == [f"{(10 / 12 + 7 / 8) / 2:.3f}", ""]
    assert row(text, "`HP`") == ["`HP`", "60", "12"]
    assert row(text, "all") == ["all", "140", "20"]
    assert row(text, "epoch")[1].startswith("3 of at most 50, the best by validation balanced accuracy")
    kept = trained().fitted
    assert kept.ece_before != pytest.approx(kept.ece_after, abs=1e-3)
    calibrated = f"{kept.ece_before:.3f} before, {kept.ece_after:.3f} after"
    assert row(text, "expected calibration error")[1] == calibrated
    assert row(text, "temperature")[1] == f"{kept.temperature:.3f} ({kept.method})"
    assert f"call `SSA` if p >= {kept.threshold:.3f}" in row(text, "operating point")[1]
    assert "optimistic" in text
    stated = {"mean": (0.7, 0.6, 0.5), "std": (0.3, 0.2, 0.1)}
    shown = row(card(trained(**stated)), "input")[1]
    assert all(part in shown for part in ("96 px", "0.700, 0.600, 0.500", "0.300, 0.200, 0.100"))


def test_folders_of_this_machine_are_not_named() -> None:
    lineage = (DataConfig(root="/home/someone/before/tiles.npz", source="pathmnist"),)
    ssl = PretrainConfig(run="r", data={"root": "d"}, model={"weights": "/home/someone/imagenet.pt"})
    before = replace(trained(), config=ssl, kind="pretrain", epoch=7)
    origin = model_card.origin_of_weights("/home/someone/runs/pretrain", before)

    text = card(trained(lineage=lineage), origin=origin)

    assert "/home" not in text
    assert "/somewhere" not in text
    assert row(text, "set")[1] == "`polyps` (folder)"
    assert row(text, "trained before on")[1] == "`tiles.npz` (pathmnist)"
    assert row(text, "started from")[1] == (
        "the run `pretrain`, pretrained without labels, epoch 7, itself from `imagenet.pt`"
    )


@pytest.mark.parametrize(
    ("weights", "before", "said"),
    [
        (None, None, "random weights"),
        ("imagenet", None, "weights trained on ImageNet"),
        ("a/b/ciga.ckpt", None, "the file `ciga.ckpt`, which does not say what it was trained on"),
        (
            "a/run/checkpoints/best.pt",
            replace(trained(), epoch=2, classes=("A", "B", "C")),
            "the run `run/checkpoints/best.pt`, trained with labels (`A`, `B` and `C`), epoch 2, itself from "
            "random weights",
        ),
    ],
)
def test_origin_of_weights(weights: str | None, before: Any, said: str) -> None:
    assert model_card.origin_of_weights(weights, before) == said


def test_limits_follow_the_data() -> None:
    known = card(trained())
    unknown = card(trained(), slides_known=False, train=model_card.Part({"HP": 9, "SSA": 80}, None))
    drawn = card(trained(data={"source": "synthetic"}))

    assert "medical device" in known
    assert "tiles of one slide" not in known
    assert NO_SLIDE_IDS[1:] in unknown
    assert "Few training tiles" not in known
    assert "Few training tiles: 9 of `HP`." in unknown
    assert "say nothing about tissue" in drawn
    assert "- No validation tile of A\\_B." in card(trained(), warnings=["no validation tile of A_B"])
    assert "say nothing about tissue" not in known


def test_settings_that_change_what_was_learned_are_said() -> None:
    plainly = card(trained())
    train = {"label_fraction": 0.1, "balance": "down", "freeze_encoder": True, "folds": 5, "fold": 2}
    special = card(trained(train={**train, "loss": "focal"}, data={"group_near_duplicates": True}), unlabelled=7)
    own = card(trained(), carved=False, train=model_card.Part({"HP": 1, "SSA": 1}, 2))

    assert row(special, "labels used")[1] == "10% of each class, validation included"
    assert row(special, "trained")[1] == "the head alone, on fixed features of each tile as it is"
    assert row(special, "loss")[1] == "focal, gamma 2"
    assert "fold 2 of 5" in row(special, "split")[1]
    assert "kept on one side" in row(special, "near-duplicates")[1]
    assert row(special, "without labels")[1].startswith("7 more tiles")
    assert row(special, "balance")
    assert not [name for name in ("labels used", "balance", "without labels") if f"| {name} |" in plainly]
    assert row(plainly, "near-duplicates")[1] == "not looked for"
    assert row(plainly, "trained")[1] == "the whole model"
    assert row(plainly, "loss")[1] == "cross entropy"
    assert "fold" not in row(plainly, "split")[1]
    assert row(own, "validation tiles")[1] == "the set's own validation split"
    assert row(own, "slides or patients") == ["slides or patients", "2", "not known"]


def test_three_classes_have_recalls_and_no_threshold() -> None:
    classes = ["a", "b", "c"]
    three = torch.cat([logits(), torch.full((20, 1), -5.0)], dim=1)
    kept = fit_calibration(three, LABELS, classes=classes, positive=None)
    counts = model_card.Part(dict.fromkeys(classes, 50), None)
    found = replace(trained(), classes=tuple(classes), calibration=kept)
    text = card(found, train=counts, validation=counts)

    assert "sensitivity" not in text
    assert row(text, "`a` recall")[1::2] == ["0.833", "10 of 12"]
    assert row(text, "`c` recall") == ["`c` recall", "undefined", "", ""]
    assert row(text, "AUROC")[1] == "undefined"
    assert row(text, "operating point")[1].startswith("none")


HOSTILE = "a|b\n# x `y` ``z <script>alert(1)</script> <!-- sscl eval writes from here --> \udcff\x07$1$"


def test_names_are_no_markup() -> None:
    text = card(trained(classes=("HP", HOSTILE)))
    begins = [line for line in text.splitlines() if line.strip() == card_results.BEGIN]
    rows = [line for line in text.splitlines() if line.startswith("|") and "script" in line]

    text.encode("utf-8")  # what cannot be written is gone
    assert len(begins) == 1
    assert not [line for line in text.splitlines() if line.startswith("# x")]
    assert rows
    for line in rows:  # the name stays one cell: its own bar is escaped, its code span is closed
        cells = line.replace("\\|", "").strip("|").split("|")
        assert len(cells) in (2, 3, 4)
        (held,) = [cell for cell in cells if "script" in cell]
        assert held.count("```") == 2


def test_part_of_counts_the_rows_alone() -> None:
    tiles = Tiles(
        images=np.zeros((5, 4, 4, 3), dtype=np.uint8),
        labels=np.array([0, 1, 1, -1, 0]),
        classes=("a", "b", "c"),
        ids=tuple("vwxyz"),
        groups=np.array(["s", "s", "t", "u", "u"]),
    )

    assert model_card.part_of(tiles, np.array([0, 1, 2])) == model_card.Part({"a": 1, "b": 2, "c": 0}, 2)


# --- what eval adds ---


def report(**changes: Any) -> Evaluation:
    tiles = Tiles(
        images=np.zeros((20, 4, 4, 3), dtype=np.uint8),
        labels=LABELS,
        classes=("HP", "SSA"),
        ids=tuple(f"t{i}" for i in range(20)),
    )
    found: dict[str, Any] = {
        "checkpoint": "runs/x",
        "epoch": 3,
        "data": DataConfig(root="/home/someone/polyps", source="mhist"),
        "split": "test",
        "protocol": "official",
        "tiles": 20,
        "classes": tiles.classes,
        "class_counts": tiles.class_counts(),
        "positive": "SSA",
        "data_fingerprint": "f",
        "test_time_augmentation": False,
        "precision": "fp32",
        **dict(evaluate(tiles, logits(), positive=1, kept=trained().fitted)),
        "caveats": ("training used /home/someone/polyps/sub, which overlaps /home/someone/polyps: *so*",),
        "notes": (),
    }
    return Evaluation(**{**found, **changes})


SECTIONS = [DataConfig(root="/home/someone/polyps/sub"), DataConfig(root="/home/someone/polyps")]


def test_test_section_holds_the_metrics_and_the_caveats() -> None:
    text = card_results.test_section(report(), trained_on=SECTIONS, folder=Path("/runs/x/eval_test"))

    found = report()
    low, high = found.intervals.accuracy
    assert (low, high) == pytest.approx(proportion_interval(17, 20))
    assert row(text, "accuracy")[1:] == ["0.850", f"{low:.3f} to {high:.3f}", "17 of 20"]
    assert "`eval_test/metrics.json`" in text
    assert "- training used sub, which overlaps polyps: \\*so\\*" in text
    assert "/home" not in text
    assert row(text, "set")[1] == "`polyps` (mhist, protocol official)"
    after, point, abstention = found.calibration.after, found.operating_point, found.coverage.abstention
    shown = row(text, "expected calibration error")[1]
    assert f"{after.ece:.3f} " in shown
    assert f"{after.ece_by_chance.quantile_95:.3f} in 95%" in shown
    assert row(text, "Brier score, 0 to 2")[1] == f"{after.brier:.3f}"
    names = {f"`SSA` {key} at p >= {point.threshold:.3f}": point.here[key] for key in ("sensitivity", "specificity")}
    decided = f"tiles decided at confidence >= {abstention.threshold:.3f}"
    names |= {decided: abstention.here["decided"], "accuracy on these": abstention.here["accuracy"]}
    for name, share in names.items():
        low, high = share.interval
        assert row(text, name)[1:3] == [f"{share.value:.3f}", f"{low:.3f} to {high:.3f}"]
        assert row(text, name)[-1] == f"{share.count} of {share.of}"
    assert len({share.count for share in names.values()}) > 2


def test_test_section_says_another_set_and_bare_reports() -> None:
    data = DataConfig(root="/elsewhere")
    bare = report(data=data, positive=None, operating_point=None)
    text = card_results.test_section(bare, trained_on=SECTIONS, folder=Path("eval_test"))

    assert row(text, "set")[1].endswith("**not the set of training**")
    low, high = bare.intervals.per_class[0].recall
    assert (low, high) != bare.intervals.per_class[0].precision
    assert (low, high) == pytest.approx(proportion_interval(10, 12))
    assert row(text, "`HP` recall")[1:] == ["0.833", f"{low:.3f} to {high:.3f}", "10 of 12"]
    assert " at p >= " not in text


def test_refresh_changes_what_is_between_the_markers_alone(tmp_path: Path) -> None:
    path = tmp_path / card_results.FILE
    path.write_text(card(trained()), encoding="utf-8")
    mine = "\n\nMine: **ünïcode** \u2028 and\ttabs  \n"
    before = path.read_text(encoding="utf-8") + mine
    path.write_text(before, encoding="utf-8")

    for section in ("one", "two\nlines", "two\nlines"):
        assert card_results.refresh(path, section) is None

    after = path.read_text(encoding="utf-8")
    head, tail = before.partition(card_results.BEGIN)[0], before.partition(card_results.END)[2]
    assert after == f"{head}{card_results.BEGIN}\n\ntwo\nlines\n\n{card_results.END}{tail}"
    assert [file.name for file in tmp_path.iterdir()] == [card_results.FILE]


def test_refresh_keeps_line_ends(tmp_path: Path) -> None:
    path = tmp_path / card_results.FILE
    path.write_bytes(f"mine\r\n{card_results.BEGIN}\r\nold\r\n{card_results.END}\r\nlast".encode())

    assert card_results.refresh(path, "a\nb") is None
    expected = f"mine\r\n{card_results.BEGIN}\r\n\r\na\r\nb\r\n\r\n{card_results.END}\r\nlast"
    assert path.read_bytes() == expected.encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("mine alone", "two marker lines"),
        (f"{card_results.END}\n{card_results.BEGIN}\n", "two marker lines"),
        (f"{card_results.BEGIN}\n{card_results.END}\n{card_results.BEGIN}\n{card_results.END}\n", "two marker lines"),
        (f"x {card_results.BEGIN}\n{card_results.END}\n", "two marker lines"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_refresh_leaves_other_files_alone(tmp_path: Path, text: str | bytes, why: str) -> None:
    path = tmp_path / card_results.FILE
    held = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(held)

    assert why in str(card_results.refresh(path, "new"))
    assert path.read_bytes() == held


def test_refresh_without_a_card_says_so(tmp_path: Path) -> None:
    assert "no such file" in str(card_results.refresh(tmp_path / "none.md", "new"))
    assert not list(tmp_path.iterdir())
