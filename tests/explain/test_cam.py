from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchcam.methods import GradCAM, LayerCAM
from torchvision.models import resnet18

from sscl.explain import cam
from sscl.explain.cam import Box, centre_map, class_maps, find_box, fuse_maps, grad_cam, localisation, margin, normalise
from sscl.plots.cam import COLORMAPS, draw_box, heatmap_rgb, overlay


class Net(nn.Module):
    """torchvision's ResNet18 under the names that `grad_cam` asks for."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.resnet = resnet18(num_classes=num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        r = self.resnet
        x = r.maxpool(r.relu(r.bn1(r.conv1(x))))
        return r.layer4(r.layer3(r.layer2(r.layer1(x))))

    def forward_head(self, maps: Tensor) -> Tensor:
        return self.resnet.fc(maps.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def seeded_net(*, num_classes: int = 2) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(num_classes=num_classes).eval()


def seeded_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(1))  # maps of 3 x 3


def blob_map(size: int = 64, *, centre: tuple[int, int] = (20, 40), width: float = 6.0) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * width**2))


def box_at(x0: int, y0: int, x1: int, y1: int) -> Box:
    return Box(x0, y0, x1, y1, threshold=0.2, connectivity=8, components=1, area_fraction=0.1, raw_maximum=1.0)


class TestMaps:
    @pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
    @pytest.mark.parametrize("target", [0, 2])
    def test_equal_to_the_analytic_map(self, dtype: torch.dtype, error: float, target: int) -> None:
        model, images = seeded_net(num_classes=3).to(dtype), seeded_images().to(dtype)
        maps, logits = grad_cam(model, images, target=target)
        with torch.no_grad():
            features = model.forward_features(images)
            weights = model.resnet.fc.weight[target]
            expected = torch.einsum("c,bchw->bhw", weights, features) / (3 * 3)
            torch.testing.assert_close(logits, model(images), rtol=error, atol=error)
        assert maps.dtype == dtype
        assert (maps - expected).norm() < error * expected.norm()
        assert (expected < 0).any()  # raw: the negative part is still there
        assert (expected > 0).any()

    @pytest.mark.parametrize("target", [1, (1, 0)])
    def test_maps_sum_to_the_score_without_its_bias(self, target: int | tuple[int, int]) -> None:
        model = seeded_net().double()
        maps, logits = grad_cam(model, seeded_images().double(), target=target)
        scores = (logits - model.resnet.fc.bias.detach()) @ torch.tensor([0.0 if target == 1 else -1.0, 1.0]).double()
        torch.testing.assert_close(maps.sum(dim=(1, 2)), scores, rtol=1e-10, atol=0)

    def test_equal_to_torchcam(self) -> None:
        model, images = seeded_net(num_classes=3), seeded_images(1)
        maps, _ = grad_cam(model, images, target=1)
        with GradCAM(model, model.resnet.layer4) as extractor:
            theirs = extractor(1, model(images))[0][0]  # ReLU, then scaled to 0..1 by min and max
        positive = maps[0].clamp_min(0)
        assert positive.max() > 0
        ours = (positive - positive.min()) / (positive.max() - positive.min())
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_difference_of_two_classes_is_invariant_where_one_class_is_not(self) -> None:
        model, images = seeded_net().double(), seeded_images().double()
        before_difference, before_logits = grad_cam(model, images, target=(1, 0))
        before_class, _ = grad_cam(model, images, target=1)
        with torch.no_grad():  # one vector on both rows of the head changes no probability
            model.resnet.fc.weight += torch.linspace(-1, 1, 512).double()
        after_difference, after_logits = grad_cam(model, images, target=(1, 0))
        after_class, _ = grad_cam(model, images, target=1)
        torch.testing.assert_close(after_logits.softmax(1), before_logits.softmax(1), rtol=1e-10, atol=0)
        torch.testing.assert_close(after_difference, before_difference, rtol=1e-8, atol=1e-12)
        assert (after_class - before_class).norm() > 0.1 * before_class.norm()

    def test_pair_is_the_difference_of_both_and_changes_sign_when_swapped(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images().double()
        pair, _ = grad_cam(model, images, target=(2, 0))
        swapped, _ = grad_cam(model, images, target=(0, 2))
        two, _ = grad_cam(model, images, target=2)
        zero, _ = grad_cam(model, images, target=0)
        torch.testing.assert_close(pair, two - zero)
        torch.testing.assert_close(pair, -swapped)

    def test_class_per_image_and_no_influence_of_neighbours(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images(3).double()
        maps, _ = grad_cam(model, images, target=torch.tensor([2, 0, 1]))
        for index, target in enumerate([2, 0, 1]):
            alone, _ = grad_cam(model, images[index : index + 1], target=target)
            torch.testing.assert_close(maps[index], alone[0])

    def test_no_target_is_the_predicted_class_of_each_image(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images(6).double()
        with torch.no_grad():
            model.resnet.fc.bias -= model(images).mean(0)  # so that not all are of one class
            predicted = model(images).argmax(1)
        assert len(predicted.unique()) > 1
        maps, _ = grad_cam(model, images, target=None)
        expected, _ = grad_cam(model, images, target=predicted)
        assert torch.equal(maps, expected)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_same_map_under_any_gradient_mode_and_frozen_weights(self, context: type) -> None:
        model, images = seeded_net(), seeded_images()
        expected, _ = grad_cam(model, images, target=1)
        model.requires_grad_(False)
        with context():
            maps, logits = grad_cam(model, images, target=1)
            within, _ = grad_cam(model, images + 0, target=1)  # made inside: an inference tensor
        torch.testing.assert_close(maps, expected)
        torch.testing.assert_close(within, expected)
        assert not maps.requires_grad
        assert not logits.requires_grad

    def test_leaves_no_trace(self) -> None:
        model, images = seeded_net(), seeded_images()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        images_before = images.clone()
        grad_cam(model, images, target=1)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(images, images_before)
        assert not images.requires_grad

    def test_half_precision_trunk_gives_maps_in_float32(self) -> None:
        model, images = seeded_net(), seeded_images()
        expected, _ = grad_cam(model, images, target=(1, 0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            maps, _ = grad_cam(model, images, target=(1, 0))
        assert maps.dtype == torch.float32
        assert (maps - expected).norm() < 0.1 * expected.norm()

    def test_refuses_a_model_in_training_mode(self) -> None:
        with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
            grad_cam(seeded_net().train(), seeded_images(), target=0)

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            (2, "class 2, must lie within 0 to 1"),
            (-1, "class -1"),
            ((0, 5), "class 5"),
            ((1, 1), "two different classes"),
            (torch.tensor([0, 2]), "class 2"),
            (torch.tensor([0]), "one class per image"),
            (torch.tensor([[0, 1, 0], [0, 1, 0]]), "a pair per image"),
            (torch.tensor([[0, 1], [0, 2]]), "class 2"),
            (torch.tensor([0.0, 1.0]), "must be integers"),
        ],
    )
    def test_refuses_a_target_that_names_no_class(self, target: cam.Target, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            grad_cam(seeded_net(), seeded_images(), target=target)


def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("heatmaps", Path(__file__).parent / "golden" / "heatmaps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOLDEN = golden()


def shown_by_grad_cam(raw: np.ndarray, *, size: int) -> np.ndarray:
    """A raw map as the package grad-cam shows it: its positive part over its range, enlarged, over its range again."""
    shown = np.maximum(raw, 0)
    for resize in (size, None):
        shown = (shown - shown.min()) / (1e-7 + (shown - shown.min()).max())
        shown = shown if resize is None else cv2.resize(shown, (resize, resize))
    return shown


class TestMethods:
    @pytest.mark.parametrize("layer", GOLDEN.LAYERS)
    @pytest.mark.parametrize("method", cam.METHODS)
    def test_equal_to_the_package_grad_cam(self, method: str, layer: str) -> None:
        expected = np.load(GOLDEN.FILE)[f"{method} {layer}"]
        net = GOLDEN.GoldenNet().eval()
        maps, _ = class_maps(net, GOLDEN.images(), target=GOLDEN.TARGET, method=method, layers=[layer])
        assert maps.shape[1] == {"trunk.1": 10, "trunk.2": 5, "trunk.4": 5}[layer]
        for ours, theirs in zip(maps.numpy(), expected, strict=True):
            shown = shown_by_grad_cam(ours, size=20)
            if method == "eigencam":  # of which LAPACK chose the sign
                other = shown_by_grad_cam(-ours, size=20)
                shown = min(shown, other, key=lambda one: np.abs(one - theirs).max())
            np.testing.assert_allclose(shown, theirs, atol=1e-5)

    def test_golden_maps_tell_methods_and_layers_apart(self) -> None:
        maps = list(np.load(GOLDEN.FILE).values())
        assert len(maps) == 15
        assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(maps) for b in maps[:i])

    @pytest.mark.parametrize("layer", ["resnet.layer4", "resnet.layer3.0", "resnet.maxpool"])
    # Not Grad-CAM++: torchcam 0.5.0 divides a copy, so that its weights are sums of ReLU(G) cubed.
    @pytest.mark.parametrize(("method", "theirs"), [("gradcam", GradCAM), ("layercam", LayerCAM)])
    def test_equal_to_torchcam(self, method: str, theirs: type, layer: str) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images(1).double()
        shown = []
        for target in range(3):
            maps, logits = class_maps(model, images, target=target, method=method, layers=[layer])
            torch.testing.assert_close(logits, model(images))
            with theirs(model, layer) as extractor:
                (expected,) = extractor(target, model(images))
            positive = maps.clamp_min(0)
            above = positive - positive.amin((1, 2), keepdim=True)
            ours = above / (above.amax((1, 2), keepdim=True) + 1e-8)  # torchcam's guard, felt by maps of 1e-4
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
            shown.append(float((positive > 0).double().mean()))
        assert max(shown) > 0.15  # to compare zeros would say little

    @pytest.mark.parametrize("method", cam.METHODS)
    def test_last_feature_map_is_the_default_and_has_a_name_too(self, method: str) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images().double()
        default, _ = class_maps(model, images, target=margin, method=method)
        named, _ = class_maps(model, images, target=margin, method=method, layers=["resnet.layer4"])
        torch.testing.assert_close(default, named)

    def test_one_method_is_not_another(self) -> None:
        net, images = GOLDEN.GoldenNet().eval(), GOLDEN.images()
        maps = [class_maps(net, images, target=1, method=method)[0] for method in cam.METHODS]
        for index, one in enumerate(maps):
            for other in maps[:index]:
                assert (one / one.norm() - other / other.norm()).norm() > 1e-3
        torch.testing.assert_close(grad_cam(net, images, target=1)[0], maps[0])

    def test_hirescam_is_grad_cam_before_pooling_and_a_linear_head_only(self) -> None:
        model, images = seeded_net().double(), seeded_images().double()
        torch.testing.assert_close(
            class_maps(model, images, target=1, method="hirescam")[0], class_maps(model, images, target=1)[0]
        )

    def test_eigencam_by_its_definition_whatever_the_target(self) -> None:
        model, images = seeded_net().double(), seeded_images().double()
        maps, _ = class_maps(model, images, target=0, method="eigencam")
        other, _ = class_maps(model, images, target=(1, 0), method="eigencam")
        assert torch.equal(maps, other)
        with torch.no_grad():
            features = model.forward_features(images).numpy()
        for ours, one in zip(maps.numpy(), features, strict=True):
            cells = one.reshape(512, -1).T
            cells = cells - cells.mean(0)
            values, vectors = np.linalg.eigh(cells @ cells.T)  # of the cells' own products, not a decomposition of them
            expected = vectors[:, -1] * values[-1] ** 0.5
            expected = expected if expected.max() >= -expected.min() else -expected
            np.testing.assert_allclose(ours.ravel(), expected, atol=1e-9)
            assert ours.max() >= -ours.min()

    @pytest.mark.parametrize("layers", [(), ("resnet.layer2", "resnet.layer4"), ("resnet.conv1",), ("resnet.relu",)])
    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
    def test_leaves_no_trace_under_any_gradient_mode(self, context: type, layers: tuple[str, ...]) -> None:
        model, images = seeded_net(), seeded_images()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        expected, _ = class_maps(model, images, target=margin, method="layercam", layers=layers)
        frozen = seeded_net().requires_grad_(False)
        with context():
            maps, logits = class_maps(frozen, images + 0, target=margin, method="layercam", layers=layers)
        torch.testing.assert_close(maps, expected)
        assert not maps.requires_grad
        assert not logits.requires_grad
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("layers", [["resnet.bn1"], ["resnet.layer1.1.bn2", "resnet.layer2.0.bn1"]])
    def test_what_follows_in_place_does_not_touch_the_layers_features(self, layers: list[str]) -> None:
        model, images = seeded_net(), seeded_images()
        maps, logits = class_maps(model, images, target=1, method="hirescam", layers=layers)
        torch.testing.assert_close(logits, model(images))
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        expected, _ = class_maps(model, images, target=1, method="hirescam", layers=layers)
        torch.testing.assert_close(maps, expected)
        assert (maps < 0).any() or len(layers) > 1  # a batch norm's, before the ReLU

    def test_no_hook_stays_after_an_error(self) -> None:
        model = seeded_net()
        with pytest.raises(ValueError, match="class 9"):
            class_maps(model, seeded_images(), target=9, layers=["resnet.layer3"])
        with pytest.raises(RuntimeError):
            class_maps(model, torch.zeros(1, 4, 96, 96), target=0, layers=["resnet.layer3"])
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "grad-cam"}, "method: got 'grad-cam', allowed are gradcam, .*; did you mean gradcam"),
            ({"fuse": "sum"}, "fuse: got 'sum', allowed are max, mean; did you mean"),
            ({"layers": ["resnet.layr3"]}, r"layer: got 'resnet.layr3', .*; did you mean resnet.layer3\?"),
            ({"layers": ["resnet.fc"]}, r"layer: resnet.fc gives no maps of channels \(its output is \(2, 2\)\)"),
            ({"layers": ["resnet.layer1.0.relu"]}, "layer: resnet.layer1.0.relu runs 2 times in one pass"),
            ({"layers": ["resnet.avgpool"]}, "layer: resnet.avgpool does not run in one pass"),
        ],
    )
    def test_refusals(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            class_maps(seeded_net(), seeded_images(), target=0, **options)


class TestTargets:
    def test_margin_is_the_predicted_class_minus_the_next(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images(4).double()
        maps, logits = grad_cam(model, images, target=margin)
        for index, row in enumerate(logits):
            first, second, _ = row.argsort(descending=True).tolist()
            expected, _ = grad_cam(model, images[index : index + 1], target=(first, second))
            torch.testing.assert_close(maps[index], expected[0])

    def test_pair_per_image(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images().double()
        maps, _ = grad_cam(model, images, target=torch.tensor([[2, 0], [0, 1]]))
        for index, pair in enumerate([(2, 0), (0, 1)]):
            torch.testing.assert_close(maps[index], grad_cam(model, images, target=pair)[0][index])


class TestUnexplained:
    @pytest.mark.parametrize("method", cam.COMPLETE)
    @pytest.mark.parametrize("target", [0, (2, 1), None, margin, torch.tensor([1, 2])])
    def test_nothing_is_before_pooling_and_a_linear_head(self, method: str, target: cam.Target) -> None:
        model, images = seeded_net(num_classes=3), seeded_images()
        with torch.no_grad():
            model.resnet.fc.bias.copy_(torch.tensor([5.0, -3.0, 4.0]))  # without it another class leads
        maps, logits = class_maps(model, images, target=target, method=method)
        score, missed = cam.unexplained(maps, logits, bias=model.resnet.fc.bias, target=target)
        free = (logits - model.resnet.fc.bias.detach()).double()
        for index, row in enumerate(cam.target_classes(logits, target).tolist()):
            expected = free[index, row[0]] - (free[index, row[1]] if len(row) == 2 else 0)
            assert score[index].item() == pytest.approx(expected.item(), abs=1e-4)
        assert score.abs().max() > 0.01
        assert missed.abs().max() < 1e-5

    def test_much_is_by_other_methods_and_heads(self) -> None:
        model, images = seeded_net(), seeded_images()
        for method in ("gradcam++", "layercam", "eigencam"):
            maps, logits = class_maps(model, images, target=1, method=method)
            _, missed = cam.unexplained(maps, logits, bias=model.resnet.fc.bias, target=1)
            assert missed.abs().max() > 0.01


class TestFusion:
    def test_max_is_torchcams(self) -> None:
        generator = torch.Generator().manual_seed(0)
        maps = [torch.rand(2, side, side, generator=generator) for side in (3, 6, 12)]
        maps = [m - m.amin((1, 2), keepdim=True) for m in maps]  # as theirs are: from 0 to 1
        maps = [m / m.amax((1, 2), keepdim=True) for m in maps]
        torch.testing.assert_close(fuse_maps([5 * m for m in maps]), LayerCAM.fuse_cams(maps), rtol=0, atol=1e-6)

    def test_mean_is_that_of_the_enlarged_maps(self) -> None:
        small, large = torch.tensor([[[0.0, 4.0], [2.0, -1.0]]]), torch.rand(1, 8, 8)
        expected = cv2.resize(np.float32([[0, 1], [0.5, 0]]), (8, 8)) + large[0].numpy() / large.max().item()
        np.testing.assert_allclose(fuse_maps([small, large], how="mean")[0].numpy(), expected / 2, atol=1e-6)

    def test_layers_together_are_the_fused_maps_of_each(self) -> None:
        model, images, names = seeded_net(), seeded_images(), ["resnet.layer4", "resnet.layer2", "resnet.layer3.1"]
        for how in cam.FUSIONS:
            together, _ = class_maps(model, images, target=1, method="layercam", layers=names, fuse=how)
            each = [class_maps(model, images, target=1, method="layercam", layers=[name])[0] for name in names]
            torch.testing.assert_close(together, fuse_maps(each, how=how))
            assert together.shape == (2, 12, 12)

    def test_a_layer_without_evidence_adds_nothing(self) -> None:
        blob = torch.rand(1, 4, 4)
        for silent in (-blob, 1e-6 * blob, torch.zeros(1, 2, 2)):
            assert torch.equal(fuse_maps([blob, silent]), fuse_maps([blob]))
        assert not fuse_maps([-blob, -blob]).any()

    def test_refuses_nothing(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            fuse_maps([])


class TestUpsample:
    @pytest.mark.parametrize("size", [7, 50, 224])
    def test_equal_to_cv2(self, size: int) -> None:
        maps = torch.randn(3, 7, 7, generator=torch.Generator().manual_seed(0))
        large = cam.upsample(maps, size_px=size)
        assert large.shape == (3, size, size)
        for ours, raw in zip(large, maps, strict=True):
            theirs = cv2.resize(raw.numpy(), (size, size), interpolation=cv2.INTER_LINEAR)
            np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)

    def test_refuses_a_single_map(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(7, 7\)"):
            cam.upsample(torch.zeros(7, 7), size_px=14)


class TestEvidence:
    """Min-max scaling shows a red spot in every one of these."""

    @pytest.mark.parametrize(
        "raw",
        [
            np.zeros((8, 8)),
            -blob_map(8),
            np.full((8, 8), -1.0),
            1e-5 * blob_map(8),  # a peak too small to move a probability
            np.where(np.eye(8) > 0, 1e-3, -1e3),  # rounding beside evidence against the class
        ],
        ids=["zero", "negative", "constant negative", "negligible", "rounding"],
    )
    def test_none(self, raw: np.ndarray) -> None:
        assert not cam.has_evidence(raw)
        assert find_box(raw) is None
        assert (normalise(raw) == 0).all()
        image = np.full((8, 8, 3), 100, np.uint8)
        assert (overlay(image, normalise(raw)) == image).all()
        assert (draw_box(image, find_box(raw)) == image).all()

    def test_constant_positive_map_is_evidence_everywhere(self) -> None:
        raw = np.full((8, 8), 0.3)
        assert (normalise(raw) == 1).all()
        box = find_box(raw)
        assert box is not None
        assert (box.x0, box.y0, box.x1, box.y1, box.area_fraction) == (0, 0, 8, 8, 1.0)

    def test_normalise_keeps_proportions_and_drops_the_negative_part(self) -> None:
        raw = np.array([[-3.0, 0.0], [1.0, 4.0]])
        assert normalise(raw).tolist() == [[0.0, 0.0], [0.25, 1.0]]
        assert normalise(raw).dtype == np.float32

    def test_least_evidence_is_a_choice(self) -> None:
        raw = 1e-5 * blob_map(32, centre=(16, 16))
        box = find_box(raw, min_evidence=1e-6)
        assert box is not None
        assert box.raw_maximum == pytest.approx(1e-5)
        assert normalise(raw, min_evidence=1e-6).max() == 1

    def test_in_a_net_that_says_no_at_every_place(self) -> None:
        model = seeded_net()
        with torch.no_grad():
            model.resnet.fc.weight[1] = -model.resnet.fc.weight[1].abs()  # features are >= 0 after the ReLU
        maps, _ = grad_cam(model, seeded_images(), target=1)
        assert all(find_box(raw.numpy()) is None for raw in cam.upsample(maps, size_px=96))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_refuses_broken_maps(self, value: float) -> None:
        raw = blob_map(8)
        raw[3, 3] = value
        for function in (find_box, normalise):
            with pytest.raises(ValueError, match="NaN or infinite"):
                function(raw)


class TestBox:
    @pytest.mark.parametrize("threshold", [0.15, 0.2, 0.5])
    def test_blob(self, threshold: float) -> None:
        raw = 3.0 * blob_map(64, centre=(20, 40), width=6)
        box = find_box(raw, threshold=threshold)
        assert box is not None
        reach = int(6 * np.sqrt(-2 * np.log(threshold)))  # pixels from the centre where the Gaussian falls below
        assert (box.x0, box.x1) == (40 - reach, 40 + reach + 1)
        assert (box.y0, box.y1) == (20 - reach, 20 + reach + 1)
        assert (box.threshold, box.connectivity, box.components) == (threshold, 8, 1)
        assert box.area_fraction == pytest.approx((2 * reach + 1) ** 2 / 64**2)
        assert box.raw_maximum == pytest.approx(3.0)

    def test_largest_region_wins_over_the_highest(self) -> None:
        raw = np.zeros((20, 30))
        raw[2:4, 2:4] = 1.0
        raw[10:18, 15:25] = 0.4
        box = find_box(raw)
        assert box is not None
        assert (box.x0, box.y0, box.x1, box.y1, box.components) == (15, 10, 25, 18, 2)
        high = find_box(raw, threshold=0.5)
        assert high is not None
        assert (high.x0, high.y0, high.x1, high.y1, high.components) == (2, 2, 4, 4, 1)

    def test_connectivity(self) -> None:
        raw = np.zeros((10, 10))
        raw[2:5, 2:5] = raw[5:7, 5:7] = 1.0  # touch at a corner
        eight, four = find_box(raw), find_box(raw, connectivity=4)
        assert eight is not None
        assert four is not None
        assert (eight.components, eight.x1, eight.y1) == (1, 7, 7)
        assert (four.components, four.x1, four.y1) == (2, 5, 5)

    def test_a_pixel_at_the_threshold_belongs_to_the_box(self) -> None:
        raw = np.zeros((8, 8))
        raw[2, 3:6] = [4.0, 2.0, 1.0]
        for threshold, columns in ((1.0, 1), (0.5, 2), (0.25, 3)):
            box = find_box(raw, threshold=threshold)
            assert box is not None
            assert box.corners == (3, 2, 3 + columns, 3)

    def test_scale_of_the_map_does_not_matter(self) -> None:
        raw = blob_map() - 0.1
        one, thousand = find_box(raw), find_box(1000 * raw)
        assert one is not None
        assert thousand is not None
        assert (one.x0, one.y0, one.x1, one.y1) == (thousand.x0, thousand.y0, thousand.x1, thousand.y1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"threshold": 0.0}, "threshold: 0.0"),
            ({"threshold": 20}, "threshold: 20, must be above 0 and at most 1"),
            ({"connectivity": 6}, "connectivity: 6, must be 4 or 8"),
        ],
    )
    def test_refuses_impossible_options(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            find_box(blob_map(), **options)

    def test_refuses_a_batch(self) -> None:
        with pytest.raises(ValueError, match=r"must be \(height, width\)"):
            find_box(np.ones((1, 4, 4)))


class TestLocalisation:
    mask = np.zeros((40, 40), bool)
    mask[10:30, 10:20] = True

    def test_peak(self) -> None:
        raw = blob_map(40, centre=(29, 19))
        assert localisation(raw, None, self.mask)["peak_hit"] is False  # no box: no evidence, all are misses
        assert localisation(raw, find_box(raw), self.mask)["peak_hit"] is True
        outside = blob_map(40, centre=(30, 19))
        assert localisation(outside, find_box(outside), self.mask)["peak_hit"] is False
        against = raw.copy()
        against[0, 0] = -9  # speaks against the target, however loudly
        assert localisation(against, find_box(against), self.mask)["peak_hit"] is True

    @pytest.mark.parametrize(
        ("box", "iou", "hit"),
        [
            ((10, 10, 20, 30), 1.0, True),
            ((10, 10, 20, 20), 0.5, True),
            ((10, 10, 20, 19), 0.45, False),
            ((15, 10, 25, 30), 100 / 300, False),
            ((20, 10, 30, 30), 0.0, False),
            ((0, 0, 40, 40), 200 / 1600, False),
        ],
    )
    def test_box(self, box: tuple[int, int, int, int], iou: float, hit: bool) -> None:
        result = localisation(blob_map(40), box_at(*box), self.mask)
        assert result["box_iou"] == pytest.approx(iou)
        assert result["box_hit"] is hit

    def test_box_is_held_to_the_rectangle_around_the_whole_mask(self) -> None:
        two = np.zeros((40, 40), bool)
        two[10, 10] = two[29, 19] = True
        assert localisation(blob_map(40), box_at(10, 10, 20, 30), two)["box_iou"] == 1.0

    def test_centre_map_is_a_fair_baseline(self) -> None:
        raw = centre_map(100)
        box = find_box(raw)
        assert box is not None
        assert box.x0 == box.y0 == 100 - box.x1 == 100 - box.y1
        assert 0.45 < box.area_fraction < 0.55
        centred = np.zeros((100, 100), bool)
        centred[40:60, 40:60] = True
        assert localisation(raw, box, centred)["peak_hit"] is True
        assert localisation(raw, box, ~centred)["peak_hit"] is False

    def test_refuses_what_cannot_be_hit(self) -> None:
        with pytest.raises(ValueError, match="no true pixel"):
            localisation(blob_map(40), None, np.zeros((40, 40), bool))
        with pytest.raises(ValueError, match=r"\(8, 8\) and \(40, 40\)"):
            localisation(blob_map(8), None, self.mask)


class TestDrawing:
    @pytest.mark.parametrize("colormap", sorted(COLORMAPS))
    def test_colours_get_lighter_with_the_map(self, colormap: str) -> None:
        ramp = np.tile(np.linspace(0, 1, 64), (2, 1))
        colours = heatmap_rgb(ramp, colormap=colormap)
        assert colours.shape == (2, 64, 3)
        assert colours.dtype == np.uint8
        luminance = colours[0] @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luminance) > -0.5).all()
        assert luminance[-1] - luminance[0] > 100

    def test_colours_are_red_green_blue(self) -> None:
        low, high = heatmap_rgb(np.array([[0.0, 1.0]]))[0].astype(int)  # viridis: from dark violet to yellow
        assert low[2] > low[1]
        assert high[0] > 200
        assert high[1] > 200
        assert high[2] < 80

    def test_overlay_mixes_by_the_map(self) -> None:
        image = np.full((1, 3, 3), 200, np.uint8)
        map01 = np.array([[0.0, 0.5, 1.0]])
        colours = heatmap_rgb(map01).astype(float)
        mixed = overlay(image, map01, alpha=0.8)
        expected = np.stack([[200 * (1 - a) + a * c for a, c in zip([0, 0.4, 0.8], colours[0], strict=True)]])
        np.testing.assert_allclose(mixed, expected, atol=0.51)
        assert (image == 200).all()

    def test_box_is_drawn_inside_its_pixels_and_nowhere_else(self) -> None:
        image = np.full((50, 60, 3), 128, np.uint8)
        drawn = draw_box(image, box_at(5, 10, 35, 40))
        changed = (drawn != image).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (10, 39, 5, 34)
        assert changed[10, 5:35].all()
        assert changed[39, 5:35].all()
        assert changed[10:40, 5].all()
        assert changed[10:40, 34].all()
        assert not changed[15:35, 10:30].any()
        assert (image == 128).all()

    @pytest.mark.parametrize("box", [(0, 0, 1, 1), (63, 63, 64, 64), (0, 0, 64, 64), (10, 0, 11, 64)])
    def test_thin_and_bordering_boxes(self, box: tuple[int, int, int, int]) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        changed = (draw_box(image, box_at(*box)) != image).any(axis=2)
        assert changed[box[1] : box[3], box[0] : box[2]].any()
        changed[box[1] : box[3], box[0] : box[2]] = False
        assert not changed.any()

    def test_refusals(self) -> None:
        image = np.zeros((4, 4, 3), np.uint8)
        with pytest.raises(ValueError, match="colormap: 'jet', must be one of viridis"):
            heatmap_rgb(np.zeros((4, 4)), colormap="jet")
        with pytest.raises(ValueError, match="within 0 to 1"):
            heatmap_rgb(np.full((4, 4), 2.0))
        with pytest.raises(ValueError, match="must be equal"):
            overlay(image, np.zeros((2, 2)))
        with pytest.raises(ValueError, match="alpha: 70"):
            overlay(image, np.zeros((4, 4)), alpha=70)
        with pytest.raises(ValueError, match="must be uint8"):
            draw_box(image.astype(np.float32), None)
