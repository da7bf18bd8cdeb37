"""One feature an encoder: whatever its pooling, probe, embed, a classifier and its heatmaps see the same numbers."""

from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

from sscl.config import EncoderConfig, FinetuneConfig, load_config
from sscl.explain.cam import class_maps
from sscl.explain.kinds import METHODS, MapKind
from sscl.models.checkpoint import build_checkpoint, load_checkpoint, save_checkpoint
from sscl.models.classifier import blank_classifier, load_classifier
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from sscl.models.start import frozen_encoder, inherit, start_encoder

VIT = {"depth": 2, "embed_dim": 32, "num_heads": 2, "img_size": 32, "patch_size": 8, "reg_tokens": 3}
POOLS = {"mean": 32, "class": 32, "class_mean": 64}


def _run(tmp_path, pool, kwargs=VIT):
    """A finetune run with a small transformer; its folder, and the classifier."""
    torch.manual_seed(1)
    net = Classifier(build_encoder("timm:vit_tiny_patch16_224", kwargs=kwargs, pool=pool), num_classes=2).eval()
    words = ["run=r", "data.root=d", "data.size_px=32", "model.name=timm:vit_tiny_patch16_224"]
    config = load_config(FinetuneConfig, overrides=[*words, *(f"model.kwargs.{k}={v}" for k, v in kwargs.items())])
    made = build_checkpoint(
        config,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        pooling=net.encoder.pooling,
        classes=("a", "b"),
        lineage=(),
        fingerprint="f",
        precision="fp32",
    )
    made = dataclasses.replace(made, encoder=net.encoder.state_dict(), head=net.head.state_dict(), validation={})
    save_checkpoint(tmp_path / pool / "checkpoints" / "best.pt", made)
    return tmp_path / pool, net


@pytest.mark.parametrize("pool", POOLS)
def test_probe_embed_finetune_and_predict_have_one_feature(pool, tmp_path):
    run, net = _run(tmp_path, pool)
    x = torch.randn(3, 3, 32, 32)
    frozen = frozen_encoder(EncoderConfig(weights=str(run)))  # of probe, embed and export
    words = ["run=r", "data.root=d", f"model.weights={run}"]
    config, said = inherit(load_config(FinetuneConfig, overrides=words))
    start = start_encoder(config.model)  # of finetune
    classifier, kept = load_classifier(run, device=torch.device("cpu"))  # of predict, gradcam and eval
    with torch.no_grad():
        # A convolution of the other memory format may round differently: on AVX2, not with AVX-512.
        expected = net.encoder.to(memory_format=torch.channels_last)(x)
        assert expected.shape == (3, POOLS[pool])
        for encoder in (frozen.encoder, start.encoder.eval(), classifier.encoder):
            encoder.to(memory_format=torch.channels_last)
            assert (encoder.pooling, encoder.num_features, encoder.kwargs) == (pool, POOLS[pool], VIT)
            assert torch.equal(encoder(x), expected)
        assert torch.allclose(classifier(x), classifier.head(expected), atol=1e-6)
    assert "model.kwargs=" in said[0]
    assert frozen.fingerprint == start.fingerprint
    assert kept.pooling == blank_classifier(kept).encoder.pooling == pool
    assert load_checkpoint(run).kwargs == VIT


def test_features_are_those_of_timms_tokens():
    torch.manual_seed(2)
    kwargs = {**VIT, "mlp_layer": "SwiGLUPacked", "act_layer": "silu", "init_values": 0.1}
    native = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, **{**kwargs, "mlp_layer": timm.layers.SwiGLUPacked}
    ).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = native.forward_features(x)
        expected = {"class": tokens[:, 0], "mean": tokens[:, 4:].mean(1)}
        expected["class_mean"] = torch.cat([expected["class"], expected["mean"]], dim=1)
        for pool in POOLS:
            ours = build_encoder("timm:vit_tiny_patch16_224", kwargs=kwargs, pool=pool).eval()
            ours.net.load_state_dict(native.state_dict())
            assert torch.allclose(ours(x), expected[pool], atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_maps_of_every_pooling_have_evidence_on_the_grid(pool):
    torch.manual_seed(3)
    net = Classifier(build_encoder("timm:vit_tiny_patch16_224", kwargs=VIT, pool=pool), num_classes=2).eval()
    x = torch.randn(2, 3, 32, 32)
    for method in METHODS:
        maps, logits = class_maps(net, x, target=(0, 1), kind=MapKind(method))
        assert maps.shape == (2, 4, 4)
        assert maps.abs().amax((1, 2)).min() > 0
        assert torch.allclose(logits, net(x), atol=1e-5)


@pytest.mark.parametrize("pool", POOLS)
def test_under_autocast_the_feature_is_not_rounded(pool):
    net = Classifier(build_encoder("timm:vit_tiny_patch16_224", kwargs=VIT, pool=pool), num_classes=2).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(2, 3, 32, 32)
        feature, logits = net.encoder(x), net(x)
    assert feature.dtype == logits.dtype == torch.float32
    assert torch.equal(net.head(feature), logits)


def test_a_fingerprint_tells_poolings_and_arguments_apart(tmp_path):
    found = {frozen_encoder(EncoderConfig(weights=str(_run(tmp_path, pool)[0]))).fingerprint for pool in POOLS}
    more = {**VIT, "num_heads": 4}  # the same tensors, other features
    found.add(frozen_encoder(EncoderConfig(weights=str(_run(tmp_path / "b", "mean", more)[0]))).fingerprint)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("resnet18", {"pool": "class"}, r"^model\.pool: resnet18 has no class token, got class"),
        ("timm:test_convnext", {"pool": "class_mean"}, r"^model\.pool: timm:test_convnext has no class token"),
        ("resnet18", {"kwargs": {"depth": 2}}, r"^model\.kwargs: resnet18 takes none, got \{depth: 2\}"),
        ("timm:test_vit", {"kwargs": {"dept": 2}}, r"^model\.kwargs: timm cannot build test_vit with dept \(.*dept"),
        (
            "timm:test_vit",
            {"kwargs": {"embed_dim": 49152, "num_heads": 64, "depth": 24}},  # 3 TB
            r"^model\.kwargs: the weights .* take [\d.]+ GiB",
        ),
        (
            "timm:test_vit",
            {"kwargs": {"patch_drop_rate": 0.5}, "pool": "mean"},
            r"^model\.kwargs\.patch_drop_rate: .*set model\.pool=class",
        ),
        ("timm:test_vit", {"kwargs": {"num_heads": 7}}, r"^model\.kwargs: timm cannot build test_vit with num_heads"),
        ("timm:test_vit", {"kwargs": {"num_classes": 3}}, r"^model\.kwargs\.num_classes: the classes of the tiles"),
        ("timm:test_vit", {"kwargs": {"checkpoint_path": "x"}}, r"^model\.kwargs\.checkpoint_path: model\.weights"),
        ("timm:test_vit", {"kwargs": {"mlp_layer": "Swiglu"}}, r"^model\.kwargs\.mlp_layer: .*did you mean SwiGLU\?"),
    ],
)
def test_arguments_and_poolings_that_cannot_be_are_one_line(name, given, message):
    with pytest.raises(ValueError, match=message) as error:
        build_encoder(name, **given)
    assert "\n" not in str(error.value)
