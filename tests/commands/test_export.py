"""sscl export: the files as other packages read them, and what is refused with nothing written."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import sscl
from sscl import __version__, load
from sscl.config import EncoderConfig
from sscl.models.classifier import load_classifier
from sscl.models.encoders import build_encoder
from sscl.models.start import frozen_encoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

ALL = "formats=[safetensors,pt,torchscript,torch_export,onnx]"
FILES = ["encoder.safetensors", "encoder.pt", "encoder.torchscript.pt", "encoder.pt2", "encoder.onnx"]


def refused(result: Any, *parts: str) -> None:
    assert result.code == 2, result.out
    assert "wrote" not in result.out
    assert len(result.err.splitlines()) == 1, result.err
    for part in parts:
        assert part in result.err


@pytest.fixture(scope="module")
def exported(cli: Any, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The trunk of the pretrain run in every format, and what was printed."""
    out: Path = tmp_path_factory.mktemp("export") / "out"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = cli("export", f"checkpoint={pretrained}", f"out={out}", ALL)
    assert result.code == 0, result.err
    assert result.err == ""
    assert [str(warning.message) for warning in caught] == []  # torch.jit's and the exporters' deprecations
    return out, result.out


@pytest.fixture(scope="module")
def resnet18(finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of the finetune run, with a ResNet18 and a head of random weights in place of its own."""
    content = torch.load(finetuned / "checkpoints/best.pt", weights_only=True)
    torch.manual_seed(0)
    content |= {"encoder": build_encoder("resnet18").state_dict(), "head": torch.nn.Linear(512, 2).state_dict()}
    content["config"]["model"]["name"] = content["encoder_name"] = "resnet18"
    return content


@pytest.fixture(scope="module")
def batch(tiles: Path) -> torch.Tensor:
    """Five tiles as a net gets them, (5, 3, 32, 32), by another road than ours."""
    files = sorted((tiles / "images").iterdir())[:5]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2) / 255
    return torch.from_numpy((pixels - 0.5) / 0.5).float()


@pytest.fixture(scope="module")
def features(pretrained: Path, batch: torch.Tensor) -> torch.Tensor:
    """What timm's network with the run's weights makes of the batch, (5, 96)."""
    net = timm.create_model("test_resnet", num_classes=0)
    weights = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)["encoder"]
    net.load_state_dict({key.removeprefix("net."): value for key, value in weights.items()})
    with torch.no_grad():
        return net.eval()(batch)


def run_onnx(path: Path, x: torch.Tensor) -> torch.Tensor:
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


GRAPHS: dict[str, Callable[[Path, torch.Tensor], torch.Tensor]] = {
    "torchscript.pt": lambda path, x: torch.jit.load(path)(x),
    "pt2": lambda path, x: torch.export.load(path).module()(x),
    "onnx": run_onnx,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("suffix", GRAPHS)
def test_graphs_give_the_features_for_any_number_of_tiles(
    exported: tuple[Path, str], batch: torch.Tensor, features: torch.Tensor, suffix: str
) -> None:
    for count in (1, 5):
        with torch.no_grad():
            found = GRAPHS[suffix](exported[0] / f"encoder.{suffix}", batch[:count])
        assert found.shape == (count, 96)
        assert (found - features[:count]).abs().max() <= 1e-4 * features.abs().max()


def test_graphs_hold_no_paths_of_this_machine(exported: tuple[Path, str]) -> None:
    for name in FILES[2:]:
        file = exported[0] / name
        parts = [file.read_bytes()]
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                parts = [archive.read(entry) for entry in archive.namelist()]
        for path in (Path(sscl.__file__).parent, Path(torch.__file__).parent):
            assert not any(str(path).encode() in part for part in parts), name


def test_graphs_say_what_they_are(exported: tuple[Path, str]) -> None:
    inside = {"sscl.json": ""}
    torch.export.load(exported[0] / "encoder.pt2", extra_files=inside)
    (entry,) = [entry for entry in onnx.load(exported[0] / "encoder.onnx").metadata_props if entry.key == "sscl"]
    for text in (inside["sscl.json"], entry.value):
        facts = json.loads(text)
        assert (facts["encoder"], facts["size_px"], facts["mpp"]) == ("timm:test_resnet", 32, 14.0)  # of drawn tiles


def test_the_json_says_all_that_a_reader_needs(exported: tuple[Path, str], pretrained: Path) -> None:
    out, printed = exported
    facts = json.loads((out / "encoder.json").read_text())
    content = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)
    assert (facts["encoder"], facts["stem"], facts["output_stride"]) == ("timm:test_resnet", "standard", 32)
    assert (facts["size_px"], facts["mean"], facts["std"]) == (32, [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    assert facts["input"]["shape"] == ["batch", 3, 32, 32]
    assert facts["output"]["shape"] == ["batch", 96]
    assert facts["classes"] == ["HP", "SSA"]
    assert facts["data_fingerprint"] == content["fingerprint"]
    assert facts["config"] == content["config"]
    assert len(facts["history"]) == 1
    assert facts["decisions"] is None
    assert (facts["sscl"], facts["epoch"], facts["notes"]) == (__version__, 4, [])
    assert list(facts["files"]) == FILES
    assert {path.name for path in out.iterdir()} == {*FILES, "encoder.json", "config.yaml", "env.json"}
    for name, file in facts["files"].items():
        assert file["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
        assert file["bytes"] == (out / name).stat().st_size
        assert 0 <= file["max_difference"] <= 1e-4 * file["scale"]
        assert any(line.split()[:1] == [name] for line in printed.splitlines())
    with safe_open(out / "encoder.safetensors", framework="pt") as file:
        kept = json.loads(file.metadata()["sscl"])
    assert all(facts[key] == value for key, value in kept.items())
    assert {"encoder", "size_px", "mean", "std"} <= set(kept)


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.safetensors"])
def test_the_exported_trunk_is_an_encoder_again(exported: tuple[Path, str], pretrained: Path, name: str) -> None:
    start = frozen_encoder(
        EncoderConfig(model="timm:test_resnet" if name.endswith(".pt") else None, weights=str(exported[0] / name))
    )
    trained = torch.load(pretrained / "checkpoints/last.pt", weights_only=True)["encoder"]
    found = start.encoder.state_dict()
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[key], value) for key, value in trained.items())


def test_an_exported_safetensors_file_says_itself_what_it_is(exported: tuple[Path, str], pretrained: Path) -> None:
    source, start = (
        frozen_encoder(EncoderConfig(weights=str(path))) for path in (pretrained, exported[0] / "encoder.safetensors")
    )
    assert (start.encoder.name, start.size_px, start.mean, start.std) == (
        source.encoder.name,
        source.size_px,
        source.mean,
        source.std,
    )
    assert start.fingerprint == source.fingerprint


def test_a_checkpoint_comes_back_with_its_stride(resnet18: dict[str, Any], tmp_path: Path) -> None:
    torch.save({**resnet18, "output_stride": 16}, tmp_path / "best.pt")

    trunk = frozen_encoder(EncoderConfig(weights=str(tmp_path / "best.pt"))).encoder
    classifier, _ = load_classifier(tmp_path / "best.pt", device=torch.device("cpu"))

    for net in (trunk, classifier.encoder):
        assert net.output_stride == 16
        with torch.no_grad():
            assert net.forward_features(torch.zeros(1, 3, 64, 64)).shape[2] == 4


def test_torchvision_and_timm_load_a_resnet18_strictly(cli: Any, tmp_path: Path, batch: torch.Tensor) -> None:
    torch.manual_seed(3)
    ours = build_encoder("resnet18").eval()
    torch.save(ours.state_dict(), tmp_path / "foreign.pt")
    words = [f"checkpoint={tmp_path / 'foreign.pt'}", "model=resnet18", "size_px=32", f"out={tmp_path / 'out'}"]
    result = cli("export", *words, "mean=[0.5,0.5,0.5]", "std=[0.5,0.5,0.5]")
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "out/encoder.json").read_text())
    assert (facts["mean"], facts["std"], facts["size_px"]) == ([0.5] * 3, [0.5] * 3, 32)
    assert (facts["config"], facts["classes"], facts["history"]) == (None, None, [])

    first = torchvision.models.resnet18()
    first.fc = torch.nn.Identity()
    first.load_state_dict(torch.load(tmp_path / "out/encoder.pt", weights_only=True))
    second = timm.create_model("resnet18", num_classes=0)
    second.load_state_dict(load_file(tmp_path / "out/encoder.safetensors"))
    with torch.no_grad():
        expected = ours(batch)
        for net in (first, second):
            assert torch.allclose(net.eval()(batch), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_classifier_gives_its_logits(cli: Any, resnet18: dict[str, Any], tmp_path: Path, batch: torch.Tensor) -> None:
    out, content = tmp_path / "out", resnet18
    torch.save(content, tmp_path / "best.pt")
    words = [f"checkpoint={tmp_path / 'best.pt'}", "what=classifier", "formats=[pt,torchscript]", f"out={out}"]
    result = cli("export", *words)
    assert result.code == 0, result.err
    net = torchvision.models.resnet18(num_classes=2)
    net.load_state_dict(torch.load(out / "classifier.pt", weights_only=True))
    with torch.no_grad():
        logits = net.eval()(batch)
        net.fc = torch.nn.Identity()
        expected = net(batch) @ content["head"]["weight"].T + content["head"]["bias"]
        found = GRAPHS["torchscript.pt"](out / "classifier.torchscript.pt", batch)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert torch.allclose(found, expected, atol=1e-4)
    facts = json.loads((out / "classifier.json").read_text())
    assert (facts["what"], facts["classes"], facts["output"]["shape"]) == ("classifier", ["HP", "SSA"], ["batch", 2])
    assert len(facts["history"]) == 2  # pretraining, then fine-tuning
    assert str(out) in result.out


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_classifier_decides_elsewhere_as_sscl_does(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    """From a picture of another size to probability and decision, with Pillow and the exported files alone."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 57, 3), dtype=np.uint8))
    ours = load(finetuned, device="cpu")
    expected = ours.predict([picture])
    logits, probabilities = tmp_path / "logits", tmp_path / "probabilities"
    for out, words in ((logits, []), (probabilities, ["outputs=probabilities"])):
        result = cli("export", finetuned, "what=classifier", "formats=[torchscript]", f"out={out}", *words)
        assert result.code == 0, result.err
    facts = json.loads((logits / "classifier.json").read_text())
    assert "BICUBIC" in facts["input"]["resize"]
    assert facts["input"]["stain"] == "none"
    small = np.asarray(picture.resize((facts["size_px"],) * 2, Image.Resampling.BICUBIC)) / 255
    x = torch.from_numpy((small - facts["mean"]) / facts["std"]).permute(2, 0, 1)[None].float()
    raw = GRAPHS["torchscript.pt"](logits / "classifier.torchscript.pt", x)
    found = torch.softmax(raw / facts["decisions"]["temperature"], 1)
    assert found[0].detach().numpy() == pytest.approx(expected.probabilities[0], abs=1e-5)
    inside = GRAPHS["torchscript.pt"](probabilities / "classifier.torchscript.pt", x)
    assert inside[0].detach().numpy() == pytest.approx(expected.probabilities[0], abs=1e-5)
    assert ours.temperature != 1
    assert (facts["decisions"]["abstain_below"], facts["decisions"]["threshold"]) == (
        ours.decide_from,
        ours.operating_point,
    )
    assert (facts["decisions"]["positive"], facts["output"]["meaning"].split(",")[0]) == ("SSA", "logits")


def test_a_model_of_timm_keeps_its_own_names_and_the_notes_warn_of_other_strides(cli: Any, tmp_path: Path) -> None:
    for name, options, note in (
        ("timm:mobilenetv3_small_050", {}, None),
        ("resnet18", {"stem": "small"}, "stem small"),
        ("resnet14_small", {}, "resnet14_small"),
    ):
        torch.manual_seed(0)
        net = build_encoder(name, **options)
        torch.save(net.state_dict(), tmp_path / "foreign.pt")
        out = tmp_path / name.rpartition(":")[2]
        words = [f"{key}={value}" for key, value in options.items()]
        result = cli(
            "export", f"checkpoint={tmp_path / 'foreign.pt'}", f"model={name}", "size_px=32", f"out={out / 'out'}",
            "formats=[pt]", *words,
        )  # fmt: skip
        assert result.code == 0, result.err
        names = torch.load(out / "out/encoder.pt", weights_only=True).keys()
        assert list(names) == [key.removeprefix("net.") for key in net.state_dict()]
        if name.startswith("timm:"):
            timm.create_model(name.removeprefix("timm:"), num_classes=0).load_state_dict(
                torch.load(out / "out/encoder.pt", weights_only=True)
            )
        notes = json.loads((out / "out/encoder.json").read_text())["notes"]
        assert [note in text for text in notes] == ([True] if note else [])
        assert result.out.count("note: ") == len(notes)


# --- refused, with nothing written ---


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["formats=[safetensor]"], ["formats: must be a list with one or more of safetensors, pt"]),
        (["formats=[]"], ["formats: must be a list with one or more of"]),
        (["outputs=probabilities"], ["outputs: probabilities"]),
        (["what=head"], ["what: must be trunk or classifier, got 'head'"]),
        (["what=classifier"], ["written by sscl pretrain; a checkpoint of sscl finetune is needed"]),
        (["checkpoint=none"], ["none: no such run folder or checkpoint file"]),
        (["checkpoint=imagenet", "out=", "model=resnet18"], ["out: missing; imagenet has no run folder"]),
        (["checkpoint={run}/encoder.pt"], ["model: missing", "model=resnet18"]),
        (["checkpoint={run}/encoder.pt", "model=timm:test_resnet"], ["size_px: missing", "size_px=224"]),
        (["checkpoint={run}/encoder.pt", "model=resnet34", "size_px=32"], ["missing", "layer1.1"]),
        (["checkpoint={run}/encoder.pt", "model=resnet5", "size_px=32"], ["did you mean resnet50"]),
        (["out={run}", "--overwrite"], ["{run}: holds checkpoints, which this command does not replace"]),
        (["out={run}"], ["{run}: exists and is not empty"]),
    ],
)
def test_bad_input(
    cli: Any, pretrained: Path, tmp_path: Path, snapshot: Any, words: list[str], parts: list[str]
) -> None:
    before = snapshot(pretrained)
    filled = [word.replace("{run}", str(pretrained)) for word in words]
    result = cli("export", f"checkpoint={pretrained}", f"out={tmp_path / 'out'}", *filled)
    refused(result, *(part.replace("{run}", str(pretrained)) for part in parts))
    assert list(tmp_path.iterdir()) == []
    assert snapshot(pretrained) == before


def test_a_classifiers_preprocessing_is_the_checkpoints(cli: Any, finetuned: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={finetuned}", "what=classifier", f"out={tmp_path / 'out'}", "mean=[0.5,0.5,0.5]"]
    refused(cli("export", *words), "mean: ", "leave mean out")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_said_before_anything_is_written(
    cli: Any, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = cli("export", f"checkpoint={pretrained}", f"out={tmp_path / 'out'}", "formats=[pt,onnx]")
    refused(result, f"formats: onnx needs {package}", "pip install 'sscl[onnx]'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found + 0.01 * found.abs().max(), "differ from the model"),
        (lambda found: found[:, :-1], "differ from the model"),
        (lambda found: found * float("nan"), "differ from the model"),
        (lambda found: 1 / 0, "cannot hold timm:test_resnet (division by zero); leave it out"),
    ],
    ids=["another", "fewer", "nan", "crash"],
)
def test_a_file_that_gives_other_outputs_is_not_handed_out(
    cli: Any, pretrained: Path, tmp_path: Path, wrap: Any, change: Any, message: str
) -> None:
    wrap(export_run=lambda run, *arguments: change(run(*arguments)))
    result = cli("export", f"checkpoint={pretrained}", f"out={tmp_path / 'out'}", "formats=[pt,torchscript]")
    refused(result, "formats: ", "torchscript", message)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_with_overwrite_alone(
    cli: Any, pretrained: Path, tmp_path: Path, snapshot: Any
) -> None:
    words = ["export", f"checkpoint={pretrained}", f"out={tmp_path / 'out'}"]
    assert cli(*words).code == 0
    before = snapshot(tmp_path)
    refused(cli(*words), "exists and is not empty; give --overwrite")
    assert snapshot(tmp_path) == before
    assert cli(*words, "formats=[pt]", "--overwrite").code == 0
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"encoder.pt", "encoder.json", "config.yaml", "env.json"}


def test_the_folder_of_the_checkpoint_is_not_replaced_by_its_export(cli: Any, pretrained: Path, tmp_path: Path) -> None:
    words = ["export", f"out={tmp_path / 'out'}", "model=timm:test_resnet", "size_px=32"]
    assert cli(*words, f"checkpoint={pretrained}/encoder.pt").code == 0
    refused(cli(*words, f"checkpoint={tmp_path}/out/encoder.pt", "--overwrite"), "would be lost; name another folder")
    assert (tmp_path / "out/encoder.pt").is_file()
