"""sscl eval: its figures against scikit-learn and an independent forward pass, and the checkpoints it refuses."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import timm
import torch
from PIL import Image

from sscl.commands import evaluate
from sscl.config import DataConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, evaluation, lineage
from sscl.evaluate.lineage import NO_SLIDE_IDS
from sscl.evaluate.proportions import proportion_interval
from sscl.evaluate.records import Evaluation

PICTURES = {
    *("confusion.png", "roc.png", "precision_recall.png"),
    *("reliability.png", "decision_curve.png", "coverage.png"),
}


@pytest.fixture(scope="module")
def evaluated(cli: Any, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that eval of the test split wrote, and what it printed."""
    out: Path = tmp_path_factory.mktemp("eval") / "out"
    result = cli.evaluate(finetuned, f"out={out}")
    assert result.code == 0, result.err
    return out, result.out


@pytest.fixture(scope="module")
def evaluated3(cli: Any, finetuned3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same of the three classes of the image folder."""
    out: Path = tmp_path_factory.mktemp("eval") / "out3"
    result = cli.evaluate(finetuned3, f"out={out}")
    assert result.code == 0, result.err
    return out, result.out


def report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "metrics.json").read_text()))


def table_of(out: Path, classes: list[str], read_rows: Any) -> tuple[list[str], Any, Any, Any]:
    """Return ids, labels, predictions and probabilities (N, K) of predictions.csv."""
    rows = read_rows(out / "predictions.csv")
    labels = np.array([classes.index(row["label"]) for row in rows])
    predictions = np.array([classes.index(row["prediction"]) for row in rows])
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in classes] for row in rows])
    return [row["id"] for row in rows], labels, predictions, probabilities


def timms_network(content: dict[str, Any]) -> torch.nn.Module:
    """Return the network of a checkpoint as timm builds it, the head as its last layer."""
    network = timm.create_model("test_resnet", num_classes=2).eval()
    encoder = {key.removeprefix("net."): value for key, value in content["encoder"].items()}
    network.load_state_dict({**encoder, **{f"fc.{key}": value for key, value in content["head"].items()}})
    return network


def same(value: float | None, expected: float) -> bool:
    """Return whether a metric is sklearn's; where sklearn warns and says 0, ours is undefined."""
    return expected == 0 if value is None else value == pytest.approx(expected, abs=1e-9)


# --- the figures ---


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_two_class_metrics_are_those_of_sklearn_on_predictions_csv(evaluated: tuple[Path, str], read_rows: Any) -> None:
    out, _ = evaluated
    written = report(out)
    values = written["metrics"]
    _, labels, predictions, probabilities = table_of(out, ["HP", "SSA"], read_rows)

    assert len(labels) == written["tiles"] == 16
    assert written["positive"] == "SSA"
    assert (predictions == probabilities.argmax(1)).all()
    assert np.allclose(probabilities.sum(1), 1, atol=2e-6)
    assert same(values["accuracy"], sk.accuracy_score(labels, predictions))
    assert same(values["balanced_accuracy"], sk.balanced_accuracy_score(labels, predictions))
    assert same(values["auroc"], sk.roc_auc_score(labels, probabilities[:, 1]))
    assert same(values["average_precision"], sk.average_precision_score(labels, probabilities[:, 1]))
    assert same(values["mcc"], sk.matthews_corrcoef(labels, predictions))
    assert same(values["sensitivity"], sk.recall_score(labels, predictions, pos_label=1))
    assert same(values["specificity"], sk.recall_score(labels, predictions, pos_label=0))
    scores = sk.precision_recall_fscore_support(labels, predictions, labels=[0, 1])
    for index, row in enumerate(values["per_class"]):
        assert same(row["precision"], scores[0][index])
        assert same(row["recall"], scores[1][index])
        assert same(row["f1"], scores[2][index])
        assert row["support"] == scores[3][index] == 8
    assert written["confusion_matrix"] == sk.confusion_matrix(labels, predictions, labels=[0, 1]).tolist()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_three_class_metrics_are_those_of_sklearn(evaluated3: tuple[Path, str], read_rows: Any) -> None:
    out, _ = evaluated3
    written = report(out)
    classes = ["benign", "cancer", "stroma"]
    _, labels, predictions, probabilities = table_of(out, classes, read_rows)
    values = written["metrics"]

    assert written["classes"] == classes
    assert written["positive"] is None
    assert values["sensitivity"] is None
    assert written["class_counts"] == {"benign": 5, "cancer": 5, "stroma": 5}
    assert same(values["accuracy"], sk.accuracy_score(labels, predictions))
    assert same(values["macro_f1"], sk.f1_score(labels, predictions, average="macro"))
    one_vs_rest = [sk.roc_auc_score(labels == c, probabilities[:, c]) for c in range(3)]
    assert same(values["auroc"], float(np.mean(one_vs_rest)))
    assert written["confusion_matrix"] == sk.confusion_matrix(labels, predictions, labels=[0, 1, 2]).tolist()
    assert written["protocol"] is None
    assert written["accuracy_by_agreement"] is None


def test_probabilities_are_those_of_timms_network(
    evaluated: tuple[Path, str], finetuned: Path, tiles: Path, read_rows: Any
) -> None:
    """An independent road from files to probabilities: PIL, timm's network, the head as its last layer."""
    content = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)
    network = timms_network(content)
    ids, _, _, found = table_of(evaluated[0], ["HP", "SSA"], read_rows)
    pixels = torch.from_numpy(np.stack([np.array(Image.open(tiles / "images" / name)) for name in ids]))
    x = pixels.permute(0, 3, 1, 2).float() / 255

    with torch.no_grad():
        logits = network((x - 0.5) / 0.5)
    expected = (logits / content["calibration"]["temperature"]).softmax(1).numpy()

    assert np.abs(found - expected).max() < 2e-5
    assert np.abs(found - logits.softmax(1).numpy()).max() > 1e-3


def test_predictions_have_the_truth_and_votes_of_the_annotations(
    evaluated: tuple[Path, str], tiles: Path, read_rows: Any
) -> None:
    annotations = {row["Image Name"]: row for row in read_rows(tiles / "annotations.csv") if row["Partition"] == "test"}
    rows = read_rows(evaluated[0] / "predictions.csv")

    assert list(rows[0]) == ["id", "label", "prediction", "probability_HP", "probability_SSA", "loss", "votes", "group"]
    assert {row["id"] for row in rows} == set(annotations)
    for row in rows:
        truth = annotations[row["id"]]
        assert row["label"] == truth["Majority Vote Label"]
        assert row["votes"] == truth["Number of Annotators who Selected SSA (Out of 7)"]
        assert float(row["loss"]) == pytest.approx(-math.log(float(row[f"probability_{row['label']}"])), abs=1e-4)
    assert report(evaluated[0])["loss"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]), abs=1e-5)


def test_accuracy_by_agreement_is_counted_from_the_votes(evaluated: tuple[Path, str], read_rows: Any) -> None:
    rows = read_rows(evaluated[0] / "predictions.csv")

    for entry in report(evaluated[0])["accuracy_by_agreement"]:
        agreeing = int(entry["agreement"][0])
        chosen = [row for row in rows if max(int(row["votes"]), 7 - int(row["votes"])) == agreeing]
        accuracy = entry["accuracy"] or {"of": 0, "count": 0}
        assert accuracy["of"] == len(chosen)
        assert accuracy["count"] == sum(row["label"] == row["prediction"] for row in chosen)


def test_intervals_hold_the_value(evaluated3: tuple[Path, str]) -> None:
    found = report(evaluated3[0])
    low, high = found["intervals"]["auroc"]
    assert low <= found["metrics"]["auroc"] <= high
    assert low < high
    share = found["proportions"]["accuracy"]
    assert share["interval"] == pytest.approx(proportion_interval(share["count"], share["of"]))
    assert share["interval"] == found["intervals"]["accuracy"]


# --- calibration, thresholds, augmentation ---


def test_temperature_and_threshold_are_those_of_the_checkpoint(evaluated: tuple[Path, str], finetuned: Path) -> None:
    out, printed = evaluated
    kept = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)["calibration"]
    written = report(out)

    assert written["calibration"]["temperature"] == kept["temperature"]
    assert written["calibration"]["fitted_on"] == kept["tiles"]
    assert written["operating_point"]["threshold"] == pytest.approx(kept["threshold"], abs=1e-6)
    assert kept["positive"] == "SSA"
    assert f"temperature {kept['temperature']:.3f} " in printed
    assert f"SSA if its probability is at least {kept['threshold']:.3f} (" in printed
    assert written["calibration"]["after"]["loss"] == written["loss"]
    assert written["calibration"]["after"]["soft_vote_brier"] is not None
    assert f"from {kept['tiles']} validation tiles" in printed


def test_calibration_moves_probabilities_and_thresholds_and_no_prediction(
    cli: Any, evaluated: tuple[Path, str], finetuned: Path, tmp_path: Path, read_rows: Any
) -> None:
    raw = cli.evaluate(finetuned, "calibrate=false", f"out={tmp_path / 'raw'}")

    assert raw.code == 0, raw.err
    assert "temperature 1.000 " in raw.out
    unscaled, scaled = report(tmp_path / "raw"), report(evaluated[0])
    assert unscaled["operating_point"] is not None
    assert unscaled["loss"] == scaled["calibration"]["before"]["loss"] != scaled["loss"]
    tables = [table_of(out, ["HP", "SSA"], read_rows) for out in (tmp_path / "raw", evaluated[0])]
    assert (tables[0][2] == tables[1][2]).all()
    assert not np.allclose(tables[0][3], tables[1][3], atol=1e-3)


def test_a_stated_sensitivity_moves_the_operating_point(
    cli: Any, evaluated: tuple[Path, str], finetuned: Path, tmp_path: Path
) -> None:
    result = cli.evaluate(finetuned, "sensitivity=1", "abstain=0", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    point = report(tmp_path / "out")["operating_point"]
    assert point["on_validation"]["sensitivity"] == 1
    assert ">= 1" in point["rule"]
    assert point["threshold"] <= report(evaluated[0])["operating_point"]["threshold"]
    abstention = report(tmp_path / "out")["coverage"]["abstention"]
    assert abstention["limit"] == abstention["left_out_on_validation"] == 0
    refused = cli.evaluate(finetuned, "sensitivity=1.5", f"out={tmp_path / 'no'}")
    assert refused.code == 2
    assert all(part in refused.err for part in ("sensitivity: ", "got 1.5"))


def test_test_time_augmentation_is_the_mean_of_eight_and_is_said(
    cli: Any, evaluated: tuple[Path, str], finetuned: Path, tmp_path: Path, tiles: Path, read_rows: Any
) -> None:
    assert cli.evaluate(finetuned, "tta=true", "calibrate=false", f"out={tmp_path / 'out'}").code == 0
    ids, _, _, found = table_of(tmp_path / "out", ["HP", "SSA"], read_rows)
    assert report(tmp_path / "out")["test_time_augmentation"] is True
    assert report(evaluated[0])["test_time_augmentation"] is False
    assert "without test-time augmentation" in " ".join(report(tmp_path / "out")["notes"])

    content = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)
    network = timms_network(content)
    logits = []
    for name in ids[:3]:
        picture = Image.open(tiles / "images" / name)
        for turned in (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            for degrees in (0, 90, 180, 270):
                x = (np.asarray(turned.rotate(degrees)) / 255 - 0.5) / 0.5
                logits.append(network(torch.from_numpy(x).float().permute(2, 0, 1)[None]).detach())
    expected = torch.cat(logits).reshape(3, 8, 2).mean(1).softmax(1).numpy()
    assert np.abs(found[:3] - expected).max() < 2e-5


def test_intervals_go_by_slides_where_the_tiles_have_them(
    evaluated: tuple[Path, str], evaluated3: tuple[Path, str]
) -> None:
    assert "- too few slides for intervals: 2" in evaluated[1]
    (line,) = [line for line in evaluated[1].splitlines() if line.startswith("  AUROC")]
    assert line.endswith("too few slides")
    assert "independent tiles" in evaluated3[1]
    assert f"- {lineage.INDEPENDENT}" in evaluated3[1]


def test_every_accuracy_that_is_printed_has_its_interval(evaluated3: tuple[Path, str]) -> None:
    lines = [line for line in evaluated3[1].splitlines() if line.strip().startswith("accuracy")]
    assert len(lines) == 2  # of all tiles, and of those on which it does not abstain
    for line in lines:
        *_, low, to, high, count, of, total = line.split()
        assert (to, of) == ("to", "of")
        assert (float(low), float(high)) == pytest.approx(proportion_interval(int(count), int(total)), abs=6e-4)


# --- what it says and writes ---


def test_says_split_protocol_count_and_positive_class(evaluated: tuple[Path, str]) -> None:
    out, printed = evaluated

    assert "split test: 16 tiles (8 HP, 8 SSA)" in printed
    assert "protocol official" in printed
    for row in ("AUROC", "MCC", "SSA sensitivity", "SSA specificity", "PPV", "accuracy, 7/7 agree"):
        assert row in printed
    assert f"{report(out)['metrics']['auroc']:.3f}" in printed
    assert len(printed.splitlines()) <= 50  # four of them by agreement
    assert max(map(len, printed.partition("\nMetrics")[0].replace(str(out.parents[1]), "").splitlines())) <= 80
    assert NO_SLIDE_IDS not in printed  # slides.csv is there
    assert "training tiles" not in printed


def test_writes_what_it_names(evaluated: tuple[Path, str]) -> None:
    out, _ = evaluated
    found = {path.name for path in out.iterdir()}

    assert found == {"metrics.json", "predictions.csv", "config.yaml", "env.json"} | PICTURES
    for name in PICTURES:
        with Image.open(out / name) as picture:
            assert picture.format == "PNG"
            assert picture.width > 300


@pytest.mark.parametrize("calibrate", [True, False])
def test_pictures_are_of_what_the_report_says(
    tmp_path: Path, drawn: dict[str, tuple[Any, ...]], calibrate: bool
) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    logits = torch.from_numpy(3 * rng.normal(size=(60, 2)) + 2 * np.eye(2)[labels])
    tiles = Tiles(np.zeros((60, 2, 2, 3), np.uint8), labels, ("HP", "SSA"), tuple(map(str, range(60))))
    kept = calibration.fit_calibration(logits[:30], labels[:30], classes=tiles.classes, positive=1)
    results = evaluation.evaluate(tiles, logits, positive=1, kept=kept, calibrate=calibrate)
    found = Evaluation(
        checkpoint="run",
        epoch=1,
        data=DataConfig(root="tiles"),
        split="test",
        protocol=None,
        tiles=60,
        classes=tiles.classes,
        class_counts=tiles.class_counts(),
        positive="SSA",
        data_fingerprint="f",
        test_time_augmentation=False,
        precision="fp32",
        caveats=(),
        notes=(),
        **dict(results),
    )
    temperature = found.calibration.temperature
    p = calibration.softmax(logits, temperature=temperature)

    evaluate.draw(tmp_path, tiles, found, probabilities=p, positive=1)

    assert set(drawn) == PICTURES
    matrix, words = drawn["confusion.png"]
    assert matrix == list(map(list, found.confusion_matrix)) != np.transpose(matrix).tolist()
    assert words == {"classes": tiles.classes, "title": "test split, 60 tiles"}
    for name in ("roc.png", "precision_recall.png"):
        given, scores, words = drawn[name]
        assert (given == labels).all()
        assert (scores == p).all()
        assert words == {"classes": tiles.classes, "positive": 1}
    stages, words = drawn["reliability.png"]
    before, after = found.calibration.before, found.calibration.after
    assert stages == ({"before": before, "after": after} if calibrate else {"as trained": before})
    assert (words["temperature"], words["positive"]) == (temperature, "SSA")
    curve, words = drawn["coverage.png"]
    assert curve.correct[-1] == (p.argmax(1) == labels).sum()
    assert words["found"] == found.coverage
    curve, words = drawn["decision_curve.png"]
    assert curve == found.decision_curve
    assert (words["threshold"], words["positive"]) == (found.operating_point.threshold, "SSA")


def test_without_groups_says_that_slides_may_be_shared(evaluated3: tuple[Path, str]) -> None:
    _, printed = evaluated3

    assert NO_SLIDE_IDS in printed
    assert "positive class" not in printed
    assert "protocol" not in printed


def test_a_positive_class_can_be_chosen(cli: Any, evaluated: tuple[Path, str], finetuned: Path, tmp_path: Path) -> None:
    result = cli.evaluate(finetuned, "positive=HP", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    usual, swapped = report(evaluated[0])["metrics"], report(tmp_path / "out")["metrics"]
    assert "  HP sensitivity " in result.out
    assert swapped["sensitivity"] == pytest.approx(usual["specificity"])
    assert swapped["specificity"] == pytest.approx(usual["sensitivity"])
    assert swapped["accuracy"] == usual["accuracy"]


@pytest.mark.parametrize(
    ("run", "positive", "message"),
    [("finetuned", "SSL", "allowed are HP, SSA"), ("finetuned3", "cancer", "needs two classes")],
)
def test_impossible_positive_class_is_refused(
    cli: Any, tmp_path: Path, request: pytest.FixtureRequest, run: str, positive: str, message: str
) -> None:
    result = cli.evaluate(request.getfixturevalue(run), f"positive={positive}", f"out={tmp_path / 'out'}")

    assert result.code == 2
    assert result.err.startswith("sscl: positive: ")
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_training_tiles_are_called_that(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    result = cli.evaluate(finetuned, "split=train", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    assert report(tmp_path / "out")["tiles"] == 32
    assert "these tiles were training tiles" in result.out


def test_classes_of_reviews_are_measured_beside_those_of_the_set(
    cli: Any, evaluated: tuple[Path, str], finetuned: Path, read_rows: Any, tmp_path: Path
) -> None:
    """Who agrees with three of four predictions makes the accuracy 0.75, and the card keeps its test metrics."""
    run = shutil.copytree(finetuned, tmp_path / "run")
    rows = read_rows(evaluated[0] / "predictions.csv")
    classes = json.dumps([name.removeprefix("probability_") for name in rows[0] if name.startswith("probability_")])
    sheet = [["id", "predicted", "review", "classes"]]
    for i, row in enumerate(rows[:12]):
        sheet.append([row["id"], row["prediction"], "disagree" if i % 4 == 0 else "agree", classes])
    sheet += [[row["id"], row["prediction"], "unsure", classes] for row in rows[12:14]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows(sheet)
    before = (run / "MODEL_CARD.md").read_text()
    result = cli.evaluate(run, f"data.reviews=[{tmp_path / 'a.csv'}]")
    assert result.code == 0
    found = report(run / "eval_reviewed_test")
    assert (found["tiles"], found["metrics"]["accuracy"]) == (12, 0.75)
    assert [caveat for caveat in found["caveats"] if "12 of 12 answers" in caveat]
    card = (run / "MODEL_CARD.md").read_text()
    assert "## Reviewed: " in card
    assert card.startswith(before[: before.index("sscl eval")])


def test_tiles_without_label_are_left_out_and_counted(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for part, labels in (("train", [0, 1] * 8 + [-1] * 5), ("val", [0, 1] * 2), ("test", [0, 1] * 2)):
        content[f"{part}_images"] = rng.integers(0, 256, (len(labels), 28, 28, 3), dtype=np.uint8)
        content[f"{part}_labels"] = np.array(labels)[:, None]
    np.savez(tmp_path / "tiles.npz", **content)
    words = [f"data.root={tmp_path / 'tiles.npz'}", "data.source=pathmnist", "data.size_px=28"]
    assert cli.finetune(tmp_path / "run", *words).code == 0

    result = cli.evaluate(tmp_path / "run", "split=train", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    assert report(tmp_path / "out")["tiles"] == 16
    assert "- 5 tiles without a label left out" in result.out
    assert "training tiles" in result.out


# --- folders that exist ---


def test_existing_folder_is_refused_untouched_and_replaced_only_on_demand(
    cli: Any, evaluated: tuple[Path, str], finetuned: Path, tmp_path: Path, snapshot: Any
) -> None:
    out = Path(shutil.copytree(evaluated[0], tmp_path / "out"))
    (out / "old.txt").write_text("of before")
    before = snapshot(out)

    refused = cli.evaluate(finetuned, f"out={out}")

    assert refused.code == 2
    assert f"{out}: exists" in refused.err
    assert snapshot(out) == before
    assert cli.evaluate(finetuned, f"out={out}", "--overwrite").code == 0
    assert not (out / "old.txt").exists()
    assert report(out)["metrics"] == report(evaluated[0])["metrics"]


def test_default_folder_lies_in_the_run(cli: Any, finetuned3: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finetuned3, tmp_path / "run"))

    result = cli.evaluate(run / "checkpoints/best.pt")

    assert result.code == 0, result.err
    assert (run / "eval_test/metrics.json").is_file()
    assert (run / "checkpoints/best.pt").is_file()


@pytest.mark.parametrize("command", ["eval", "gradcam"])
def test_overwrite_never_deletes_checkpoints(cli: Any, finetuned: Path, snapshot: Any, command: str) -> None:
    before = snapshot(finetuned)

    for folder in (finetuned, finetuned.parent):
        result = cli(command, f"checkpoint={finetuned}", f"out={folder}", "--overwrite", "progress=false")
        assert result.code == 2
        assert f"{folder}: " in result.err

    assert snapshot(finetuned) == before


def test_data_keys_of_the_checkpoint_can_be_changed_and_are_checked(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    unknown = cli.evaluate(finetuned, "data.rooot=elsewhere", f"out={tmp_path / 'out'}")
    wrong = cli.evaluate(finetuned, "data.size_px=4", f"out={tmp_path / 'out'}")

    assert unknown.code == wrong.code == 2
    assert "data.rooot: unknown key; did you mean" in unknown.err
    assert all(part in wrong.err for part in ("data.size_px: ", "got 4"))
    assert not (tmp_path / "out").exists()


def test_a_guessed_positive_class_is_said_in_words() -> None:
    assert evaluate.guessed_positive(("HP", "SSA"), 1, wanted=None) == []
    assert evaluate.guessed_positive(("benign", "cancer"), 1, wanted="cancer") == []
    assert evaluate.guessed_positive(("A", "B", "C"), None, wanted=None) == []
    assert "positive class: benign" in evaluate.guessed_positive(("adenocarcinoma", "benign"), 1, wanted=None)[0]


def test_every_source_that_the_encoder_was_pretrained_on_is_compared(
    cli: Any, tiles: Path, folder3: Path, tmp_path: Path
) -> None:
    """The second source was split by another seed: some of its training tiles are test tiles here."""
    folder = {"source": "folder", "root": str(folder3 / "train")}  # CLASS/*, so split by seed
    sources = [
        {"root": str(tiles), "published": False, "size_px": 32, "tiles": 8},
        {**folder, "split_seed": 1, "labels": True},
    ]
    words = [f"data.{key}={value}" for key, value in folder.items()]

    assert cli.pretrain(tmp_path / "ssl", f"data={json.dumps(sources)}").code == 0
    assert cli.finetune(tmp_path / "run", *words, f"model.weights={tmp_path / 'ssl'}").code == 0
    result = cli.evaluate(tmp_path / "run", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    content = torch.load(tmp_path / "run/checkpoints/best.pt", weights_only=True)
    assert [(section["root"], section["split_seed"]) for section in content["lineage"]] == [
        (str(tiles), 0),
        (str(folder3 / "train"), 1),
    ]
    assert sum("data.split_seed differs from training" in note for note in report(tmp_path / "out")["caveats"]) == 1


def test_by_site_of_a_table_and_by_slide(
    cli: Any, finetuned3: Path, folder3: Path, finetuned: Path, tmp_path: Path
) -> None:
    rows = [
        f"{path},{path.parent.name},s{index // 3},{('north', 'south')[index % 2]}"
        for index, path in enumerate(sorted(folder3.glob("test/*/*.png")))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,group,site", *rows]))
    words = (f"data.root={tmp_path / 't.csv'}", "data.source=table", "split=all")
    run = shutil.copytree(finetuned3, tmp_path / "run")  # another set is named in its card
    result = cli.evaluate(run, f"out={tmp_path / 'site'}", *words, "by=site")
    assert result.code == 0, result.err
    found = report(tmp_path / "site")["by_place"]
    assert found["by"] == "site"
    assert sorted((place["name"], place["tiles"], place["slides"]) for place in found["places"]) == [
        ("north", 8, 5),
        ("south", 7, 5),
    ]
    assert f"worst site: {found['worst']}" in result.out
    result = cli.evaluate(finetuned, f"out={tmp_path / 'slide'}", "by=group")
    assert result.code == 0, result.err
    assert len(report(tmp_path / "slide")["by_place"]["places"]) == 2
    result = cli.evaluate(finetuned, f"out={tmp_path / 'none'}", "by=site")
    assert result.code == 2
    assert result.err.startswith("sscl: by: got site")
    assert not (tmp_path / "none").exists()
