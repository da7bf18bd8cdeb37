from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from sscl.config.maps import MapConfig
from sscl.evaluate.verdicts import Outcome
from sscl.explain.cam import class_maps
from sscl.explain.cells import map_cells
from sscl.explain.choice import changed, chosen_maps, of_model
from sscl.explain.kinds import METHODS, OF_ATTENTION, MapKind
from sscl.explain.map_checks import cascade, stages
from sscl.explain.targets import DIFFERENCE
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from sscl.predict import cam as slide_cam

torchcam = pytest.importorskip("torchcam.methods")
pytest.importorskip("timm")

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
# What the published encoders are made of: register tokens, LayerScale, SwiGLU; and norms of queries and keys.
RICH = {"reg_tokens": 3, "init_values": 0.5, "mlp_layer": "SwiGLUPacked", "act_layer": "silu", "qk_norm": True}
POOLS = ("class", "mean", "class_mean")


def vit(pool: str = "class", **kwargs: Any) -> Classifier:
    """A small transformer with random weights that are large enough for its tokens to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder("timm:vit_tiny_patch16_224", kwargs={**SMALL, **kwargs}, pool=pool)
        model = Classifier(encoder, num_classes=3).eval()
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model


def tiles(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def patches(tokens: Tensor, model: Classifier) -> Tensor:
    return tokens[:, model.encoder.net.num_prefix_tokens :].reshape(len(tokens), 4, 4)


def attended(block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block of timm written out: its attention matrix, and its output as a function of that matrix."""
    of = block.attn
    batch, tokens, _ = x.shape
    qkv = of.qkv(block.norm1(x)).reshape(batch, tokens, 3, of.num_heads, of.head_dim).permute(2, 0, 3, 1, 4)
    query, key = of.q_norm(qkv[0]), of.k_norm(qkv[1])
    matrix = (query @ key.transpose(-2, -1) / of.head_dim**0.5).softmax(-1)
    if not matrix.requires_grad:
        matrix = matrix.detach().requires_grad_(True)
    y = x + block.ls1(of.proj((matrix @ qkv[2]).transpose(1, 2).reshape(batch, tokens, -1)))
    return matrix, y + block.ls2(block.mlp(block.norm2(y)))


def tokens_of(model: Classifier, x: Tensor) -> Tensor:
    net = model.encoder.net
    return net.norm_pre(net._pos_embed(net.patch_embed(x)))


def head(model: Classifier, tokens: Tensor) -> Tensor:
    """The logits of last tokens, pooled by hand."""
    tokens, first = model.encoder.net.norm(tokens), model.encoder.net.num_prefix_tokens
    parts = {"class": [tokens[:, 0]], "mean": [tokens[:, first:].mean(1)]}
    parts["class_mean"] = parts["class"] + parts["mean"]
    return model.head(torch.cat(parts[model.encoder.pooling], 1))


class TestLeGrad:
    @pytest.mark.parametrize("pool", ["class", "mean"])
    @pytest.mark.skipif(not hasattr(torchcam, "LeGrad"), reason="torchcam 0.5, which needs Python 3.11, has it")
    def test_equals_torchcams_on_the_same_weights(self, pool: str) -> None:
        model, x = vit(pool), tiles()
        net = model.encoder.net
        other = VisionTransformer(32, 8, 2, 2, 32, 128, num_classes=3).eval()
        state = {
            "class_token": net.cls_token,
            "encoder.pos_embedding": net.pos_embed,
            "conv_proj.weight": net.patch_embed.proj.weight,
            "conv_proj.bias": net.patch_embed.proj.bias,
            "encoder.ln.weight": net.norm.weight,
            "encoder.ln.bias": net.norm.bias,
            "heads.head.weight": model.head.weight,
            "heads.head.bias": model.head.bias,
        }
        names = {
            "ln_1": "norm1",
            "ln_2": "norm2",
            "self_attention.in_proj_": "attn.qkv.",
            "self_attention.out_proj": "attn.proj",
            "mlp.0": "mlp.fc1",
            "mlp.3": "mlp.fc2",
        }
        for index, block in enumerate(net.blocks):
            for theirs, ours in names.items():
                for kind in ("weight", "bias"):
                    dot = "" if theirs.endswith("_") else "."
                    state[f"encoder.layers.encoder_layer_{index}.{theirs}{dot}{kind}"] = block.get_parameter(
                        f"{ours.removesuffix('.')}.{kind}"
                    )
        other.load_state_dict({name: value.detach() for name, value in state.items()})

        def project(tokens: Tensor) -> Tensor:
            tokens = other.encoder.ln(tokens)
            return other.heads(tokens[:, 0] if pool == "class" else tokens[:, 1:].mean(1))

        with torchcam.LeGrad(other, list(other.encoder.layers), score_projection=project) as extractor:
            logits = other(x)
            expected = extractor(1, logits, normalized=False)[0]
        maps, ours = class_maps(model, x, target=1, kind=MapKind("legrad"))
        if pool == "class":  # as torchvision's model pools; of the other the projection alone
            torch.testing.assert_close(ours, logits.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps, expected, atol=1e-5 * float(expected.max()), rtol=1e-5)

    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize("rich", [{}, RICH])
    def test_equals_blocks_written_out(self, pool: str, rich: dict) -> None:
        model, x = vit(pool, **rich), tiles()
        found, expected = tokens_of(model, x), []
        for block in model.encoder.net.blocks:
            matrix, found = attended(block, found.detach())
            score = head(model, found)[:, 2] - 0.6 * head(model, found)[:, [0, 1]].mean(1)
            (gradient,) = torch.autograd.grad(score.sum(), matrix)
            expected.append(patches(gradient.clamp_min(0).mean((1, 2)), model))
        named = torch.tensor([[2, 0, 1]] * 2)
        maps, logits = class_maps(model, x, target=named, kind=MapKind("legrad", gamma=0.6))
        torch.testing.assert_close(logits, model(x).detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps, sum(expected) / 2)
        one, _ = class_maps(model, x, target=named, kind=MapKind("legrad", ("encoder.net.blocks.1",), gamma=0.6))
        torch.testing.assert_close(one, expected[1])


class TestRollout:
    @pytest.mark.parametrize("pool", POOLS)
    def test_equals_a_naive_loop_whatever_the_class(self, pool: str) -> None:
        model, x = vit(pool, **RICH), tiles(1)
        found, rolled = tokens_of(model, x), np.eye(20)
        for block in model.encoder.net.blocks:
            matrix, found = attended(block, found)
            mixed = np.zeros((20, 20))
            for i in range(20):
                for j in range(20):
                    mixed[i, j] = np.mean([of[i, j].item() for of in matrix[0]]) / 2 + (0.5 if i == j else 0)
            rolled = mixed @ rolled
        assert rolled.sum(1) == pytest.approx(1)
        rows = {"class": rolled[0], "mean": rolled[4:].mean(0)}
        rows["class_mean"] = (rows["class"] + rows["mean"]) / 2
        for target in (0, 1, DIFFERENCE):
            maps, _ = class_maps(model, x, target=target, kind=MapKind("rollout"))
            np.testing.assert_allclose(maps[0], rows[pool][4:].reshape(4, 4), rtol=1e-4)

    def test_with_gradients_equals_a_naive_loop(self) -> None:
        model, x = vit("class", **RICH), tiles(1)
        first, found = attended(model.encoder.net.blocks[0], tokens_of(model, x).detach())
        second, found = attended(model.encoder.net.blocks[1], found)
        gradients = torch.autograd.grad(head(model, found)[0, 1], [first, second])
        rolled = torch.eye(20)
        for matrix, gradient in zip((first, second), gradients, strict=True):
            rolled = rolled + (matrix * gradient).clamp_min(0).mean(1)[0].detach() @ rolled
        maps, _ = class_maps(model, x, target=1, kind=MapKind("gradrollout"))
        torch.testing.assert_close(maps[0], rolled[0, 4:].reshape(4, 4))


class TestTheModelStaysAsItIs:
    @pytest.mark.parametrize("method", OF_ATTENTION)
    @pytest.mark.parametrize("fused", [True, False])
    def test_after_a_map(self, method: str, fused: bool) -> None:
        model, x = vit("class_mean"), tiles()
        for block in model.encoder.net.blocks:
            block.attn.fused_attn = fused
        model.requires_grad_(False)
        before, state = model(x), copy.deepcopy(model.state_dict())
        expected, _ = class_maps(model, x, target=0, kind=MapKind(method))
        with torch.no_grad():
            again, logits = class_maps(model, x, target=0, kind=MapKind(method))
        torch.testing.assert_close(again, expected, rtol=0, atol=0)
        torch.testing.assert_close(logits, before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(x), before, rtol=0, atol=0)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert {block.attn.fused_attn for block in model.encoder.net.blocks} == {fused}

    @pytest.mark.parametrize("method", OF_ATTENTION)
    def test_a_tiles_map_does_not_depend_on_the_others(self, method: str) -> None:
        model, x = vit("mean"), tiles(3)
        together, _ = class_maps(model, x, target=DIFFERENCE, kind=MapKind(method))
        alone = [class_maps(model, x[i : i + 1], target=DIFFERENCE, kind=MapKind(method))[0] for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))

    @pytest.mark.parametrize("method", OF_ATTENTION)
    @pytest.mark.parametrize(
        ("name", "size_px", "kwargs"),
        [
            ("timm:eva02_tiny_patch14_224", 32, {**SMALL, "embed_dim": 48}),  # rotary positions
            ("timm:test_vit_relpos", 160, {"depth": 2}),  # a bias for each pair of tokens
        ],
    )
    def test_other_attention(self, name: str, size_px: int, kwargs: dict, method: str) -> None:
        model, x = (
            Classifier(build_encoder(name, kwargs=kwargs), num_classes=2).eval(),
            torch.randn(1, 3, *[size_px] * 2),
        )
        maps, logits = class_maps(model, x, target=1, kind=MapKind(method))
        torch.testing.assert_close(logits, model(x).detach(), rtol=1e-4, atol=1e-4)
        assert (maps >= 0).all()
        assert maps.std() > 0


class TestFeatureMethodsOnTokens:
    @pytest.mark.parametrize("method", ["gradcam", "hirescam", "layercam", "eigencam"])
    def test_a_class_token_is_explained_by_what_enters_the_last_attention(self, method: str) -> None:
        model, x = vit("class", **RICH), tiles()
        kind = of_model(MapKind(method), model)
        assert kind.layers == ("encoder.net.blocks.1.norm1",)
        assert not kind.in_logits
        maps, logits = class_maps(model, x, target=1, kind=MapKind(method))
        last = model.encoder.net.blocks[1]
        before = model.encoder.net.blocks[0](tokens_of(model, x)).detach()
        inner = last.norm1(before).detach().requires_grad_(True)
        y = before + last.ls1(last.attn(inner))
        score = head(model, y + last.ls2(last.mlp(last.norm2(y))))[:, 1]
        (G,) = torch.autograd.grad(score.sum(), inner)
        A, G = [of[:, 4:].transpose(1, 2).reshape(2, 32, 4, 4) for of in (inner.detach(), G)]
        torch.testing.assert_close(logits[:, 1], score.detach())
        expected = {
            "gradcam": (G.mean((2, 3), keepdim=True) * A).sum(1),
            "hirescam": (G * A).sum(1),
            "layercam": (G.clamp_min(0) * A).sum(1),
        }
        if method in expected:
            torch.testing.assert_close(maps, expected[method], atol=1e-6, rtol=1e-4)
        assert maps.std() > 1e-4

    def test_hirescam_would_be_nothing_at_the_blocks_input(self) -> None:
        model, x = vit("class"), tiles()
        at_input, _ = class_maps(model, x, target=1, kind=MapKind("hirescam", ("encoder.net.blocks.0",)))
        at_norm, _ = class_maps(model, x, target=1, kind=MapKind("hirescam"))
        assert at_input.abs().max() < 1e-3 * at_norm.abs().max()

    def test_both_parts_of_class_and_mean_are_explained(self) -> None:
        model, x = vit("class_mean"), tiles()
        names = ("encoder.net.blocks.1.norm1", "encoder.net.norm")
        maps, _ = class_maps(model, x, target=1, kind=MapKind("hirescam"))
        each = [class_maps(model, x, target=1, kind=MapKind("hirescam", (name,)))[0] for name in names]
        torch.testing.assert_close(maps, each[0] + each[1])
        assert str(of_model(MapKind("hirescam"), model)).endswith(f"{', '.join(names)} (sum)")

    def test_a_mean_of_patches_is_complete(self) -> None:
        model, x = vit("mean", **RICH), tiles()
        assert of_model(MapKind("hirescam"), model).in_logits
        maps, logits = class_maps(model, x, target=1, kind=MapKind("hirescam"))
        torch.testing.assert_close(maps.sum((1, 2)), logits[:, 1] - model.head.bias[1], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("layer", ["encoder.net.blocks.1", "encoder.net.norm"])
    def test_a_map_of_zeros_is_refused(self, layer: str) -> None:
        with pytest.raises(ValueError, match=f"^layer: nothing in the map of {layer} leads to the score"):
            class_maps(vit("class"), tiles(), target=0, kind=MapKind(layers=(layer,)))

    def test_cells_are_patches(self) -> None:
        for pool in POOLS:
            cells = map_cells(vit(pool, reg_tokens=2), size_px=32)
            assert (cells.rows, cells.columns, cells.finer, cells.patches) == (4, 4, None, True)
            assert "4 x 4 cells of 8 px" in str(cells)
            assert "smaller patches" in str(cells)


class TestRefusals:
    @pytest.mark.parametrize("method", OF_ATTENTION)
    @pytest.mark.parametrize("name", ["timm:test_resnet", "resnet14_small"])
    def test_no_transformer(self, method: str, name: str) -> None:
        model = Classifier(build_encoder(name), num_classes=2).eval()
        with pytest.raises(ValueError, match=f"^method: {method} needs a transformer .* {name} is none"):
            class_maps(model, tiles(), target=0, kind=MapKind(method))

    def test_no_such_block(self) -> None:
        with pytest.raises(ValueError, match=r"^layer: got 'encoder.net.blocks.7'.*encoder\.net\.blocks\."):
            class_maps(vit(), tiles(), target=0, kind=MapKind("legrad", ("encoder.net.blocks.7",)))

    def test_attention_of_windows(self) -> None:
        model = vit("mean")
        block = model.encoder.net.blocks[0]
        block.attn.forward = lambda x, **_: x + F.scaled_dot_product_attention(*[x[:, None, :8]] * 3).sum()
        with pytest.raises(ValueError, match=r"encoder\.net\.blocks\.0 does so never"):
            class_maps(model, tiles(), target=0, kind=MapKind("rollout"))

    @pytest.mark.parametrize("key", [{"gamma": 0.5}, {"references": 2}])
    def test_others_are_weighed_in_a_difference_only(self, key: dict) -> None:
        target, kind = chosen_maps(MapConfig(**key), ("a", "b", "c"), vit())
        assert (target.references, kind.gamma) == (key.get("references", 1), key.get("gamma", 1))
        with pytest.raises(ValueError, match=f"^{next(iter(key))}: .* with predicted"):
            chosen_maps(MapConfig(target="predicted", **key), ("a", "b", "c"), vit())

    @pytest.mark.parametrize(
        "key", [{"target": "a"}, {"target": "difference"}, {"target": "predicted"}, {"gamma": 0.5}, {"references": 2}]
    )
    @pytest.mark.parametrize("method", ["rollout", "eigencam"])
    def test_a_method_without_a_class_takes_no_score(self, method: str, key: dict) -> None:
        with pytest.raises(ValueError, match=f"^{next(iter(key))}: "):
            chosen_maps(MapConfig(method=method, **key), ("a", "b", "c"), vit())

    def test_no_more_references_than_other_classes(self) -> None:
        assert chosen_maps(MapConfig(references=2), ("a", "b", "c"), vit())[0].references == 2
        with pytest.raises(ValueError, match="references: got 3"):
            chosen_maps(MapConfig(references=3), ("a", "b", "c"), vit())


def test_another_method_leaves_layers_that_are_not_its_own():
    kept = {"method": "gradcam", "layer": ["encoder.net.blocks.1.norm1"], "threshold": 0.4}
    assert changed(kept, {"method": "legrad"}) == {"method": "legrad", "layer": [], "threshold": 0.4}
    assert changed(kept, {"method": "hirescam"})["layer"] == kept["layer"]
    assert changed(kept, {"method": "legrad", "layer": ["a"]})["layer"] == ["a"]
    assert changed({}, {"method": "rollout"})["layer"] == []
    assert changed({"target": "a"}, {"method": "eigencam"}) == {"method": "eigencam"}


@pytest.mark.parametrize("method", METHODS)
def test_randomisation_reaches_every_part_of_a_transformer(method: str) -> None:
    model, fresh, x = vit("class", **RICH), Classifier(vit("class", **RICH).encoder, num_classes=3).eval(), tiles()
    for parameter in fresh.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(2))
    trained, _ = class_maps(model, x, target=1, kind=MapKind(method))
    names = [name for name, _ in stages(model)]
    assert {"encoder.net.blocks.0", "encoder.net.blocks.1"} < set(names)
    for name, mixed in cascade(model, fresh):
        same = [torch.equal(of, was) for of, was in zip(mixed.parameters(), model.parameters(), strict=True)]
        if name == "encoder.net.blocks.1":
            changed = dict(mixed.named_parameters())
            for part in ("attn.qkv.weight", "attn.proj.weight", "attn.q_norm.weight"):
                assert torch.equal(changed[f"{name}.{part}"], dict(fresh.named_parameters())[f"{name}.{part}"])
        maps, _ = class_maps(mixed, x, target=1, kind=MapKind(method))
    assert not any(same)
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in mixed.state_dict().items())
    assert not torch.allclose(maps, trained)


def test_checks_of_the_layers_that_maps_are_of_without_saying_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps of a class token are of layers that the settings of `sscl gradcam` need not name."""
    for file in ("checkpoints/best.pt", "gradcam_test/checks.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).touch()
    passed = SimpleNamespace(outcome=Outcome.PASSED)
    checks = SimpleNamespace(tiles=9, randomisation=passed, deletion_insertion=passed, equivariance=passed)
    monkeypatch.setattr(slide_cam, "settings_of", lambda kind, folder: kind(checkpoint="x"))
    monkeypatch.setattr(slide_cam, "read_record", lambda kind, path, made_by: checks)
    model = vit()
    kind = of_model(MapKind(), model)
    assert kind.layers
    assert "passed" in slide_cam._checked(str(tmp_path), kind, model)
    assert "not checked" in slide_cam._checked(str(tmp_path), of_model(MapKind("hirescam"), model), model)
