from __future__ import annotations

import re
from http.client import IncompleteRead
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from sscl import models, run
from sscl.models import (
    ENCODERS,
    Classifier,
    ContrastiveModel,
    build_encoder,
    build_projection,
)
from sscl.weights import load_trunk, read_trunk


@pytest.fixture(scope="module")
def encoder() -> models.Encoder:
    """A small trunk whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = build_encoder("resnet18")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 2)
    return net.eval()


def torchvision_features(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    net.fc = nn.Identity()
    with torch.no_grad():
        return net.eval()(x)


@pytest.mark.parametrize("name", ENCODERS)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):  # no memory, no random numbers
        ours, theirs = build_encoder(name).state_dict(), torchvision.models.get_model(name, weights=None).state_dict()
    theirs = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == theirs


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_an_exported_trunk_loads_into_torchvision_and_computes_the_same(name, tmp_path):
    torch.manual_seed(1)
    ours = build_encoder(name).eval()
    torch.save(ours.state_dict(), tmp_path / "encoder.pt")
    theirs = torchvision.models.get_model(name, weights=None)
    x = torch.randn(2, 3, 64, 64)
    before = torchvision_features(torchvision.models.get_model(name, weights=None), x)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)
    with torch.no_grad():
        features = ours(x)
    assert features.shape == (2, ours.num_features)
    expected = torchvision_features(theirs, x)
    assert torch.allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-2)


def test_a_trunk_comes_back_from_every_kind_of_file(encoder, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    theirs = {**encoder.state_dict(), "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    torch.save(theirs, tmp_path / "torchvision.pt")
    run.save_checkpoint(tmp_path / "last.pt", {"kind": "pretrain", "encoder": encoder.state_dict()})
    for name in ("encoder.pt", "torchvision.pt", "last.pt"):
        assert read_trunk(tmp_path / name).state.keys() == encoder.state_dict().keys()
        loaded = build_encoder("resnet18", weights=str(tmp_path / name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(("stem", "side"), [("standard", 2), ("small", 8)])
def test_size_of_the_last_feature_map(stem, side):
    net = build_encoder("resnet18", stem=stem).eval()
    with torch.no_grad():
        maps = net.forward_features(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 512, side, side)


def test_the_small_stem_differs_in_the_first_convolution_alone():
    standard, small = (build_encoder("resnet18", stem=stem).state_dict() for stem in ("standard", "small"))
    assert list(standard) == list(small)
    assert [key for key in small if small[key].shape != standard[key].shape] == ["conv1.weight"]
    assert small["conv1.weight"].shape == (64, 3, 3, 3)
    spread = small["conv1.weight"].std().item()  # He et al.: sqrt(2 / fan-out)
    assert spread == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_forward_is_features_then_head(encoder):
    classifier = Classifier(encoder, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        maps = classifier.forward_features(x)
        assert maps.shape == (2, 512, 2, 2)
        assert torch.equal(classifier.forward_head(maps), classifier(x))
        # The closed form on which Grad-CAM rests: average pooling, then one linear layer.
        expected = torch.einsum("bchw,kc->bk", maps, classifier.head.weight) / 4 + classifier.head.bias
        assert torch.allclose(classifier(x), expected, atol=1e-5)
        assert torch.equal(encoder(x), encoder.forward_features(x).mean((2, 3)))


def test_projection_heads():
    linear = build_projection(16, kind="linear", dim=4)
    assert [tuple(p.shape) for p in linear.parameters()] == [(4, 16), (4,)]
    mlp = build_projection(16, kind="mlp", hidden=8, dim=4)
    assert [type(m).__name__ for m in mlp] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert mlp(torch.randn(5, 16)).shape == (5, 4)
    with pytest.raises(ValueError, match="projection: got 'conv', allowed are linear, mlp"):
        build_projection(16, kind="conv")


def test_contrastive_model_projects_the_pooled_features(encoder):
    model = ContrastiveModel(encoder, projection=build_projection(512, dim=4)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.projection(encoder(x)))
    assert {key.split(".")[0] for key in model.state_dict()} == {"encoder", "projection"}


def test_unknown_names():
    with pytest.raises(
        ValueError, match=r"model\.name: got 'resnet5', allowed are resnet18, resnet34, resnet50, resnet"
    ):
        build_encoder("resnet5")
    with pytest.raises(ValueError, match=r"model\.stem: got 'tiny', allowed are standard, small"):
        build_encoder("resnet18", stem="tiny")


def test_weights_that_do_not_fit_are_named(encoder):
    state = dict(encoder.state_dict())
    del state["bn1.weight"]
    del state["bn1.bias"]
    state["layer5.weight"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    before = build_encoder("resnet18")
    kept = {key: value.clone() for key, value in before.state_dict().items()}
    message = (
        "model.weights: w.pt does not fit resnet18 with the standard stem (missing: bn1.weight, bn1.bias; "
        "left over: layer5.weight; of another shape: conv1.weight); "
        "set model.name and model.stem to those of the weights"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_trunk(before, state, source="w.pt")
    assert all(torch.equal(kept[key], value) for key, value in before.state_dict().items())


def test_weights_of_another_encoder(encoder, tmp_path):
    path = tmp_path / "encoder.pt"
    torch.save(encoder.state_dict(), path)
    with pytest.raises(ValueError, match=r"does not fit resnet34 .*\(missing: layer1\.2\.\S+, \S+, \S+ and \d+ more\)"):
        build_encoder("resnet34", weights=str(path))
    with pytest.raises(ValueError, match=r"with the small stem \(of another shape: conv1\.weight\)"):
        build_encoder("resnet18", weights=str(path), stem="small")


def test_files_that_hold_no_trunk(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such checkpoint file"):
        read_trunk(tmp_path / "none.pt")
    path = tmp_path / "other.pt"
    for content in ({"a": torch.ones(1)}, [1, 2], {"encoder": 3}, torch.ones(2)):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"model\.weights: \S+other\.pt holds neither .* \(no tensor named conv1"):
            read_trunk(path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match=r"other\.pt: not a readable checkpoint"):
        read_trunk(path)


def test_a_checkpoint_that_may_not_be_read_is_not_called_broken(tmp_path, monkeypatch):
    path = tmp_path / "encoder.pt"
    path.touch()

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(PermissionError):
        read_trunk(path)


def test_imagenet_weights_come_from_torchvision(monkeypatch, encoder):
    asked = []

    def get_model(name: str, weights: str | None) -> nn.Module:
        net = getattr(torchvision.models, name)(weights=None)
        if weights is not None:
            asked.append((name, weights))
            net.load_state_dict(encoder.state_dict(), strict=False)
        return net

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    loaded = build_encoder("resnet18", weights="imagenet").state_dict()
    assert asked == [("resnet18", "DEFAULT")]
    assert all(torch.equal(loaded[key], value) for key, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match=r"model\.stem: small cannot take ImageNet's 7x7 first convolution"):
        build_encoder("resnet18", weights="imagenet", stem="small")


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")'),
    ],
)
def test_a_failed_download_is_one_line(error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail, raising=False)
    with pytest.raises(
        ValueError, match=r"^model\.weights: torchvision could not download the ImageNet weights of"
    ) as e:
        build_encoder("resnet18", weights="imagenet")
    assert "give model.weights=PATH" in str(e.value)
    assert "\n" not in str(e.value)
