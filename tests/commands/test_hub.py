"""sscl export formats=[timm] and push=: what timm makes of the folder, the model card, and the hub's refusals."""

from __future__ import annotations

import base64
import dataclasses
import http.server
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from sscl import load
from sscl.config import EncoderConfig
from sscl.data.scale import Scale
from sscl.models import hub as hub_client
from sscl.models import timm_folder
from sscl.models.checkpoint import load_checkpoint
from sscl.models.encoders import build_encoder
from sscl.models.exported import Exported, as_elsewhere
from sscl.models.start import frozen_encoder


@pytest.fixture(scope="module")
def evaluated(cli: Any, finetuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finetune run, with its test split evaluated."""
    run = Path(shutil.copytree(finetuned, tmp_path_factory.mktemp("evaluated") / "finetune"))
    assert cli.evaluate(run, "split=test").code == 0
    return run


@pytest.fixture(scope="module")
def classifier(cli: Any, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier as a folder for timm."""
    out: Path = tmp_path_factory.mktemp("timm") / "out"
    result = cli("export", evaluated, "what=classifier", "formats=[timm]", f"out={out}", "license=cc-by-4.0")
    assert result.code == 0, result.err
    assert "not calibrated" in result.out
    return out


def test_the_code_on_the_card_gives_the_probabilities_of_sscl(
    classifier: Path, evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a picture of another size, not square, with timm's own transform."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 41, 3), dtype=np.uint8))
    picture.save(tmp_path / "tile.png")
    monkeypatch.chdir(tmp_path)
    code = (classifier / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("local-dir:FOLDER", f"local-dir:{classifier}"), found)
    ours = load(evaluated, device="cpu")
    expected = ours.predict([picture], fit="resize").probabilities[0]
    assert found["probabilities"][0].numpy() == pytest.approx(expected, abs=1e-5)
    assert ours.temperature != 1

    config = json.loads((classifier / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("test_resnet", 2, ["HP", "SSA"])
    assert (config["sscl"]["temperature"], config["sscl"]["threshold"]) == (ours.temperature, ours.operating_point)
    asked = found["config"]
    assert [list(asked[key]) for key in ("input_size", "mean", "std")] == [[3, 32, 32], [0.5] * 3, [0.5] * 3]


def test_the_card_has_a_head_that_the_hub_reads(classifier: Path, evaluated: Path) -> None:
    card = huggingface_hub.ModelCard.load(classifier / "README.md")
    assert (card.data.license, card.data.library_name) == ("cc-by-4.0", "timm")
    assert card.data.pipeline_tag == "image-classification"
    measured = json.loads((evaluated / "eval_test/metrics.json").read_text())
    found = {result.metric_type: result for result in card.data.eval_results}
    for key, name in (("accuracy", "accuracy"), ("balanced_accuracy", "balanced_accuracy"), ("auroc", "roc_auc")):
        assert found[name].metric_value == pytest.approx(measured["metrics"][key], abs=1e-4)
        interval = measured["intervals"][key]
        assert ("no interval" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}") in found[
            name
        ].metric_name
    assert "drawn by a program" in found["accuracy"].dataset_name
    assert "## Limits" in card.text
    assert "sscl predict" not in card.text
    for name in ("README.md", "config.json"):
        assert str(evaluated.parent) not in (classifier / name).read_text()


def test_an_encoder_and_files_of_other_kinds(cli: Any, pretrained: Path, tmp_path: Path) -> None:
    result = cli("export", pretrained, "formats=[timm,pt]", f"out={tmp_path / 'out'}")
    assert result.code == 0, result.err
    card = huggingface_hub.ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.pipeline_tag, card.data.eval_results) == ("image-feature-extraction", None)
    net = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    state = torch.load(tmp_path / "out/encoder.pt", weights_only=True)
    assert net.num_classes == 0
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def model_of(name: str, *, size_px: int, **options: Any) -> tuple[Exported, torch.Tensor]:
    """A classifier of random weights, and three tiles as it gets them."""
    torch.manual_seed(0)
    encoder = build_encoder(name, **options).eval()
    head = nn.Linear(encoder.num_features, 3)
    given: Any = type("Facts", (), {"classes": ("a", "b", "c")})()
    state = as_elsewhere(encoder.state_dict())
    exported = Exported(encoder, encoder, state, size_px, Scale(), (0.6,) * 3, (0.2,) * 3, given, head)
    return exported, torch.randn(3, 3, size_px, size_px)


TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "img_size": 32}
PACKED = {**TINY, "mlp_layer": "SwiGLUPacked", "act_layer": "silu", "reg_tokens": 2, "init_values": 1e-5}


@pytest.mark.parametrize(
    ("name", "size_px", "options"),
    [
        ("resnet18", 32, {}),
        ("efficientnet_lite0", 57, {}),
        ("timm:test_convnext", 32, {}),
        ("timm:vit_tiny_patch16_224", 48, {"kwargs": TINY}),
        ("timm:vit_tiny_patch16_224", 32, {"kwargs": TINY, "pool": "mean"}),
        ("timm:vit_tiny_patch16_224", 32, {"kwargs": PACKED, "pool": "class"}),
        ("timm:vit_pwee_patch16_reg1_gap_256", 32, {"kwargs": TINY}),
    ],
)
def test_timm_computes_the_same(name: str, size_px: int, options: dict[str, Any], tmp_path: Path) -> None:
    exported, tiles = model_of(name, size_px=size_px, **options)
    fitted = timm_folder.fit(exported, example=tiles)
    timm_folder.write(fitted, exported, tmp_path, example=tiles)
    net = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, **fitted.in_code).eval()
    other = torch.randn_like(tiles)
    with torch.no_grad():
        expected = exported.logits(other)
        assert torch.allclose(net(other), expected, atol=1e-5 * float(expected.abs().max()))
    config = timm.data.resolve_model_data_config(net)
    assert (list(config["input_size"]), list(config["mean"])) == ([3, size_px, size_px], [0.6] * 3)
    assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (1.0, "squash", "bicubic")
    if exported.encoder.name.startswith("timm:"):  # and sscl needs nothing besides the folder
        again = frozen_encoder(EncoderConfig(weights=str(tmp_path), pool=exported.encoder.pooling))
        with torch.no_grad():
            assert torch.equal(again.encoder(other), exported.encoder(other))
    assert len(timm_folder.notes(fitted, exported)) == len(fitted.in_code) == ("mlp_layer" in options.get("kwargs", {}))


@pytest.mark.parametrize("pool", ["mean", "class", "class_mean"])
def test_sscl_reads_the_same_features_from_the_folder(pool: str, tmp_path: Path) -> None:
    """Also those that the model of timm does not pool by itself, by the pooling that config.json names."""
    exported, tiles = model_of("timm:vit_tiny_patch16_224", size_px=32, kwargs=TINY, pool=pool)
    trunk = dataclasses.replace(exported, head=None)
    timm_folder.write(timm_folder.fit(trunk, example=tiles), trunk, tmp_path, example=tiles)
    for spec in ({"model": f"timm:local-dir:{tmp_path}", "weights": "published"}, {"weights": str(tmp_path)}):
        again = frozen_encoder(EncoderConfig.model_validate(spec)).encoder
        assert again.pooling == pool
        with torch.no_grad():
            assert torch.equal(again(tiles), exported.encoder(tiles))


def test_class_token_and_mean_together_have_no_head_at_timm() -> None:
    exported, tiles = model_of("timm:vit_tiny_patch16_224", size_px=32, kwargs=TINY, pool="class_mean")
    with pytest.raises(timm_folder.NoEqual, match=r"\(class_mean\).*what=trunk"):
        timm_folder.fit(exported, example=tiles)
    alone = dataclasses.replace(exported, head=None)
    fitted = timm_folder.fit(alone, example=tiles)
    assert fitted.tokens
    with torch.no_grad():
        assert fitted.net(tiles).shape == (3, 17, 32)
    assert "README.md" in timm_folder.notes(fitted, alone)[0]


def test_the_card_pools_the_tokens_and_names_the_layers(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Virchow's: class token and mean, and layers that config.json cannot hold."""
    exported, _ = model_of("timm:vit_tiny_patch16_224", size_px=32, kwargs=PACKED, pool="class_mean")
    torch.save(exported.state, tmp_path / "foreign.pt")
    words = ["model=timm:vit_tiny_patch16_224", f"kwargs={PACKED}", "pool=class_mean", "size_px=32", "formats=[timm]"]
    result = cli("export", tmp_path / "foreign.pt", *words, f"out={tmp_path / 'out'}", "mean=[0.5,0.5,0.5]")
    assert result.code == 0, result.err
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    picture.save(tmp_path / "tile.png")
    monkeypatch.chdir(tmp_path)
    code = (tmp_path / "out/README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("local-dir:FOLDER", "local-dir:out"), found)
    with torch.no_grad():
        expected = exported.encoder(found["tile"][None])
    assert expected.shape == (1, 64)
    assert torch.allclose(found["features"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("resnet18", {"output_stride": 16}, "resnet18 without the last stage's stride"),
        ("resnet18", {"stem": "small"}, "resnet18 with stem small"),
        ("resnet14_small", {}, "resnet14_small"),
        ("resnet18_pathmnist", {}, "resnet18_pathmnist"),
    ],
)
def test_what_timm_does_not_have_is_refused(name: str, options: dict[str, Any], part: str) -> None:
    exported, tiles = model_of(name, size_px=32, **options)
    with pytest.raises(timm_folder.NoEqual, match=f"timm has no {part}; torchscript and onnx"):
        timm_folder.fit(exported, example=tiles)


# --- the hub ---


class Hub(http.server.ThreadingHTTPServer):
    """The few addresses of the hub that an upload uses.

    Attributes:
        files: what was committed. asked: how repositories were made. answers: status by the end of an address.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, int] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"name": "me", "type": "user"}, status=200 if self.path.endswith("/whoami-v2") else 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = f"{self.server.address}/me/name"
        if self.path.endswith("/preupload/main"):
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": modes})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{page}/commit/abc", "commitOid": "abc", "success": True})
        elif self.path.endswith("/create"):
            self.server.asked.append(json.loads(body))
            self.answer({"url": page})
        else:
            self.answer({})

    def answer(self, content: dict[str, Any], *, status: int = 200) -> None:
        status = next((code for end, code in self.server.answers.items() if self.path.endswith(end)), status)
        sent = json.dumps(content if status == 200 else {"error": "no"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that accepts every token."""
    with Hub() as found:
        threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", "hf_token")
        yield found
        found.shutdown()


@pytest.fixture
def push(cli: Any, evaluated: Path, tmp_path: Path) -> Callable[..., Any]:
    """Export the classifier and upload it to me/name."""
    return lambda *words: cli("export", evaluated, "what=classifier", "push=me/name", f"out={tmp_path / 'out'}", *words)


def test_push_uploads_the_three_files_and_nothing_of_this_machine(
    push: Callable[..., Any], hub: Hub, tmp_path: Path, evaluated: Path
) -> None:
    result = push()
    assert result.code == 0, result.err
    assert f"{hub.address}/me/name" in result.out
    assert hub.asked[0]["visibility"] == "private"
    assert sorted(hub.files) == ["README.md", "config.json", "model.safetensors"]
    for name, content in hub.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
        assert str(evaluated.parent).encode() not in content
    assert b'"hf-hub:me/name"' in hub.files["README.md"]


def test_push_takes_other_formats_and_makes_public_what_is_asked_to_be(
    cli: Any, pretrained: Path, hub: Hub, tmp_path: Path
) -> None:
    words = ["formats=[pt]", "push=me/name", "private=false", f"out={tmp_path / 'out'}"]
    assert cli("export", pretrained, *words).code == 0
    assert hub.asked[0]["visibility"] == "public"
    assert sorted(hub.files) == ["README.md", "encoder.pt"]
    assert b"library_name" not in hub.files["README.md"]


@pytest.mark.parametrize(
    ("end", "status", "part"),
    [
        ("/whoami-v2", 401, "hf auth login"),
        ("/whoami-v2", 503, "503"),
        ("/create", 403, "me/name"),
        ("/commit/main", 403, "me/name"),
    ],
)
def test_a_hub_that_refuses_is_one_line(
    push: Callable[..., Any], hub: Hub, tmp_path: Path, end: str, status: int, part: str
) -> None:
    hub.answers[end] = status
    result = push()
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert result.err.startswith("sscl: push: ")
    assert part in result.err
    assert hub.files == {} or end == "/commit/main"
    kept = (tmp_path / "out/model.safetensors").is_file()
    assert kept == (end != "/whoami-v2")  # a token is looked at before anything is written
    assert (str(tmp_path / "out") in result.err) == kept


def test_without_network_or_token(
    push: Callable[..., Any], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    result = push()
    assert (result.code, len(result.err.splitlines()), "HF_TOKEN" in result.err) == (2, 1, True)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = push()
    assert (result.code, len(result.err.splitlines()), "HF_ENDPOINT" in result.err) == (2, 1, True)
    assert not (tmp_path / "out").exists()


def test_whose_weights_a_model_was_made_of(evaluated: Path, pretrained: Path, tmp_path: Path) -> None:
    def source(weights: str | None, name: str = "timm:test_vit") -> str | None:
        """Of a run that began with these weights."""
        model = made.config.model.model_copy(update={"weights": weights, "name": name})
        run = dataclasses.replace(made, config=made.config.model_copy(update={"model": model}))
        return hub_client.unknown_source("RUN", run, name=None)

    made = load_checkpoint(pretrained)
    theirs = tmp_path / "theirs.pth"
    torch.save(torch.nn.Linear(1, 1).state_dict(), theirs)
    assert [source(weights) for weights in (None, "imagenet", str(pretrained))] == [None, None, None]
    assert source(str(theirs)) == str(theirs)
    assert source(str(tmp_path / "gone")) == str(tmp_path / "gone")
    assert source("published", "timm:hf-hub:else/where") == "else/where"
    assert source("published", "uni2_h") is None
    assert hub_client.unknown_source(str(theirs), None, name=None) == str(theirs)
    assert hub_client.unknown_source(str(evaluated), load_checkpoint(evaluated), name=None) is None


def test_terms_of_published_encoders_are_asked_for() -> None:
    hub_client.check_terms("h_optimus_0", accepted=False)
    hub_client.check_terms("resnet18", accepted=False)
    hub_client.check_terms("uni2_h", accepted=True)
    hub_client.check_terms("resnet18", accepted=True, source="weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth.*terms=accepted"):
        hub_client.check_terms("resnet18", accepted=False, source="weights.pth")
    for name in ("uni2_h", "virchow2", "gigapath", "lunit_s8"):
        with pytest.raises(ValueError, match="terms=accepted"):
            hub_client.check_terms(name, accepted=False)


@pytest.mark.parametrize(
    "name", ["name", "me/name/more", "me/na me", "https://huggingface.co/me/name", "me/", "../..", "me/a--b"]
)
def test_the_name_of_a_repository(cli: Any, pretrained: Path, name: str) -> None:
    result = cli("export", pretrained, f"push={name}")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "push: must be USER/NAME" in result.err
