"""sscl gradcam: maps against their closed form, the tiles it picks, and the numbers beside the pictures.

The tiles of 32 px are enlarged to 96 px here, so that the last feature map has 3 x 3 cells.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sscl.commands import gradcam
from sscl.config import GradcamConfig
from sscl.data.folder import load_folder
from sscl.data.mhist import load_mhist, load_truth_masks
from sscl.data.tiles import Tiles
from sscl.explain import boxes, cam
from sscl.explain.deletion_insertion import LEAST_MOVE
from sscl.explain.kinds import MapKind
from sscl.explain.records import Localisation, MapChecks
from sscl.explain.targets import DIFFERENCE
from sscl.models.classifier import load_classifier
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from sscl.records import read_record

SIDE = 96


@pytest.fixture(scope="module")
def finetuned(finetuned: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with another bias: it calls half of the enlarged test tiles HP, where without it all would be SSA."""
    run = Path(shutil.copytree(finetuned, tmp_path_factory.mktemp("gradcam") / "run"))
    loaded = load_mhist(tiles, protocol="official", split="test", size_px=SIDE, published=False)
    content = torch.load(run / "checkpoints/best.pt", weights_only=True)
    _, probabilities = closed_form(run, loaded.images)
    content["head"]["bias"][0] += float(np.median(np.diff(np.log(probabilities), axis=1)))
    torch.save(content, run / "checkpoints/best.pt")
    return run


@pytest.fixture(scope="module")
def explained(cli: Any, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that gradcam of the test split wrote, and what it printed."""
    out: Path = tmp_path_factory.mktemp("gradcam") / "out"
    result = cli.gradcam(finetuned, f"out={out}", f"data.size_px={SIDE}", "per_class=2")
    assert result.code == 0, result.err
    return out, result.out


def closed_form(run: Path, images: Any) -> tuple[Any, Any]:
    """Return the maps of every logit, (B, K, S, S) in numpy, and the probabilities (B, K).

    With global average pooling and a linear head, d logit_k / d F is W_k / (h w) everywhere: no gradient is needed.
    """
    model, _ = load_classifier(str(run), device=torch.device("cpu"))
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        maps = model.forward_features((x - 0.5) / 0.5)
        cells = maps.shape[2] * maps.shape[3]
        raw = torch.einsum("kc,bchw->bkhw", model.head.weight, maps) / cells
        probabilities = model.forward_head(maps).softmax(1)
    large = torch.nn.functional.interpolate(raw, size=(x.shape[2], x.shape[2]), mode="bilinear", align_corners=False)
    return large.numpy(), probabilities.numpy()


@pytest.fixture(scope="module")
def truth(tiles: Path, finetuned: Path) -> tuple[Tiles, Any, Any]:
    """The test tiles, the maps of every logit, and the probabilities, all by other means than the command."""
    loaded = load_mhist(tiles, protocol="official", split="test", size_px=SIDE, published=False)
    return loaded, *closed_form(finetuned, loaded.images)


def difference_maps(maps: Any, probabilities: Any) -> Any:
    predicted = probabilities.argmax(1)
    rows = np.arange(len(maps))
    return maps[rows, predicted] - maps[rows, 1 - predicted]


# --- pictures and boxes ---


def test_every_row_of_the_table_has_its_three_pictures(explained: tuple[Path, str], read_rows: Any) -> None:
    out, printed = explained
    rows = read_rows(out / "boxes.csv")
    names = {path.name for path in out.iterdir()}
    pictures = {f"{row['picture']}_{kind}.png" for row in rows for kind in ("panel", "heatmap", "box")}

    assert rows
    assert names == pictures | {"boxes.csv", "localisation.json", "config.yaml", "env.json"}
    assert f"{len(rows)} synthetic tiles explained" in printed
    with Image.open(out / f"{rows[0]['picture']}_panel.png") as panel:
        assert panel.width > 2 * panel.height  # three side by side
    for kind in ("heatmap", "box"):
        with Image.open(out / f"{rows[0]['picture']}_{kind}.png") as picture:
            assert picture.size == (SIDE, SIDE)


def test_boxes_are_those_of_the_closed_form_maps(
    explained: tuple[Path, str], truth: tuple[Tiles, Any, Any], finetuned: Path, read_rows: Any
) -> None:
    loaded, maps, probabilities = truth
    wanted = difference_maps(maps, probabilities)
    temperature = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)["calibration"]["temperature"]
    assert temperature != pytest.approx(1, abs=1e-3)
    calibrated = probabilities ** (1 / temperature)  # as eval and predict show them
    calibrated /= calibrated.sum(1, keepdims=True)

    rows = read_rows(explained[0] / "boxes.csv")

    first = ["picture", "id", "label", "prediction", "probability", "positive_evidence"]
    assert list(rows[0]) == [*first, *boxes.BOX_COLUMNS, "score_without_bias", "map_sum_misses"]
    for row in rows:
        index = loaded.ids.index(row["id"])
        predicted = int(probabilities[index].argmax())
        assert row["label"] == loaded.classes[loaded.labels[index]]
        assert row["prediction"] == loaded.classes[predicted]
        assert float(row["probability"]) == pytest.approx(calibrated[index, predicted], abs=1e-4)
        assert float(row["raw_maximum"]) == pytest.approx(wanted[index].max(), rel=1e-3)
        assert (row["threshold"], row["connectivity"]) == ("0.5", "8")
        box = boxes.find_box(wanted[index])
        assert row["positive_evidence"] == ("no" if box is None else "yes")
        if box is not None:
            corners = [int(row[key]) for key in ("x0", "y0", "x1", "y1")]
            assert np.abs(np.array(corners) - [box.x0, box.y0, box.x1, box.y1]).max() <= 1
            area = (corners[2] - corners[0]) * (corners[3] - corners[1])
            assert float(row["area_fraction"]) == pytest.approx(area / SIDE**2)
    assert any(row["positive_evidence"] == "yes" for row in rows)


def test_box_picture_is_the_tile_with_the_box(
    explained: tuple[Path, str], truth: tuple[Tiles, Any, Any], read_rows: Any
) -> None:
    row = next(row for row in read_rows(explained[0] / "boxes.csv") if row["positive_evidence"] == "yes")
    tile = np.array(truth[0].images[truth[0].ids.index(row["id"])])
    drawn = np.asarray(Image.open(explained[0] / f"{row['picture']}_box.png"))
    x0, y0, x1, y1 = (int(row[key]) for key in ("x0", "y0", "x1", "y1"))

    changed = np.argwhere((drawn != tile).any(2))

    assert changed.min(0).tolist() == [y0, x0]
    assert changed.max(0).tolist() == [y1 - 1, x1 - 1]


# --- which tiles ---


def test_most_confident_right_and_wrong_of_each_class_are_chosen(
    explained: tuple[Path, str], truth: tuple[Tiles, Any, Any], read_rows: Any
) -> None:
    loaded, _, probabilities = truth
    assert sorted(np.bincount(probabilities.argmax(1))) == [8, 8]
    expected = []
    for label in (0, 1):
        for right in (True, False):
            rows = [i for i in range(16) if loaded.labels[i] == label and (probabilities[i].argmax() == label) == right]
            rows.sort(key=lambda i: -probabilities[i].max())
            expected += [loaded.ids[i] for i in rows[:2]]

    assert [row["id"] for row in read_rows(explained[0] / "boxes.csv")] == expected


def test_choice_by_hand_on_three_classes() -> None:
    tiles = Tiles(
        images=np.zeros((7, 4, 4, 3), dtype=np.uint8),
        labels=np.array([0, 0, 0, 1, 1, 2, 2]),
        classes=("a", "b", "c"),
        ids=tuple("stuvwxy"),
    )
    probabilities = np.array(
        [
            [0.6, 0.3, 0.1],  # a, right
            [0.9, 0.1, 0.0],  # a, right, more confident
            [0.1, 0.8, 0.1],  # a, wrong
            [0.5, 0.4, 0.1],  # b, wrong
            [0.7, 0.2, 0.1],  # b, wrong, more confident
            [0.0, 0.3, 0.7],  # c, right
            [0.0, 0.3, 0.7],  # c, right, a tie: the order of the tiles
        ]
    )

    chosen = gradcam.choose_tiles(tiles, probabilities, GradcamConfig(checkpoint="c", per_class=1))
    two = gradcam.choose_tiles(tiles, probabilities, GradcamConfig(checkpoint="c", per_class=2))

    assert chosen == [1, 2, 4, 5]
    assert two == [1, 0, 2, 4, 3, 5, 6]


def test_of_many_classes_those_of_the_lowest_recall_are_explained() -> None:
    classes = 300
    tiles = Tiles(
        images=np.zeros((2 * classes, 4, 4, 3), dtype=np.uint8),
        labels=np.repeat(np.arange(classes), 2),
        classes=tuple(f"c{i}" for i in range(classes)),
        ids=tuple(f"t{i}" for i in range(2 * classes)),
    )
    said = np.where(tiles.labels < 40, tiles.labels, 0)  # classes from 40 on are never found
    said[0] = 1

    chosen = gradcam.choose_tiles(tiles, np.eye(classes)[said], GradcamConfig(checkpoint="c"))

    assert chosen == list(range(80, 100))


@pytest.mark.parametrize("target", ["SSA", "predicted"])
def test_wanted_ids_and_targets(
    cli: Any, finetuned: Path, truth: tuple[Tiles, Any, Any], tmp_path: Path, read_rows: Any, target: str
) -> None:
    loaded, maps, probabilities = truth
    wanted = [loaded.ids[5], loaded.ids[2]]

    result = cli.gradcam(
        finetuned,
        f"ids=[{','.join(wanted)}]",
        f"target={target}",
        "threshold=0.7",
        f"data.size_px={SIDE}",
        f"out={tmp_path / 'out'}",
    )

    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "out/boxes.csv")
    assert [row["id"] for row in rows] == wanted
    assert rows[0]["picture"] == f"000_{Path(wanted[0]).stem}"
    for row, index in zip(rows, (5, 2), strict=True):
        predicted = int(probabilities[index].argmax())
        expected = {
            "HP": maps[index, 0],
            "SSA": maps[index, 1],
            "predicted": maps[index, predicted],
            "difference": maps[index, predicted] - maps[index, 1 - predicted],
        }[target]
        assert float(row["raw_maximum"]) == pytest.approx(expected.max(), rel=1e-3, abs=1e-5)
        assert row["threshold"] == "0.7"
        box = boxes.find_box(expected, threshold=0.7)
        if box is not None:
            corners = [int(row[key]) for key in ("x0", "y0", "x1", "y1")]
            assert np.abs(np.array(corners) - [box.x0, box.y0, box.x1, box.y1]).max() <= 1


def test_folder_of_images_without_labels(
    cli: Any, finetuned: Path, tiles: Path, tmp_path: Path, read_rows: Any
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    names = sorted(path.name for path in (tiles / "images").iterdir())[:3]
    for name in names:
        shutil.copy(tiles / "images" / name, folder)
    long = "ü" * 120 + ".png"  # with what is added to it, longer than a file's name can be
    (folder / names[-1]).rename(folder / long)
    names[-1] = long
    run = Path(shutil.copytree(finetuned, tmp_path / "run"))

    result = cli.gradcam(run, f"images={folder}")

    assert result.code == 0, result.err
    rows = read_rows(run / "gradcam_images/boxes.csv")
    assert [row["id"] for row in rows] == names
    assert {row["label"] for row in rows} == {"unknown"}
    assert not (run / "gradcam_images/localisation.json").exists()
    assert "truth masks" not in result.out


def test_folder_of_images_in_the_models_classes_has_labels(
    cli: Any, finetuned3: Path, folder3: Path, tmp_path: Path, read_rows: Any
) -> None:
    for name in ("benign", "cancer", "stroma"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        shutil.copy(folder3 / "test" / name / f"{name}_0.png", tmp_path / "mine" / name)

    result = cli.gradcam(finetuned3, f"images={tmp_path / 'mine'}", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    rows = read_rows(tmp_path / "out/boxes.csv")
    assert [row["id"] for row in rows] == ["benign/benign_0.png", "cancer/cancer_0.png", "stroma/stroma_0.png"]
    assert [row["label"] for row in rows] == ["benign", "cancer", "stroma"]


# --- three classes ---


def test_three_classes_explain_the_predicted_one_against_the_next(
    cli: Any, finetuned3: Path, folder3: Path, tmp_path: Path, read_rows: Any
) -> None:
    out = tmp_path / "out"

    result = cli.gradcam(finetuned3, f"data.size_px={SIDE}", "per_class=1", f"out={out}")

    assert result.code == 0, result.err
    loaded = load_folder(folder3, split="test", size_px=SIDE)
    maps, probabilities = closed_form(finetuned3, loaded.images)
    for row in read_rows(out / "boxes.csv"):
        index = loaded.ids.index(row["id"])
        predicted, second = np.argsort(-probabilities[index])[:2]
        assert row["prediction"] == loaded.classes[predicted]
        margin = (maps[index, predicted] - maps[index, second]).max()
        assert float(row["raw_maximum"]) == pytest.approx(margin, rel=1e-3, abs=1e-5)
    assert not (out / "localisation.json").exists()


@pytest.mark.parametrize(
    ("run", "word", "key", "said"),
    [
        ("finetuned", "target=SSL", "target", "SSA?"),
        ("finetuned", "ids=[nowhere.png]", "ids", "nowhere.png is not among the 16 tiles"),
        ("finetuned", "threshold=1.5", "threshold", "got 1.5"),
        ("finetuned", "method=gradcamm", "method", "'gradcamm'"),
        ("finetuned", "fuse=product", "fuse", "'product'"),
        ("finetuned", "layer=encoder.net.layr3", "layer", "did you mean encoder.net.layer3?"),
        ("finetuned", "layer=[encoder.net.layer3, head]", "layer", "head"),
        ("finetuned", "check_tiles=1", "check_tiles", ">= 2"),
    ],
)
def test_bad_input_is_one_line(
    cli: Any, tmp_path: Path, request: pytest.FixtureRequest, run: str, word: str, key: str, said: str
) -> None:
    result = cli.gradcam(request.getfixturevalue(run), word, f"out={tmp_path / 'out'}")

    assert result.code == 2
    assert result.err.startswith(f"sscl: {key}: ")
    assert said in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ids_and_images_exclude_each_other(cli: Any, finetuned: Path, tiles: Path, tmp_path: Path) -> None:
    result = cli.gradcam(finetuned, "ids=[a.png]", f"images={tiles / 'images'}", f"out={tmp_path / 'out'}")

    assert result.code == 2
    assert "either ids or images" in result.err
    assert not (tmp_path / "out").exists()


# --- methods and layers ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method=layercam", "layer=[encoder.net.layer3, encoder.net.layer4]"], ""),
        (["method=eigencam"], ""),
        (["method=hirescam"], "account for the whole score"),
    ],
)
def test_methods_and_layers(
    cli: Any,
    finetuned: Path,
    truth: tuple[Tiles, Any, Any],
    tmp_path: Path,
    read_rows: Any,
    words: list[str],
    said: str,
) -> None:
    out = tmp_path / "out"

    result = cli.gradcam(finetuned, f"out={out}", f"ids=[{truth[0].ids[3]}]", f"data.size_px={SIDE}", *words)

    assert result.code == 0, result.err
    assert said in result.out
    assert ("map sum against score" in result.out) == bool(said)
    (row,) = read_rows(out / "boxes.csv")
    config = GradcamConfig(checkpoint="c", **{"layer": [], **dict(yaml_words(words))})
    model, _ = load_classifier(str(finetuned), device=torch.device("cpu"))
    x = torch.from_numpy(np.array(truth[0].images[3:4])).permute(0, 3, 1, 2).float() / 255
    raw, logits = cam.class_maps(model, (x - 0.5) / 0.5, target=DIFFERENCE, kind=MapKind(config.method, config.layer))
    assert float(row["raw_maximum"]) == pytest.approx(cam.upsample(raw, size_px=SIDE).max().item(), rel=1e-3, abs=1e-5)
    if said:
        free = (logits - model.head.bias)[0].tolist()
        expected = max(free) - min(free) if logits.argmax() == np.argmax(free) else min(free) - max(free)
        assert float(row["score_without_bias"]) == pytest.approx(expected, rel=1e-3)
        assert abs(float(row["map_sum_misses"])) < 1e-4
    else:
        assert (row["score_without_bias"], row["map_sum_misses"]) == ("", "")


@pytest.fixture(scope="module")
def transformer(finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with another encoder: a transformer with random weights, whose feature is its class token."""
    run = Path(shutil.copytree(finetuned, tmp_path_factory.mktemp("transformer") / "run"))
    content = torch.load(run / "checkpoints/best.pt", weights_only=True)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}
    torch.manual_seed(0)
    model = Classifier(build_encoder("timm:vit_tiny_patch16_224", kwargs=kwargs, pool="class"), num_classes=2)
    content |= {"encoder_name": "timm:vit_tiny_patch16_224", "kwargs": kwargs, "pooling": "class"}
    content |= {"encoder": model.encoder.state_dict(), "head": model.head.state_dict()}
    torch.save(content, run / "checkpoints/best.pt")
    return run


@pytest.mark.parametrize(
    ("words", "layers", "said"),
    [
        ([], ["encoder.net.blocks.1.norm1"], "Grad-CAM of encoder.net.blocks.1.norm1"),
        (["method=legrad", "checks=true", "check_tiles=4"], [], "LeGrad of all blocks"),
        (["method=rollout"], [], "independent of the class"),
    ],
)
def test_a_transformer(
    cli: Any, transformer: Path, tmp_path: Path, read_rows: Any, words: list[str], layers: list[str], said: str
) -> None:
    out = tmp_path / "out"
    result = cli.gradcam(transformer, f"out={out}", "per_class=1", *words)
    assert result.code == 0, result.err
    assert said in " ".join(result.out.split())
    assert "4 x 4 cells of 8 px" in result.out
    assert yaml.safe_load((out / "config.yaml").read_text())["layer"] == layers
    rows = read_rows(out / "boxes.csv")
    assert {row["map_sum_misses"] for row in rows} == {""}
    assert any(float(row["raw_maximum"]) > 0 for row in rows)
    if "checks=true" in words:
        found = read_record(MapChecks, out / "checks.json", made_by="sscl gradcam")
        assert {"encoder.net.blocks.0", "encoder.net.blocks.1"} < set(found.randomisation.stages)


def test_a_method_that_the_encoder_does_not_have(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    result = cli.gradcam(finetuned, f"out={tmp_path / 'out'}", "method=legrad")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "method: legrad needs a transformer" in result.err
    assert not (tmp_path / "out").exists()


def yaml_words(words: list[str]) -> list[tuple[str, Any]]:
    pairs = [word.split("=", 1) for word in words]
    return [(key, value[1:-1].split(", ") if value.startswith("[") else value) for key, value in pairs]


# --- checks ---


@pytest.fixture(scope="module")
def checked(
    cli: Any, finetuned: Path, truth: tuple[Tiles, Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The folder of checked maps of 6 x 6 cells, and what was printed, in one line."""
    out: Path = tmp_path_factory.mktemp("checked") / "out"
    words = ["checks=true", "check_tiles=4", "layer=encoder.net.layer3", f"ids=[{truth[0].ids[0]}]", "threshold=0.3"]
    result = cli.gradcam(finetuned, f"out={out}", f"data.size_px={SIDE}", *words)
    assert result.code == 0, result.err
    return out, " ".join(result.out.split())


def test_checks_are_written_and_said(checked: tuple[Path, str]) -> None:
    out, printed = checked
    found = read_record(MapChecks, out / "checks.json", made_by="sscl gradcam")

    assert found.tiles == 4
    for check in found.each.values():
        assert check.question in printed
        assert check.verdict in printed
        assert check.verdict.startswith(f"{check.outcome.value}: ")
    drawn = ["randomisation", "box_sensitivity"]  # whether blurring changes anything hangs on the little training
    drawn += ["deletion_insertion"] * (found.deletion_insertion.moves >= LEAST_MOVE)
    for name in drawn:
        with Image.open(out / f"{name}.png") as chart:
            assert chart.width > 400
    assert found.randomisation.cells == 36
    assert found.randomisation.draws == 3
    assert found.randomisation.stages[0] == "head"
    assert found.box_sensitivity.threshold == 0.3


def test_checks_explain_what_each_tile_is_taken_for_beside_three_random_models(
    cli: Any, finetuned: Path, truth: tuple[Tiles, Any, Any], tmp_path: Path, wrap: Any
) -> None:
    seen: dict[str, Any] = {}

    def stop(real: Any, model: Any, images: Any, classes: Any, **words: Any) -> None:
        seen.update(words, images=images, classes=classes)
        raise ValueError("enough")

    wrap(gradcam_checks=stop)
    words = [f"data.size_px={SIDE}", "checks=true", "check_tiles=9", f"ids=[{truth[0].ids[0]}]", "random_seed=3"]
    assert cli.gradcam(finetuned, f"out={tmp_path / 'out'}", *words).err == "sscl: enough\n"

    pixels = torch.from_numpy(np.array(truth[0].images)).permute(0, 3, 1, 2).float() / 255
    shown = (pixels - 0.5) / 0.5
    rows = [int((shown - one).abs().amax((1, 2, 3)).argmin()) for one in seen["images"]]
    assert len(set(rows)) == 9
    predicted = truth[2].argmax(1)
    assert seen["classes"].tolist() == [[int(predicted[row]), 1 - int(predicted[row])] for row in rows]
    heads = [model.head.weight for model in seen["random_models"]]
    assert len({tuple(head.flatten().tolist()) for head in heads}) == len(heads) == 3


def test_checks_on_truth_masks_try_every_threshold(checked: tuple[Path, str], explained: tuple[Path, str]) -> None:
    out, printed = checked
    localised = read_record(Localisation, out / "localisation.json", made_by="sscl gradcam")
    for rates in localised.each.values():
        best = rates.max_box_accuracy
        assert best is not None
        assert list(best) == ["0.3", "0.5", "0.7"]
        assert best["0.3"].accuracy >= best["0.5"].accuracy >= best["0.7"].accuracy
        assert best["0.5"].accuracy >= rates.box_hit  # 0.3 is one of the thresholds
    assert "accuracy at the best threshold" in printed
    without = read_record(Localisation, explained[0] / "localisation.json", made_by="sscl gradcam")
    assert {rates.max_box_accuracy for rates in without.each.values()} == {None}
    assert "Checks of the maps" not in explained[1]


def test_completeness_is_printed_for_every_map(explained: tuple[Path, str], read_rows: Any) -> None:
    rows = read_rows(explained[0] / "boxes.csv")
    misses = [abs(float(row["map_sum_misses"])) for row in rows]
    assert max(misses) < 1e-4
    assert f"{len(rows)} maps: {max(misses):.1e} logits" in " ".join(explained[1].split())


def test_checks_say_what_is_not_assessed(
    cli: Any, finetuned: Path, truth: tuple[Tiles, Any, Any], tmp_path: Path
) -> None:
    words = ["checks=true", "check_tiles=2", f"ids=[{truth[0].ids[0]}]"]
    result = cli.gradcam(finetuned, f"out={tmp_path / 'out'}", *words)

    assert result.code == 0, result.err
    assert "not assessed: every map is constant" in result.out  # tiles of 32 px: one cell
    assert not (tmp_path / "out/randomisation.png").exists()
    assert (tmp_path / "out/checks.json").exists()


# --- localisation ---


def test_localisation_is_that_of_the_closed_form_beside_two_baselines(
    explained: tuple[Path, str], truth: tuple[Tiles, Any, Any], tiles: Path
) -> None:
    loaded, maps, probabilities = truth
    masks = load_truth_masks(tiles, loaded.ids, size_px=SIDE)
    assert masks is not None
    written = read_record(Localisation, explained[0] / "localisation.json", made_by="sscl gradcam")
    assert list(json.loads((explained[0] / "localisation.json").read_text())) == [*written.each, "gains"]
    assert list(written.gains) == list(written.each)[1:]

    def rates(given: Any) -> dict[str, float]:
        hits = [
            boxes.localisation(raw, boxes.find_box(raw), mask)
            for raw, mask in zip(given, masks, strict=True)
            if mask.any()
        ]
        keys = ("peak_hit", "box_hit", "box_iou", "boxes_iou")
        return {key: float(np.mean([getattr(hit, key) for hit in hits])) for key in keys}

    for found, given in (
        (written.this_model, difference_maps(maps, probabilities)),
        (written.centre, np.repeat(boxes.centre_map(SIDE)[None], 16, 0)),
    ):
        expected = rates(given)
        assert found.tiles == sum(mask.any() for mask in masks)
        assert found.peak_hit == pytest.approx(expected["peak_hit"], abs=0.07)  # one tile of 16
        assert found.box_hit == pytest.approx(expected["box_hit"], abs=0.07)
        assert found.mean_box_iou == pytest.approx(expected["box_iou"], abs=0.01)
        assert found.mean_boxes_iou == pytest.approx(expected["boxes_iou"], abs=0.01)
        assert found.groups == len({group for group, mask in zip(loaded.groups, masks, strict=True) if mask.any()})
        assert found.peak_hit_interval is found.box_hit_interval is None  # of too few slides
    everywhere = np.ones((SIDE, SIDE), dtype=np.float32)  # its box is the whole tile
    expected = rates([everywhere] * 16)
    assert written.whole_tile.box_hit == expected["box_hit"]
    assert written.whole_tile.mean_box_iou == pytest.approx(expected["box_iou"])
    assert written.whole_tile.mean_boxes_iou == pytest.approx(expected["boxes_iou"])
    for name, gain in written.gains.items():
        less = written.this_model.mean_boxes_iou - written.each[name].mean_boxes_iou
        assert gain.mean == pytest.approx(less)
        assert gain.interval is None  # of too few slides
    assert written.whole_tile.peak_hit == pytest.approx(np.mean([mask.mean() for mask in masks if mask.any()]))
    assert written.random_weights != written.this_model
    for name in written.each:
        assert f"{name}  " in explained[1]


def test_random_baseline_follows_its_seed(
    cli: Any, explained: tuple[Path, str], truth: tuple[Tiles, Any, Any], finetuned: Path, tmp_path: Path
) -> None:
    result = cli.gradcam(
        finetuned,
        f"out={tmp_path / 'out'}",
        f"data.size_px={SIDE}",
        "random_seed=1",
        f"ids=[{truth[0].ids[0]}]",
        "batch_size=3",
    )

    assert result.code == 0, result.err
    first, second = (
        read_record(Localisation, out / "localisation.json", made_by="sscl gradcam")
        for out in (explained[0], tmp_path / "out")
    )
    assert first.centre == second.centre
    assert first.this_model.mean_box_iou == pytest.approx(second.this_model.mean_box_iou, abs=0.01)
    assert first.random_weights != second.random_weights


def test_masks_that_are_all_empty_give_no_rates(cli: Any, finetuned: Path, broken: Path, tmp_path: Path) -> None:
    for path in (broken / "masks").iterdir():
        Image.new("L", (32, 32), 0).save(path)

    result = cli.gradcam(finetuned, f"data.root={broken}", "per_class=1", f"out={tmp_path / 'out'}")

    assert result.code == 0, result.err
    assert not (tmp_path / "out/localisation.json").exists()


# --- folders that exist ---


def test_existing_folder_is_refused_untouched_and_replaced_only_on_demand(
    cli: Any, explained: tuple[Path, str], finetuned: Path, tmp_path: Path, snapshot: Any
) -> None:
    out = Path(shutil.copytree(explained[0], tmp_path / "out"))
    (out / "099_earlier_panel.png").write_bytes(b"of a run with more tiles")
    before = snapshot(out)

    refused = cli.gradcam(finetuned, f"out={out}")

    assert refused.code == 2
    assert f"{out}: exists" in refused.err
    assert snapshot(out) == before
    assert cli.gradcam(finetuned, f"out={out}", "per_class=1", "--overwrite").code == 0
    assert len(list(out.glob("*_panel.png"))) <= 4
    assert not (out / "099_earlier_panel.png").exists()  # nothing left over
