from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from sscl.explain import cam
from sscl.explain.boxes import find_box
from sscl.explain.cam import class_maps, fuse_maps, grad_cam
from sscl.explain.kinds import COMPLETE, FUSIONS, GRADCAM, METHODS, OF_ATTENTION, MapKind
from sscl.explain.targets import (
    DIFFERENCE,
    PREDICTED,
    AnyTarget,
    Score,
    Target,
    describe_target,
    describe_targets,
    resolve_target,
    target_classes,
)

FEATURE_METHODS = [name for name in METHODS if name not in OF_ATTENTION]
torchcam = pytest.importorskip("torchcam.methods")
GradCAM, LayerCAM = torchcam.GradCAM, torchcam.LayerCAM


class Narrow(ResNet):
    """torchvision's ResNet, of one block a stage and a quarter of its width."""

    def _make_layer(self, block: Any, planes: int, *rest: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *rest, **named)


class Net(nn.Module):
    """A narrow ResNet under the names that `grad_cam` asks for."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.resnet = Narrow(BasicBlock, [1, 1, 1, 1])
        self.resnet.fc = nn.Linear(128, num_classes)

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
        torch.manual_seed(6)  # each class has both signs in its map
        return Net(num_classes=num_classes).eval()


def seeded_images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(1))  # maps of 3 x 3


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
            model.resnet.fc.weight += torch.linspace(-1, 1, 128).double()
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
        maps, _ = grad_cam(model, images, target=PREDICTED)
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
            (2, "class 2, .* 0 to 1"),
            (-1, "class -1"),
            ((0, 5), "class 5"),
            ((1, 1), "two different classes"),
            (torch.tensor([0, 2]), "class 2"),
            (torch.tensor([0]), "one class per image"),
            (torch.tensor([[0, 1, 0], [0, 1, 0]]), "compared with itself"),
            (torch.zeros(2, 0, dtype=torch.long), "others"),
            (torch.tensor([[0, 1], [0, 2]]), "class 2"),
            (torch.tensor([0.0, 1.0]), "must be integers"),
        ],
    )
    def test_refuses_a_target_that_names_no_class(self, target: AnyTarget, message: str) -> None:
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
    @pytest.mark.parametrize("method", FEATURE_METHODS)
    def test_equal_to_the_package_grad_cam(self, method: str, layer: str) -> None:
        expected = np.load(GOLDEN.FILE)[f"{method} {layer}"]
        net = GOLDEN.GoldenNet().eval()
        maps, _ = class_maps(net, GOLDEN.images(), target=GOLDEN.TARGET, kind=MapKind(method, (layer,)))
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
            maps, logits = class_maps(model, images, target=target, kind=MapKind(method, (layer,)))
            torch.testing.assert_close(logits, model(images))
            with theirs(model, layer) as extractor:
                (expected,) = extractor(target, model(images))
            positive = maps.clamp_min(0)
            above = positive - positive.amin((1, 2), keepdim=True)
            ours = above / (above.amax((1, 2), keepdim=True) + 1e-8)  # torchcam's guard, felt by maps of 1e-4
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)
            shown.append(float((positive > 0).double().mean()))
        assert max(shown) > 0.15  # to compare zeros would say little

    @pytest.mark.parametrize("method", FEATURE_METHODS)
    def test_last_feature_map_is_the_default_and_has_a_name_too(self, method: str) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images().double()
        default, _ = class_maps(model, images, target=DIFFERENCE, kind=MapKind(method))
        named, _ = class_maps(model, images, target=DIFFERENCE, kind=MapKind(method, ("resnet.layer4",)))
        torch.testing.assert_close(default, named)

    def test_one_method_is_not_another(self) -> None:
        net, images = GOLDEN.GoldenNet().eval(), GOLDEN.images()
        maps = [class_maps(net, images, target=1, kind=MapKind(method))[0] for method in FEATURE_METHODS]
        for index, one in enumerate(maps):
            for other in maps[:index]:
                assert (one / one.norm() - other / other.norm()).norm() > 1e-3
        torch.testing.assert_close(grad_cam(net, images, target=1)[0], maps[0])

    def test_hirescam_is_grad_cam_before_pooling_and_a_linear_head_only(self) -> None:
        model, images = seeded_net().double(), seeded_images().double()
        torch.testing.assert_close(
            class_maps(model, images, target=1, kind=MapKind("hirescam"))[0], class_maps(model, images, target=1)[0]
        )

    def test_eigencam_by_its_definition_whatever_the_target(self) -> None:
        model, images = seeded_net().double(), seeded_images().double()
        maps, _ = class_maps(model, images, target=0, kind=MapKind("eigencam"))
        other, _ = class_maps(model, images, target=(1, 0), kind=MapKind("eigencam"))
        assert torch.equal(maps, other)
        with torch.no_grad():
            features = model.forward_features(images).numpy()
        for ours, one in zip(maps.numpy(), features, strict=True):
            cells = one.reshape(128, -1).T
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
        expected, _ = class_maps(model, images, target=DIFFERENCE, kind=MapKind("layercam", tuple(layers)))
        frozen = seeded_net().requires_grad_(False)
        with context():
            maps, logits = class_maps(frozen, images + 0, target=DIFFERENCE, kind=MapKind("layercam", tuple(layers)))
        torch.testing.assert_close(maps, expected)
        assert not maps.requires_grad
        assert not logits.requires_grad
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
        assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("layers", [["resnet.bn1"], ["resnet.layer1.0.bn2", "resnet.layer2.0.bn1"]])
    def test_what_follows_in_place_does_not_touch_the_layers_features(self, layers: list[str]) -> None:
        model, images = seeded_net(), seeded_images()
        maps, logits = class_maps(model, images, target=1, kind=MapKind("hirescam", tuple(layers)))
        torch.testing.assert_close(logits, model(images))
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        expected, _ = class_maps(model, images, target=1, kind=MapKind("hirescam", tuple(layers)))
        torch.testing.assert_close(maps, expected)
        assert (maps < 0).any() or len(layers) > 1  # a batch norm's, before the ReLU

    def test_no_hook_stays_after_an_error(self) -> None:
        model = seeded_net()
        with pytest.raises(ValueError, match="class 9"):
            class_maps(model, seeded_images(), target=9, kind=MapKind(layers=("resnet.layer3",)))
        with pytest.raises(RuntimeError):
            class_maps(model, torch.zeros(1, 4, 96, 96), target=0, kind=MapKind(layers=("resnet.layer3",)))
        assert not any(module._forward_hooks for module in model.modules())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "grad-cam"}, "method: got 'grad-cam', did you mean gradcam"),
            ({"fuse": "product"}, "fuse: got 'product', allowed are max, mean, sum"),
            ({"method": "rollout"}, "method: rollout needs a transformer"),
            ({"method": "rollout", "layers": ("resnet.layer3",)}, "layer: rollout goes through all blocks"),
            ({"layers": ["resnet.layr3"]}, r"layer: got 'resnet.layr3', .*; did you mean resnet.layer3\?"),
            ({"layers": ["resnet.fc"]}, r"layer: resnet.fc .*\(2, 2\)"),
            ({"layers": ["resnet.layer1.0.relu"]}, "layer: resnet.layer1.0.relu runs 2 times"),
            ({"layers": ["resnet.avgpool"]}, "layer: resnet.avgpool does not run"),
        ],
    )
    def test_refusals(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            class_maps(seeded_net(), seeded_images(), target=0, kind=MapKind(**options))


class TestTargets:
    def test_difference_is_the_predicted_class_minus_the_next(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images(4).double()
        maps, logits = grad_cam(model, images, target=DIFFERENCE)
        for index, row in enumerate(logits):
            first, second, _ = row.argsort(descending=True).tolist()
            expected, _ = grad_cam(model, images[index : index + 1], target=(first, second))
            torch.testing.assert_close(maps[index], expected[0])

    def test_pair_per_image(self) -> None:
        model, images = seeded_net(num_classes=3).double(), seeded_images().double()
        maps, _ = grad_cam(model, images, target=torch.tensor([[2, 0], [0, 1]]))
        for index, pair in enumerate([(2, 0), (0, 1)]):
            torch.testing.assert_close(maps[index], grad_cam(model, images, target=pair)[0][index])

    @pytest.mark.parametrize(
        ("name", "classes", "expected"),
        [
            ("auto", "ab", DIFFERENCE),
            ("auto", "abc", DIFFERENCE),
            ("difference", "ab", DIFFERENCE),
            ("predicted", "ab", PREDICTED),
            ("b", "abc", Target(Score.CLASS, 1)),
        ],
    )
    def test_names_of_the_configuration(self, name: str, classes: str, expected: Target) -> None:
        assert resolve_target(name, classes) == expected
        logits = torch.tensor([[0.1, 3.0, 2.0][: len(classes)], [5.0, -1.0, 2.0][: len(classes)]])
        runner_up = {2: [[1, 0], [0, 1]], 3: [[1, 2], [0, 2]]}[len(classes)]
        named = {DIFFERENCE: runner_up, PREDICTED: [[1], [0]]}.get(expected, [[1], [1]])
        assert target_classes(logits, expected).tolist() == named

    @pytest.mark.parametrize(("name", "classes", "message"), [("c", "ab", "got 'c'"), ("d", "abc", "got 'd'")])
    def test_names_that_are_refused(self, name: str, classes: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"target: .*{message}"):
            resolve_target(name, classes)

    @pytest.mark.parametrize("method", ["gradcam", "hirescam"])
    def test_gamma_is_between_the_predicted_logit_and_the_margin(self, method: str) -> None:
        model, images = seeded_net(num_classes=4), seeded_images()
        margin, alone = (
            class_maps(model, images, target=of, kind=MapKind(method))[0] for of in (DIFFERENCE, PREDICTED)
        )
        for gamma in (0, 0.6, 1):
            maps, logits = class_maps(model, images, target=DIFFERENCE, kind=MapKind(method, gamma=gamma))
            torch.testing.assert_close(maps, gamma * margin + (1 - gamma) * alone, atol=1e-5, rtol=1e-4)
            score, missed = cam.unexplained(maps, logits, bias=model.resnet.fc.bias, target=DIFFERENCE, gamma=gamma)
            assert missed.abs().max() < 1e-4
            best = (logits - model.resnet.fc.bias).gather(1, logits.topk(2).indices)
            torch.testing.assert_close(score.float(), best[:, 0] - gamma * best[:, 1], atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("references", [1, 3, 9])
    @pytest.mark.skipif(not hasattr(torchcam, "FinerCAM"), reason="torchcam 0.5, which needs Python 3.11, has it")
    def test_equal_to_torchcams_finer_cam(self, references: int) -> None:
        model, images = seeded_net(num_classes=5), seeded_images()
        target = Target(Score.DIFFERENCE, references=references)
        maps, logits = class_maps(model, images, target=target, kind=MapKind(gamma=0.6))
        others = {"gamma": 0.6, "num_references": references}
        with torchcam.FinerCAM(model, model.resnet.layer4, base_method=GradCAM, **others) as extractor:
            expected = extractor(logits.argmax(1).tolist(), model(images), normalized=False)[0]
        torch.testing.assert_close(maps.relu(), expected.relu(), atol=1e-6, rtol=1e-4)

    def test_in_words(self) -> None:
        hp, ssa, third = np.array([0.9, 0.1]), np.array([0.2, 0.8]), np.array([0.1, 0.3, 0.6])
        assert describe_target(DIFFERENCE, ("HP", "SSA"), ssa, kind=GRADCAM) == "logit SSA - HP"
        assert describe_target(DIFFERENCE, ("HP", "SSA", "AC"), third, kind=GRADCAM) == "logit AC - SSA"
        assert describe_target(PREDICTED, ("HP", "SSA"), hp, kind=GRADCAM) == "logit HP"
        assert describe_target(Target(Score.CLASS, 1), ("HP", "SSA"), hp, kind=GRADCAM) == "logit SSA"
        finer, three = MapKind(gamma=0.6), Target(Score.DIFFERENCE, references=2)
        assert describe_target(three, ("HP", "SSA", "AC"), third, kind=finer) == "logit AC - 0.6 x mean(SSA, HP)"
        assert "0.6 times the mean" in describe_targets(three, ("HP", "SSA", "AC"), kind=finer)
        two = MapKind(layers=("a", "b"))
        assert describe_target(PREDICTED, ("HP", "SSA"), hp, kind=two) == "logit HP at a, b (max)"
        words = [describe_targets(of, ("HP", "SSA"), kind=GRADCAM) for of in (DIFFERENCE, Target(Score.CLASS, 1))]
        assert words == ["logit of the predicted class minus that of the other", "logit of SSA"]
        assert "independent of the class" in describe_targets(PREDICTED, ("a", "b"), kind=MapKind("eigencam"))


class TestUnexplained:
    @pytest.mark.parametrize("method", COMPLETE)
    @pytest.mark.parametrize("target", [0, (2, 1), PREDICTED, DIFFERENCE, torch.tensor([1, 2])])
    def test_nothing_is_before_pooling_and_a_linear_head(self, method: str, target: AnyTarget) -> None:
        model, images = seeded_net(num_classes=3), seeded_images()
        with torch.no_grad():
            model.resnet.fc.bias.copy_(torch.tensor([5.0, -3.0, 4.0]))  # without it another class leads
        maps, logits = class_maps(model, images, target=target, kind=MapKind(method))
        score, missed = cam.unexplained(maps, logits, bias=model.resnet.fc.bias, target=target)
        free = (logits - model.resnet.fc.bias.detach()).double()
        for index, row in enumerate(target_classes(logits, target).tolist()):
            expected = free[index, row[0]] - (free[index, row[1]] if len(row) == 2 else 0)
            assert score[index].item() == pytest.approx(expected.item(), abs=1e-4)
        assert score.abs().max() > 0.01
        assert missed.abs().max() < 1e-5

    def test_much_is_by_other_methods_and_heads(self) -> None:
        model, images = seeded_net(), seeded_images()
        for method in ("gradcam++", "layercam", "eigencam"):
            maps, logits = class_maps(model, images, target=1, kind=MapKind(method))
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
        model, images, names = seeded_net(), seeded_images(), ["resnet.layer4", "resnet.layer2", "resnet.layer3.0"]
        for how in FUSIONS:
            together, _ = class_maps(model, images, target=1, kind=MapKind("layercam", tuple(names), how))
            each = [class_maps(model, images, target=1, kind=MapKind("layercam", (name,)))[0] for name in names]
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


class TestNoEvidence:
    def test_in_a_model_that_says_no_at_every_place(self) -> None:
        model = seeded_net()
        with torch.no_grad():
            model.resnet.fc.weight[1] = -model.resnet.fc.weight[1].abs()  # features are >= 0 after the ReLU
        maps, _ = grad_cam(model, seeded_images(), target=1)
        assert all(find_box(raw.numpy()) is None for raw in cam.upsample(maps, size_px=96))


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
