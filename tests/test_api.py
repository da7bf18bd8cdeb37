"""A classifier on new tiles, and docs/api.md: its blocks run, and what stands after `# ->` is what comes.

The run is written without training: random weights that tell tiles apart, and a calibration of made-up logits.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sscl
from sscl import api, augment
from sscl.config import FinetuneConfig, load_config
from sscl.data.scale import Scale
from sscl.data.stain import normalise_stain
from sscl.evaluate import calibration
from sscl.explain import boxes
from sscl.models import checkpoint
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
SIDE = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_run(
    folder: Path, *, encoder: str = "resnet14_small", classes: tuple[str, ...] = ("HP", "SSA"), stain: str = "none"
) -> Path:
    """Write a finetune checkpoint and return its run folder."""
    torch.manual_seed(0)
    net = Classifier(build_encoder(encoder), num_classes=len(classes))
    with torch.no_grad():
        net.head.weight.mul_(20)
    words = ["run=r", "data.root=d", f"data.size_px={SIDE}", f"data.stain={stain}", f"model.name={encoder}"]
    logits = 3 * torch.randn(40, len(classes))
    truth = (logits + 2 * torch.randn_like(logits)).argmax(1).numpy()
    blank = checkpoint.build_checkpoint(
        load_config(FinetuneConfig, overrides=words),
        mean=[0.5, 0.4, 0.6],
        std=[0.25, 0.2, 0.3],
        pooling="mean",
        classes=classes,
        lineage=[],
        fingerprint="f",
        precision="fp32",
        scale=Scale((SIDE,), 0.5),
    )
    positive = 1 if len(classes) == 2 else None
    made = replace(
        blank,
        epoch=3,
        encoder=net.encoder.state_dict(),
        head=net.head.state_dict(),
        validation={},
        calibration=calibration.fit_calibration(logits, truth, classes=classes, positive=positive),
    )
    checkpoint.save_checkpoint(folder / "checkpoints" / "best.pt", made)
    return folder


def write_tiles(folder: Path, *, count: int = 6, size_px: int = SIDE) -> list[str]:
    """Write tiles a.png, b.png, ... of different colours and return their paths."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for index in range(count):
        pixels = rng.integers(0, 100, (size_px, size_px, 3)) + rng.integers(0, 150, 3)
        paths.append(str(folder / f"{chr(ord('a') + index)}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "finetune")


@pytest.fixture(scope="module")
def model(made: Path) -> api.Model:
    return api.load(made, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_tiles(tmp_path_factory.mktemp("tiles"))


def pixels(path: str) -> Any:
    with Image.open(path) as image:
        return np.asarray(image)


def net_and_logits(made: Path, images: Any) -> tuple[Any, dict[str, Any]]:
    """Return the logits, (N, K) in numpy, by the checkpoint's tensors alone, and its content."""
    content = torch.load(made / "checkpoints" / "best.pt", weights_only=True)
    net = Classifier(build_encoder("resnet14_small"), num_classes=len(content["classes"])).eval()
    net.encoder.load_state_dict(content["encoder"])
    net.head.load_state_dict(content["head"])
    mean, std = (torch.tensor(content[key])[:, None, None] for key in ("mean", "std"))
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        return net((x - mean) / std).double().numpy(), content


# --- the page ---


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def run_block(text: str, names: dict[str, object]) -> list[str]:
    """Run a block statement by statement; return a line for each `# ->` that something else comes for."""
    lines, wrong = text.splitlines(), []
    for statement in ast.parse(text).body:
        source = "\n".join(lines[statement.lineno - 1 : statement.end_lineno])
        said = re.findall(r"# -> (.*)$", source, re.MULTILINE)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                came = repr(eval(compile(ast.Expression(statement.value), str(PAGE), "eval"), names))
            else:
                exec(compile(ast.Module([statement], []), str(PAGE), "exec"), names)
                came = printed.getvalue().strip()
        if said and came != said[-1]:
            wrong.append(f"{source}\ngave {came}")
    return wrong


def test_the_page_runs_and_says_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "finetune", encoder="resnet18")
    write_tiles(tmp_path / "tiles")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert [line for block in blocks() for line in run_block(block, names)] == []
    assert len(blocks()) >= 8


def test_another_value_than_the_page_says_is_found() -> None:
    assert run_block("x = 1\nx + 1  # -> 2\nx  # -> 2\n", {}) == ["x  # -> 2\ngave 1"]
    assert run_block("try:\n    1 / 0\nexcept ZeroDivisionError:\n    print('a')  # -> b\n", {}) != []


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, sscl; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sscl.lod


# --- predict ---


def test_probabilities_are_those_of_the_checkpoint_at_its_temperature(
    made: Path, model: api.Model, paths: list[str]
) -> None:
    logits, content = net_and_logits(made, [pixels(path) for path in paths])
    temperature = content["calibration"]["temperature"]
    assert temperature != 1
    expected = torch.from_numpy(logits / temperature).softmax(1).numpy()
    found = model.predict(paths, batch_size=4)
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-5)
    assert np.ptp(expected[:, 0]) > 0.05  # else any tile would do
    assert found.labels == tuple(model.classes[index] for index in expected.argmax(1))
    raw = api.load(made, device="cpu", calibrate=False).predict(paths).probabilities
    np.testing.assert_allclose(raw, torch.from_numpy(logits).softmax(1).numpy(), atol=1e-5)


def test_whatever_form_an_image_has_its_probabilities_are_the_same(model: api.Model, paths: list[str]) -> None:
    whole = model.predict(paths).probabilities
    arrays = [pixels(path) for path in paths]
    opened = [Image.open(path) for path in paths]
    folder = Path(paths[0]).parent
    for images in (np.stack(arrays), arrays, opened, folder, [Path(path) for path in paths], [*paths[:3], *arrays[3:]]):
        np.testing.assert_allclose(model.predict(images).probabilities, whole, atol=1e-6)
    for one in (paths[2], arrays[2], opened[2]):
        np.testing.assert_allclose(model.predict(one).probabilities, whole[2:3], atol=1e-6)
    assert model.predict(np.stack(arrays)).names == tuple(f"image {i}" for i in range(6))
    assert model.predict(arrays[0], names=["x"]).names == ("x",)


def test_other_sizes_are_brought_to_that_of_training_alike(model: api.Model, tmp_path: Path) -> None:
    (path,) = write_tiles(tmp_path / "large", count=1, size_px=150)
    by_file, by_array = model.predict(path), model.predict(pixels(path))
    np.testing.assert_allclose(by_file.probabilities, by_array.probabilities, atol=1e-6)
    seen = model.explain(path)
    assert (seen.images.shape, seen.source_px) == ((1, SIDE, SIDE, 3), (150,))


def test_no_decision_under_the_confidence_that_validation_or_the_user_gives(made: Path, paths: list[str]) -> None:
    kept = torch.load(made / "checkpoints" / "best.pt", weights_only=True)["calibration"]
    validation = np.sort((kept["logits"].double() / kept["temperature"]).softmax(1).max(1).values.numpy())
    for share in (0.1, 0.5):
        found = api.load(made, device="cpu", abstain=share)
        assert found.decide_from == pytest.approx(validation[int(share * 40)])
    confidences = np.sort(api.load(made, device="cpu").predict(paths).confidence)
    chosen = float(confidences[3])
    found = api.load(made, device="cpu", abstain=0.9, confidence=chosen).predict(paths)
    assert (found.decided == (found.confidence >= chosen)).all()
    assert found.decided.sum() == 3
    assert [reason != "" for reason in found.reasons] == (~found.decided).tolist()
    reason = next(reason for reason in found.reasons if reason)
    assert re.fullmatch(rf"confidence 0\.\d{{4}} is below {chosen:.4f}", reason)
    always = api.load(made, device="cpu", abstain=0)
    assert always.decide_from is None
    assert always.predict(paths).decided.all()


def test_the_operating_point_is_the_one_the_checkpoint_keeps(made: Path, model: api.Model) -> None:
    kept = torch.load(made / "checkpoints" / "best.pt", weights_only=True)["calibration"]
    assert model.operating_point == pytest.approx(kept["threshold"])


def test_with_tta_it_does_not_matter_which_way_a_tile_lies(made: Path, model: api.Model, paths: list[str]) -> None:
    tile = pixels(paths[0])
    careful = api.load(made, device="cpu", tta=True)
    views = np.stack([np.rot90(side, turns) for side in (tile, tile[:, ::-1]) for turns in range(4)])
    found = careful.predict(views).probabilities
    np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), atol=1e-6)
    features = careful.embed(views)
    np.testing.assert_allclose(features, np.broadcast_to(features[:1], features.shape), atol=1e-5)
    np.testing.assert_allclose(features[0], model.embed(views).mean(0), atol=1e-5)
    plain_views = model.predict(views).probabilities
    assert np.ptp(plain_views[:, 0]) > 1e-4  # without, it does
    kept = model.checkpoint.fitted.temperature
    log_odds = np.log(plain_views[:, 0] / plain_views[:, 1]) * kept  # the mean is of logits
    assert np.log(found[0, 0] / found[0, 1]) * kept == pytest.approx(log_odds.mean(), abs=1e-4)


def test_with_tta_maps_explain_the_class_that_is_predicted_by_all_views(made: Path, paths: list[str]) -> None:
    careful, quick = (api.load(made, device="cpu", tta=tta) for tta in (True, False))
    odds = [np.diff(np.log(model.predict(paths).probabilities))[:, 0] * model.temperature for model in (careful, quick)]
    tile = int(np.abs(odds[0] - odds[1]).argmax())
    with torch.no_grad():  # between the two, so that they call this tile otherwise
        for model in (careful, quick):
            model.classifier.head.bias[0] += float(odds[0][tile] + odds[1][tile]) / 2
    one, other = (model.explain(paths[tile]) for model in (careful, quick))
    assert one.predictions.labels != other.predictions.labels
    assert one.targets != other.targets
    np.testing.assert_allclose(one.maps, -other.maps, atol=1e-5)
    assert np.abs(one.maps).max() > 1e-2


def test_three_classes(tmp_path: Path, paths: list[str]) -> None:
    three = api.load(write_run(tmp_path / "three", classes=("a", "b", "c")), device="cpu")
    assert (three.positive, three.operating_point) == (None, None)
    assert three.predict(paths).probabilities.sum(1) == pytest.approx(np.ones(6))
    first, second = np.argsort(-three.predict(paths[0]).probabilities[0])[:2]
    assert three.explain(paths[0]).targets == (f"logit {'abc'[first]} - {'abc'[second]}",)


def test_new_tiles_get_the_stain_normalisation_of_training(tmp_path: Path, paths: list[str]) -> None:
    folder = write_run(tmp_path / "stained", stain="reinhard")
    stained = api.load(folder, device="cpu")
    own = normalise_stain(np.stack([pixels(path) for path in paths]), method="reinhard")
    assert (own != np.stack([pixels(path) for path in paths])).any()
    np.testing.assert_array_equal(stained.explain(paths).images, own)
    logits, _ = net_and_logits(folder, own)
    expected = torch.from_numpy(logits / stained.temperature).softmax(1).numpy()
    np.testing.assert_allclose(stained.predict(paths).probabilities, expected, atol=1e-5)
    np.testing.assert_allclose(stained.explain(paths).predictions.probabilities, expected, atol=1e-5)


def test_rows_are_a_table(model: api.Model, paths: list[str]) -> None:
    found = model.predict(paths)
    for i, row in enumerate(found.rows()):
        assert row["path"] == paths[i]
        assert row["prediction"] == found.labels[i]
        assert [row["probability_HP"], row["probability_SSA"]] == found.probabilities[i].tolist()
        assert (row["confidence"], row["decided"], row["reason"]) == (
            found.probabilities[i].max(),
            bool(found.decided[i]),
            found.reasons[i],
        )


# --- explain, embed ---


def test_maps_and_boxes_are_those_of_the_closed_form(made: Path, model: api.Model, paths: list[str]) -> None:
    """With average pooling and a linear head the map of logit a - b is (w_a - w_b) . features / cells."""
    seen = model.explain(paths, batch_size=4)
    x = augment.to_unit(torch.from_numpy(np.stack([pixels(path) for path in paths])))
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.checkpoint.mean, model.checkpoint.std))
    x = (x - mean) / std
    with torch.no_grad():
        maps = model.classifier.forward_features(x)
        predicted = model.classifier.forward_head(maps).argmax(1)
        weight = model.classifier.head.weight[predicted] - model.classifier.head.weight[1 - predicted]
        raw = torch.einsum("bc,bchw->bhw", weight, maps) / maps[0, 0].numel()
        large = torch.nn.functional.interpolate(raw[:, None], size=(SIDE, SIDE), mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(seen.maps, large, atol=1e-4)
    for i in range(len(seen)):
        assert seen.boxes[i] == boxes.find_box(seen.maps[i], threshold=0.5)
        a, b = model.classes[predicted[i]], model.classes[1 - predicted[i]]
        assert seen.targets[i] == f"logit {a} - {b}"
    assert seen.predictions.probabilities == pytest.approx(model.predict(paths).probabilities, abs=1e-6)
    other = model.explain(paths, target="SSA", threshold=0.9)
    assert set(other.targets) == {"logit SSA"}
    assert all(box is None or box.threshold == 0.9 for box in other.boxes)


def test_the_heatmap_changes_nothing_where_there_is_no_evidence(model: api.Model, paths: list[str]) -> None:
    seen = model.explain(paths)
    for i in range(len(seen)):
        silent = seen.maps[i] <= 0
        np.testing.assert_array_equal(seen.heatmap(i)[silent], seen.images[i][silent])
        assert (seen.boxed(i) != seen.images[i]).any() == (seen.boxes[i] is not None)


def test_features_are_what_the_head_reads(model: api.Model, paths: list[str]) -> None:
    features = model.embed(paths, batch_size=4)
    assert (features.shape, features.dtype) == ((6, 128), np.float32)
    with torch.no_grad():
        logits = model.classifier.head(torch.from_numpy(features)).double()
    expected = (logits / model.temperature).softmax(1).numpy()
    np.testing.assert_allclose(model.predict(paths).probabilities, expected, atol=1e-5)


# --- what it refuses ---


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((64, 48, 3), np.uint8), "image 0: is 48×64 pixels; tiles must be square"),
        (
            np.zeros((64, 64, 3)),
            "image 0: is float64 of shape (64, 64, 3), expected uint8 (H, W, 3); scale it to 0-255",
        ),
        (np.zeros((3, 64, 64), np.uint8), "image 0: is uint8 of shape (3, 64, 64), expected uint8 (H, W, 3); put chan"),
        (np.zeros((64, 64), np.uint8), "image 0: is uint8 of shape (64, 64), expected"),
        (torch.zeros(3, 64, 64), "image 0: is a Tensor; expected a path, a PIL image or a uint8 array (H, W, 3)"),
        (Image.new("I;16", (64, 64)), "image 0: is 16-bit grey"),
        ([], "images: must be one or more, got none"),
        (np.zeros((0, 64, 64, 3), np.uint8), "images: must be one or more, got none"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(model: api.Model, image: Any, words: str) -> None:
    for ask in (model.predict, model.explain, model.embed):
        with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
            ask(image)


def test_files_that_cannot_be_used_are_named(model: api.Model, paths: list[str], tmp_path: Path) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"^\S*cut\.png: is truncated or damaged"):
        model.predict([*paths, cut])
    with pytest.raises(FileNotFoundError, match=r"^none\.png: no such file or folder"):
        model.predict([*paths, "none.png"])
    with pytest.raises(ValueError, match=r"^names: .* 6 images, got 1$"):
        model.predict(paths, names=["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images below it"):
        model.predict(tmp_path / "empty")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ({"abstain": 1.0}, "abstain: must be >= 0 and < 1, got 1.0"),
        ({"confidence": 1.5}, "confidence: must be >= 0 and <= 1, got 1.5"),
        ({"device": "tpu"}, "device: got 'tpu', allowed are auto, cpu, cuda, cuda:N, mps"),
    ],
)
def test_values_out_of_range(made: Path, words: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        api.load(made, **words)


def test_targets_and_layers_that_are_not_there(model: api.Model, paths: list[str]) -> None:
    with pytest.raises(ValueError, match=r"^target: got 'XX', .*HP, SSA$"):
        model.explain(paths, target="XX")
    with pytest.raises(ValueError, match=r"^layer: got 'encoder\.layer9'"):
        model.explain(paths, layers=["encoder.layer9"])


# --- arguments as people give them ---


def test_devices_layers_and_modes_of_torch_as_people_give_them(made: Path, model: api.Model, paths: list[str]) -> None:
    assert api.load(made, device=torch.device("cpu")).device == torch.device("cpu")
    with torch.inference_mode():
        loaded = api.load(made, device="cpu")
    expected = model.explain(paths[0], layers=["encoder.layer3"]).maps
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        for asked in (model, loaded):
            with mode():
                np.testing.assert_array_equal(asked.explain(paths[0], layers="encoder.layer3").maps, expected)
                assert len(asked.predict(paths[0])) == len(asked.embed(paths[0])) == 1


@pytest.mark.parametrize("size", [0, -1, 2.5, "8", None])
def test_batch_sizes_that_are_none(model: api.Model, paths: list[str], size: Any) -> None:
    for ask in (model.predict, model.explain, model.embed):
        with pytest.raises(ValueError, match=r"^batch_size: must be a whole number, 1 or more, got"):
            ask(paths, batch_size=size)


def test_other_values_out_of_range(made: Path, model: api.Model, paths: list[str]) -> None:
    for words in ({"threshold": 2}, {"threshold": "half"}, {"fit": "stretch"}, {"method": "gradcamm"}):
        with pytest.raises(ValueError, match=f"^{next(iter(words))}: "):
            model.explain(paths, **words)
    for words in ({"abstain": "0.2"}, {"confidence": "high"}, {"device": 7}):
        with pytest.raises(ValueError, match=f"^{next(iter(words))}: "):
            api.load(made, **words)
    with pytest.raises(TypeError, match="'layer'"):
        model.explain(paths, layer="encoder.layer3")


def test_a_notebook_shows_one_line(model: api.Model, paths: list[str]) -> None:
    shown = [repr(model), repr(model.predict(paths)), repr(model.explain(paths))]
    for line in shown:
        assert re.fullmatch(r"<sscl .{20,150}>", line)
    assert "6 images" in shown[1]
    assert "load" in dir(sscl)


def test_images_that_are_not_square_are_made_so_on_request(model: api.Model) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (SIDE, 3 * SIDE, 3), dtype=np.uint8)
    middle = model.predict(np.ascontiguousarray(wide[:, SIDE : 2 * SIDE]))
    np.testing.assert_array_equal(model.predict(wide, fit="crop").probabilities, middle.probabilities)
    squashed = Image.fromarray(wide).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(model.embed(wide, fit="resize"), model.embed(squashed))
    assert model.explain(wide, fit="crop").source_px == (SIDE,)
    assert model.fit == "refuse"
