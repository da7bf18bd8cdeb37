"""sscl export formats=[wsinfer]: the folder as WSInfer and its QuPath extension read it, and what is refused."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import sscl
from sscl.models.checkpoint import load_checkpoint, save_checkpoint


def of_the_zoo(config: Any) -> bool:
    """Whether a config.json is as version 1.0 of the schema of WSInfer's zoo has it, and its loaders as well."""
    kinds = {
        "spec_version": str, "architecture": str, "num_classes": int, "patch_size_pixels": int,
        "spacing_um_px": float, "class_names": list, "transform": list,
    }  # fmt: skip
    assert {key: type(config[key]) for key in kinds} == kinds
    assert config["spec_version"] == "1.0"
    assert config["patch_size_pixels"] >= 1
    assert config["spacing_um_px"] > 0
    names = config["class_names"]
    assert len(set(names)) == len(names) == config["num_classes"] >= 1
    assert all(type(name) is str for name in names)
    for entry in config["transform"]:
        assert entry["name"] in ("Resize", "ToTensor", "Normalize")
        assert set(entry) <= {"name", "arguments"}
        assert type(entry.get("arguments", {})) is dict
    return True


def of_scale(finetuned: Path, path: Path, mpp: float | None) -> Path:
    """The checkpoint of the finetune run, as if its tiles had these µm per pixel."""
    save_checkpoint(path, replace(load_checkpoint(finetuned / "checkpoints/best.pt"), mpp=mpp))
    return path


@pytest.fixture(scope="module")
def scaled(finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_scale(finetuned, tmp_path_factory.mktemp("scaled") / "best.pt", 0.5)


@pytest.fixture(scope="module")
def unscaled(finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_scale(finetuned, tmp_path_factory.mktemp("unscaled") / "best.pt", None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_wsinfer_gives_the_probabilities_of_sscl(cli: Any, scaled: Path, tmp_path: Path) -> None:
    """As its runtime goes about it: config.json, Pillow, torchvision's transforms, the graph, softmax."""
    out = tmp_path / "polyps"
    result = cli("export", scaled, "formats=[wsinfer]", f"out={out}", "outputs=probabilities", "mpp=0.51")
    assert result.code == 0, result.err
    config = json.loads((out / "config.json").read_text())
    assert of_the_zoo(config)
    assert (config["patch_size_pixels"], config["spacing_um_px"], config["class_names"]) == (32, 0.5, ["HP", "SSA"])
    assert config["architecture"] == "test_resnet"  # timm's name
    known = {name: getattr(transforms, name) for name in ("Resize", "ToTensor", "Normalize")}
    steps = [known[entry["name"]](**entry.get("arguments", {})) for entry in config["transform"]]
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (57, 57, 3), dtype=np.uint8)) for _ in range(5)]
    patches = [picture.resize((config["patch_size_pixels"],) * 2) for picture in pictures]
    net = torch.jit.load(out / "torchscript_model.pt", map_location="cpu").eval()
    with torch.no_grad():
        found = torch.softmax(net(torch.stack([transforms.Compose(steps)(patch) for patch in patches])), dim=1)
    ours = sscl.load(scaled, device="cpu")
    assert ours.temperature != 1
    assert found.numpy() == pytest.approx(ours.predict(pictures).probabilities, abs=1e-5)
    facts = json.loads((out / "classifier.json").read_text())
    assert not any("mpp=" in note for note in facts["notes"])  # that of the checkpoint, as in config.json
    (told,) = facts["files"].values()
    assert (facts["what"], facts["mpp"], told["kind"]) == ("classifier", 0.5, "wsinfer")
    assert told["max_difference"] <= 1e-4 * told["scale"]
    assert any("threshold of SSA" in note for note in facts["notes"])
    names = {"torchscript_model.pt", "config.json"}
    assert {path.name for path in out.iterdir()} == {*names, "classifier.json", "config.yaml", "env.json"}
    assert names <= set(result.out.split("wrote ")[1].replace(",", " ").split())
    with zipfile.ZipFile(out / "torchscript_model.pt") as archive:
        assert not any("/constants/" in entry for entry in archive.namelist())  # of float64, which no MPS device takes
        assert not any(str(Path(sscl.__file__).parent).encode() in archive.read(entry) for entry in archive.namelist())


def test_um_per_pixel_that_the_checkpoint_lacks_are_given_and_noted(cli: Any, unscaled: Path, tmp_path: Path) -> None:
    assert cli("export", unscaled, "formats=[wsinfer]", f"out={tmp_path / 'out'}", "mpp=0.7").code == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["spacing_um_px"] == 0.7
    facts = json.loads((tmp_path / "out/classifier.json").read_text())
    assert facts["mpp"] == 0.7
    assert any("mpp=" in note for note in facts["notes"])


@pytest.mark.parametrize(
    ("of", "words", "parts"),
    [
        ("unscaled", [], ["mpp: missing", "mpp=0.5"]),
        ("scaled", ["mpp=0.6"], ["mpp: got 0.6, but", "0.5 µm per pixel", "leave mpp out"]),
        ("scaled", ["mpp=50"], ["mpp: "]),
        ("scaled", ["what=trunk"], ["formats: wsinfer holds a classifier", "what=trunk"]),
        ("scaled", ["formats=[timm,wsinfer]"], ["formats: timm and wsinfer", "config.json", "out="]),
        ("pretrained", ["mpp=0.5"], ["a checkpoint of sscl finetune is needed"]),
    ],
)
def test_refused_in_one_line(
    cli: Any, request: pytest.FixtureRequest, tmp_path: Path, of: str, words: list[str], parts: list[str]
) -> None:
    formats = [] if any("formats" in word for word in words) else ["formats=[wsinfer]"]
    result = cli("export", request.getfixturevalue(of), f"out={tmp_path / 'out'}", *formats, *words)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert all(part in result.err for part in parts), result.err
    assert list(tmp_path.iterdir()) == []
