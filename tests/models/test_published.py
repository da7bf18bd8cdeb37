"""The published encoders: small models of exactly their arguments, in files and folders, against timm's features."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file

from sscl.config import EncoderConfig, FinetuneConfig, ModelConfig, changed_keys, load_config
from sscl.config.encoders import known_encoder
from sscl.config.published import PUBLISHED
from sscl.data.scale import Scale, scale_against
from sscl.models import published, timm_models
from sscl.models.encoders import build_encoder
from sscl.models.start import frozen_encoder, inherit, start_encoder
from sscl.models.timm_models import _checked

SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


def native(one, **more):
    """timm's own model of these arguments, small, with weights that differ from layer to layer."""
    torch.manual_seed(7)
    net = timm.create_model(one.architecture, num_classes=0, **_checked({**one.kwargs, **SMALL, **more})).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.normal_(std=0.2)
    return net


def saved(folder: Path, one, **more) -> tuple[Path, torch.nn.Module]:
    """A folder as the hub has it: config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    net = native(one, **more)
    save_file(net.state_dict(), folder / "model.safetensors")
    mean, std = one.normalisation
    cfg = {"mean": mean, "std": std, "input_size": [3, one.size_px, one.size_px], "interpolation": "bicubic"}
    args = {**one.kwargs, **SMALL, **more}
    content = {"architecture": one.architecture, "global_pool": "token", "model_args": args, "pretrained_cfg": cfg}
    (folder / "config.json").write_text(json.dumps({**content, "num_features": 32}))
    return folder, net


@pytest.mark.parametrize("name", PUBLISHED)
def test_features_of_each_are_those_of_timm(name, tmp_path):
    one = PUBLISHED[name]
    folder, net = saved(tmp_path / "a", one)
    side = 4 * one.patch_px
    x = torch.randn(2, 3, side, side)
    spec = EncoderConfig(model=name, weights=str(folder / "model.safetensors"), kwargs=dict(SMALL))
    ours = frozen_encoder(spec)
    with torch.no_grad():
        theirs = timm.create_model(
            one.architecture, num_classes=0, dynamic_img_size=True, **_checked({**one.kwargs, **SMALL})
        )
        theirs.load_state_dict(net.state_dict())
        tokens = theirs.eval().forward_features(x)
        expected = tokens[:, 0]
        if one.pooling == "class_mean":
            expected = torch.cat([expected, tokens[:, net.num_prefix_tokens :].mean(1)], dim=1)
        assert torch.allclose(ours.encoder(x), expected, atol=1e-6)
    assert (ours.mean, ours.std) == one.normalisation
    assert (ours.size_px, ours.mpp and ours.mpp[:2]) == (one.size_px, one.mpp)
    assert (ours.encoder.name, ours.encoder.pooling) == (name, one.pooling)
    assert net.patch_embed.proj.weight.shape[-1] == one.patch_px


@pytest.mark.parametrize("name", ["uni2_h", "h0_mini", "lunit_s16"])
def test_the_table_counts_parameters_and_features(name):
    one = PUBLISHED[name]
    with torch.device("meta"):
        net = timm.create_model(one.architecture, num_classes=0, **_checked(one.kwargs))
    assert sum(value.numel() for value in net.parameters()) == one.parameters
    assert net.num_features * (2 if one.pooling == "class_mean" else 1) == one.features


def test_a_folder_says_all_itself(tmp_path):
    one = PUBLISHED["h0_mini"]
    folder, _ = saved(tmp_path / "h0", one)
    x = torch.randn(1, 3, 56, 56)
    found = frozen_encoder(EncoderConfig(weights=str(folder)))
    same = frozen_encoder(EncoderConfig(model=f"timm:local-dir:{folder}", weights="published"))
    config, said = inherit(load_config(FinetuneConfig, overrides=["run=r", "data.root=d", f"model.weights={folder}"]))
    tuned = start_encoder(config.model)
    for start in (found, same, tuned):
        assert (start.mean, start.std) == one.normalisation
        assert start.encoder.name == "timm:vit_base_patch14_reg4_dinov2"  # which needs the folder no more
        assert start.encoder.kwargs["embed_dim"] == 32
        assert start.encoder.pooling == "class"
        assert start.fingerprint == found.fingerprint
    with torch.no_grad():
        assert torch.allclose(found.encoder(x), tuned.encoder.eval()(x), atol=1e-6)
    assert config.data.size_px == 224
    assert "data.size_px=224" in said[0]


def test_files_with_a_head_or_of_dinov2_are_read(tmp_path):
    one = PUBLISHED["gpfm"]
    net = native(one, depth=3)
    state = dict(net.state_dict())
    x = torch.randn(1, 3, 28, 28)
    torch.save(state | {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}, tmp_path / "head.bin")
    chunked = {f"backbone.{key.replace('blocks.', 'blocks.0.')}": value for key, value in state.items()}
    chunked |= {"backbone.mask_token": torch.zeros(1, 32), "dino_head.last.weight": torch.zeros(3, 3)}
    torch.save({"teacher": chunked, "iteration": 3}, tmp_path / "GPFM.pth")
    with torch.no_grad():
        expected = None
        for name in ("head.bin", "GPFM.pth"):
            spec = EncoderConfig(model="gpfm", weights=str(tmp_path / name), kwargs={**SMALL, "depth": 3})
            found = frozen_encoder(spec).encoder(x)
            assert expected is None or torch.equal(found, expected)
            expected = found


def test_registers_and_swiglu_of_dinov2_become_timms(tmp_path):
    one = PUBLISHED["h_optimus_0"]
    net = native(one)
    state = dict(net.state_dict())
    pos, first = state.pop("pos_embed"), torch.randn(1, 1, 32)
    theirs = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in state.items()}
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs |= {"pos_embed": torch.cat([first, pos], dim=1), "cls_token": state["cls_token"] - first}
    theirs["mask_token"] = torch.zeros(1, 32)
    torch.save(theirs, tmp_path / "dinov2.pth")
    spec = EncoderConfig(model="h_optimus_0", weights=str(tmp_path / "dinov2.pth"), kwargs=dict(SMALL))
    with torch.no_grad():
        x = torch.randn(1, 3, 224, 224)
        assert torch.allclose(frozen_encoder(spec).encoder(x), net(x), atol=1e-5)


def test_a_file_of_another_architecture_says_what_is_missing_left_over_and_what_it_is(tmp_path):
    folder, _ = saved(tmp_path / "a", PUBLISHED["virchow2"])
    small = {**SMALL, "embed_dim": 48}
    with pytest.raises(ValueError, match="does not fit uni ") as error:
        frozen_encoder(EncoderConfig(model="uni", weights=str(folder), kwargs=small))
    for part in ("left over: reg_token", "of another shape", "width 32", "4 registers", "width 48", "16 px", "14 px"):
        assert part in str(error.value)


def test_sides_that_do_not_suit_are_refused_or_said():
    encoder = build_encoder("h0_mini", kwargs=dict(SMALL))
    assert encoder.check_size(224) == []
    assert "16 x 16 cells at 224 px, are resampled to 4 x 4" in encoder.check_size(56)[0]
    with pytest.raises(
        ValueError, match=r"^data\.size_px: must be a multiple of 14 for h0_mini.*got 64; take 56 or 70$"
    ):
        encoder.check_size(64)
    assert build_encoder("resnet18").check_size(65) == []


@pytest.mark.parametrize(
    ("mpp", "said"),
    [
        (0.5, None),
        (0.62, None),  # 24% apart
        (0.41, None),
        (0.25, ("0.25", "0.5")),
        (1.14, ("1.14", "0.5")),
        (None, None),
    ],
)
def test_a_scale_over_25_percent_away_is_warned_of_with_both_numbers(mpp, said):
    trained = published.resolve("uni", kwargs={}, pool=None).mpp
    found = scale_against(Scale((), mpp), trained, name="uni", size_px=224)
    assert bool(found) == (said is not None)
    for number in said or ():
        assert number in found[0]
    assert scale_against(Scale((), mpp), None, name="uni", size_px=224) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uni2", "did you mean uni2_h?"),
        ("UNI2-h", "did you mean uni2_h?"),
        ("h_optimus", "did you mean h_optimus_0 or h_optimus_1?"),
        ("MahmoodLab/UNI2-h", "did you mean uni2_h?"),
        ("someone/else", "timm:hf-hub:someone/else"),
    ],
)
def test_names_nearby_are_of_the_table(name, message):
    with pytest.raises(ValueError, match="must be ") as error:
        known_encoder(name)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["h0_mini", "timm:hf-hub:MahmoodLab/UNI", "timm:hf-hub:a/b", "timm:local-dir:x"])
def test_random_weights_of_a_published_encoder_must_be_asked_for(name):
    for section, kind in ((ModelConfig, "name"), (EncoderConfig, "model")):
        with pytest.raises(ValueError, match=r"give published .*random"):
            section(**{kind: name})
        assert section(**{kind: name}, weights="random").weights == "random"
    with pytest.raises(ValueError, match=r"model\.weights: missing; ") as error:
        load_config(FinetuneConfig, overrides=["run=r", "data.root=d", f"model.name={name}"])
    assert "\n" not in str(error.value)


def test_random_is_what_null_is():
    torch.manual_seed(0)
    start = start_encoder(ModelConfig(name="h0_mini", weights="random", kwargs=dict(SMALL)))
    assert (start.size_px, start.mpp, start.std) == (None, None, PUBLISHED["h0_mini"].normalisation[1])
    found = [frozen_encoder(EncoderConfig(model="resnet14_small", weights=w)).fingerprint for w in (None, "random")]
    assert found[0] == found[1]
    one, other = (
        load_config(FinetuneConfig, overrides=["run=r", "data.root=d", f"model.weights={w}"])
        for w in ("null", "random")
    )
    assert changed_keys(one, other) == []


def test_no_other_weights_are_offered_for_a_hub_name():
    with pytest.raises(ValueError, match=r"lunit_s8") as error:
        build_encoder("timm:vit_small_patch8_224.lunit_dino")
    assert "did you mean timm:" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("[]", "expected a config.json of timm"),
        ("{", "config.json"),
        ('{"architecture": "vit_nope"}', "timm has no model vit_nope"),
        ('{"architecture": "test_vit", "pretrained_cfg": {"mean": [1, 2]}}', "mean"),
        ('{"model_type": "vit"}', "is of transformers (vit)"),
        ('{"num_classes": 2}', "architecture"),
    ],
)
def test_folders_that_are_none_are_one_line(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"^model\.name: ") as error:
        build_encoder(f"timm:local-dir:{tmp_path}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("timm:test_vit", {"depth": 0}, r"model\.kwargs\.depth: must be at least 1"),
        ("timm:test_vit", {"drop_path_rate": 2}, r"model\.kwargs\.drop_path_rate: must be from 0"),
        ("timm:test_vit.", {}, r"model\.name: timm has no weights"),
    ],
)
def test_what_timm_builds_and_cannot_compute_with_is_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        build_encoder(name, kwargs=kwargs)


# --- the hub ---


class _Hub(BaseHTTPRequestHandler):
    """Repositories: a/open has files, a/gated asks for consent, a/token knows no token; no other is there."""

    files: ClassVar[dict[str, bytes]] = {}
    got: ClassVar[list[str]] = []

    def answer(self, body: bool) -> None:
        repository, _, file = self.path.strip("/").partition("/resolve/main/")
        content = self.files.get(f"{repository}/{file}")
        _Hub.got.append(f"{self.command} {repository} {file}")
        status, code = 200, None
        if repository == "a/gated":
            status, code = 403, "GatedRepo"
        elif repository == "a/token":
            status = 401
        elif repository != "a/open":
            status, code = 404, "RepoNotFound"
        elif content is None:
            status, code = 404, "EntryNotFound"
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        sound = content if status == 200 and content is not None else b""
        self.send_header("Content-Length", str(len(sound)))
        self.send_header("ETag", f'"{file}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if body:
            self.wfile.write(sound)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, with an empty cache."""
    from huggingface_hub import constants

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_Hub, "files", {})
    monkeypatch.setattr(_Hub, "got", [])
    published._fetched.cache_clear()
    yield _Hub
    server.shutdown()
    server.server_close()
    published._fetched.cache_clear()


def test_the_hub_is_asked_only_for_published_weights_and_once(hub, tmp_path):
    folder, net = saved(tmp_path / "a", PUBLISHED["lunit_s16"])
    hub.files.update({f"a/open/{file.name}": file.read_bytes() for file in folder.iterdir()})
    with pytest.raises(published.NotHere, match="is not in the hub's cache on this disk"):
        build_encoder("timm:hf-hub:a/open")
    assert hub.got == []
    start = start_encoder(ModelConfig(name="timm:hf-hub:a/open", weights="published"))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(start.encoder.eval()(x), net(x), atol=1e-6)
    assert (start.mean, start.std) == PUBLISHED["lunit_s16"].normalisation
    assert start.encoder.name == "timm:vit_small_patch16_224"
    assert sum(one.startswith("GET") for one in hub.got) == 2
    build_encoder("timm:hf-hub:a/open")  # from the cache, with random weights
    assert sum(one.startswith("GET") for one in hub.got) == 2


@pytest.mark.parametrize(
    ("repository", "parts"),
    [
        ("a/gated", ["is gated: accept its terms on https://huggingface.co/a/gated", "hf auth login", "HF_TOKEN"]),
        ("a/token", ["missing or has expired", "hf auth login", "https://huggingface.co/a/token"]),
        ("a/none", ["the hub has no a/none"]),
        ("a b/c", ["the hub has no a b/c"]),
    ],
)
def test_weights_that_cannot_be_had_are_one_line(hub, repository, parts):
    with pytest.raises(published.NotHere, match=r"^model\.weights: ") as error:
        build_encoder(f"timm:hf-hub:{repository}", weights="published")
    assert "\n" not in str(error.value)
    for part in [*parts, "model.weights=PATH"]:
        assert part in str(error.value)


def test_a_repository_without_weights_is_one_line(hub):
    hub.files["a/open/config.json"] = b'{"architecture": "test_vit"}'
    with pytest.raises(published.NotHere, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        build_encoder("timm:hf-hub:a/open", weights="published")


def test_a_hub_out_of_reach_is_one_line_at_once(monkeypatch):
    """Its client would try five times, which takes 25 s; what is in the cache is found all the same."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"pretrained weights of test_vit2 \(127\.0\.0\.1: "):
        timm_models.create("test_vit2", kwargs={}, pretrained=True)
    with pytest.raises(
        published.NotHere, match=r"of MahmoodLab/UNI2-h cannot be fetched \(127\.0\.0\.1: .*model\.weights=PATH"
    ) as error:
        build_encoder("uni2_h", weights="published")
    assert time.monotonic() - started < 20
    assert "\n" not in str(error.value)
    for part in ("https://huggingface.co/MahmoodLab/UNI2-h", "terms", "hf auth login", "model.name=uni2_h"):
        assert part in str(error.value)
    with pytest.raises(published.NotHere, match=r"^model\.weights: config\.json of a/b cannot") as error:
        build_encoder("timm:hf-hub:a/b", weights="published")
    assert "its file of weights there" in str(error.value)
    assert "model.weights=PATH model.name=timm:MODEL" in str(error.value)
