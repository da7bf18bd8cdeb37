"""The checks of heatmaps: against naive references, and on models whose answer is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from sscl.evaluate.verdicts import Mean, Outcome
from sscl.explain import box_checks, boxes, cam, map_checks
from sscl.explain.checks import check_maps, checks_text
from sscl.explain.deletion_insertion import _blurred, deletion_insertion, highlights_what_matters, order_curves
from sscl.explain.map_similarity import spearman, ssim
from sscl.explain.records import BoxAccuracy, MapChecks, OrderCurve, Randomisation
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from sscl.plots import checks as check_plots
from sscl.records import read_record

SIDE = 64


class RedNet(nn.Module):
    """Sees red in cells of 8 px: its evidence for class 1 is where a cell is redder than a blurred one."""

    def __init__(self, *, planted: bool = True, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 8, 8, stride=8)
            self.head = nn.Linear(8, 2)
        self.eval()
        if planted:
            with torch.no_grad():
                self.conv.weight.zero_()
                self.conv.weight[0, 0] = 1 / 64
                self.conv.bias.zero_()
                self.conv.bias[0] = -0.5
                self.head.weight.zero_()
                self.head.weight[1, 0] = 400.0
                self.head.bias.copy_(torch.tensor([4.0, 0.0]))

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def forward_head(self, maps: Tensor) -> Tensor:
        return self.head(maps.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class BlindNet(RedNet):
    """Ignores its tile: its features are a fixed pattern, whatever the weights."""

    def __init__(self, pattern: Tensor, *, seed: int = 0) -> None:
        super().__init__(planted=False, seed=seed)
        self.register_buffer("pattern", pattern, persistent=False)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.pattern.expand(len(x), 8, -1, -1)


def red_tiles(count: int = 8) -> tuple[Tensor, list[tuple[int, int]]]:
    """Tiles of noise with a red square of 16 px on the grid of cells, never at the centre, and its corners."""
    rng = np.random.default_rng(3)
    tiles = torch.from_numpy(rng.normal(0, 0.2, (count, 3, SIDE, SIDE)).astype(np.float32))
    corners = []
    for tile in tiles:
        y, x = 8 * rng.choice([0, 1, 5, 6], 2)
        tile[0, y : y + 16, x : x + 16] += 1.5
        corners.append((int(y), int(x)))
    return tiles, corners


def explain(net: Any, images: Tensor, classes: Tensor) -> Tensor:
    return cam.grad_cam(net, images, target=classes)[0]


def ones(count: int) -> Tensor:
    return torch.ones(count, 1, dtype=torch.int64)


def randomised(model: nn.Module, blanks: list[nn.Module], *, tiles: int = 8, **options: Any) -> Randomisation:
    images, how = red_tiles(tiles)[0], options.pop("explain", explain)
    return map_checks.randomisation(model, blanks, images, ones(tiles), explain=how, **options)


class TestSimilarity:
    @pytest.mark.parametrize("seed", range(4))
    def test_rank_correlation_is_scipys_with_ties_too(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(5, 7)), rng.integers(0, 4, size=(5, 7))
        for first, second in ((a, b), (a, a**3), (b, -b), (b, rng.integers(0, 3, size=(5, 7)))):
            assert spearman(first, second) == pytest.approx(
                spearmanr(first.ravel(), second.ravel()).statistic, abs=1e-12
            )

    def test_a_constant_has_no_order(self) -> None:
        a = np.arange(9.0).reshape(3, 3)
        assert math.isnan(spearman(a, np.ones((3, 3))))
        assert math.isnan(spearman(np.zeros((3, 3)), a))
        assert math.isnan(spearman(1 + 1e-9 * a, a))  # rounding
        assert spearman(1 + 1e-3 * a, a) == 1

    def test_ssim_is_its_definition(self) -> None:
        rng = np.random.default_rng(0)
        a = rng.random((17, 14))
        b = 0.6 * a + 0.4 * rng.random((17, 14))
        offsets = np.arange(11) - 5
        window = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
        window /= window.sum()
        values = []
        for row in range(17 - 10):
            for column in range(14 - 10):
                x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                c1, c2 = 1e-4, 9e-4
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
        assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-9)
        assert ssim(a, a) == pytest.approx(1)
        assert ssim(a, b) < 0.95

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="must be equal"):
            spearman(np.zeros(3), np.zeros(4))
        with pytest.raises(ValueError, match="11 px or more"):
            ssim(np.zeros((10, 20)), np.zeros((10, 20)))


class TestCascade:
    @pytest.mark.parametrize("name", ["resnet14_small", "efficientnet_lite0", "timm:convnext_atto", "timm:test_vit"])
    def test_parts_hold_every_weight_once_and_start_at_the_head(self, name: str) -> None:
        model = Classifier(build_encoder(name), num_classes=2)
        parts = map_checks.stages(model)
        assert parts[0] == ("head", ["head"])
        assert len(parts) >= 4
        for key in model.state_dict():
            assert sum(key == p or key.startswith(f"{p}.") for _, prefixes in parts for p in prefixes) == 1, key

    def test_resnet_goes_block_by_block_down_to_the_stem(self) -> None:
        with torch.device("meta"):
            names = [name for name, _ in map_checks.stages(Classifier(build_encoder("resnet18"), num_classes=2))]
        blocks = [f"encoder.layer{layer}.{block}" for layer in (4, 3, 2, 1) for block in (1, 0)]
        assert names == ["head", *blocks, "encoder.conv1"]

    def test_each_step_makes_one_part_more_random_as_the_model_is_before_training(self) -> None:
        torch.manual_seed(0)
        model, blank = (Classifier(build_encoder("resnet14_small"), num_classes=2).eval() for _ in range(2))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        done: set[str] = set()
        for (name, mixed), (_, prefixes) in zip(
            map_checks.cascade(model, blank), map_checks.stages(model), strict=True
        ):
            done |= {key for key in before for prefix in prefixes if key.startswith(f"{prefix}.")}
            state = mixed.state_dict()
            for key, value in state.items():
                assert torch.equal(value, (blank.state_dict() if key in done else before)[key]), (name, key)
        assert done == set(before)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class TestRandomisation:
    def test_a_planted_model_passes(self) -> None:
        found = randomised(RedNet(), [RedNet(planted=False, seed=seed) for seed in (1, 2, 3)], tiles=32)
        assert found.outcome is Outcome.PASSED
        assert found.verdict.startswith("passed: ")
        assert found.stages == ("head", "conv")
        assert (found.draws, found.tiles, found.cells) == (3, 32, 64)

    def test_numbers_are_those_of_a_loop(self) -> None:
        model, blanks = RedNet(), [RedNet(planted=False, seed=seed) for seed in (1, 2)]
        found = randomised(model, blanks, batch_size=3)
        tiles = red_tiles()[0]
        own = explain(model, tiles, ones(8)).double()
        rho, alike = np.zeros((2, 8)), np.zeros((2, 8))
        for draw, blank in enumerate(blanks):
            theirs = explain(blank, tiles, ones(8)).double()
            for tile in range(8):
                value = spearmanr(own[tile].numpy().ravel(), theirs[tile].numpy().ravel()).statistic
                rho[draw, tile] = value if np.isfinite(value) else 0
                drawn = [
                    boxes.normalise(cam.upsample(m[tile][None], size_px=SIDE)[0].numpy()).astype(float)
                    for m in (own, theirs)
                ]
                alike[draw, tile] = ssim(*drawn)
        for spread, values in (
            (found.absolute_rank_correlation, np.abs(rho)),
            (found.rank_correlation, rho),
            (found.ssim, alike),
        ):
            assert spread.mean[-1] == pytest.approx(values.mean(), abs=1e-5)
            assert spread.sd[-1] == pytest.approx(values.mean(0).std(ddof=1), abs=1e-5)

    def test_a_model_that_ignores_its_tile_fails(self) -> None:
        pattern = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(8, 8, 8)
        found = randomised(BlindNet(pattern), [BlindNet(pattern, seed=seed) for seed in (1, 2)])
        assert found.outcome is Outcome.FAILED
        assert found.verdict.startswith("FAILED: ")
        assert "at all" in found.verdict
        assert found.absolute_rank_correlation.mean == pytest.approx([1.0, 1.0])

    def test_a_map_that_is_mostly_there_without_training_fails(self) -> None:
        fixed = torch.linspace(0, 1, 64).reshape(8, 8)

        def shaken(net: Any, images: Tensor, classes: Tensor) -> Tensor:
            noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(int(1e6 * net.head.weight[0, 0].abs())))
            return (fixed + 0.2 * noise).expand(len(images), 8, 8)

        found = randomised(RedNet(), [RedNet(planted=False)], tiles=32, explain=shaken)
        assert found.outcome is Outcome.FAILED
        assert "0.5" in found.verdict
        few = map_checks.randomisation(RedNet(), [RedNet(planted=False)], red_tiles()[0][:5], ones(5), explain=shaken)
        assert few.outcome is Outcome.INCONCLUSIVE

    def test_constant_maps_are_not_assessed(self) -> None:
        pattern = torch.ones(8, 8, 8)
        found = randomised(BlindNet(pattern), [BlindNet(pattern, seed=1)])
        assert found.outcome is Outcome.NOT_ASSESSED
        assert "every map is constant" in found.verdict

    def test_maps_of_few_cells_are_not_assessed(self) -> None:
        def coarse(net: Any, images: Tensor, classes: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(explain(net, images, classes)[:, None], 4)[:, 0]

        found = randomised(RedNet(), [RedNet(planted=False, seed=1)], explain=coarse)
        assert found.outcome is Outcome.NOT_ASSESSED
        assert "4 cells" in found.verdict

    def test_a_random_model_without_any_map_is_another_map(self) -> None:
        dead = RedNet(planted=False)
        with torch.no_grad():
            dead.conv.bias.fill_(-100)
        found = randomised(RedNet(), [dead])
        assert found.absolute_rank_correlation.mean[-1] == 0
        assert found.outcome is Outcome.PASSED

    def test_chance_of_unrelated_maps(self) -> None:
        rng = np.random.default_rng(0)
        for cells in (16, 49):
            first, second = rng.random((2, 2000, cells)).argsort(-1).argsort(-1) - (cells - 1) / 2  # ranks
            assert spearman(first[0], second[0]) == pytest.approx((first[0] @ second[0]) / (first[0] @ first[0]))
            found = np.abs((first * second).sum(-1) / (first[0] @ first[0])).mean()
            assert map_checks.chance_correlation(cells) == pytest.approx(found, abs=0.01)


class TestDeletionInsertion:
    def test_planted_evidence_beats_chance_both_ways(self) -> None:
        tiles, _ = red_tiles(16)
        found = deletion_insertion(RedNet(), tiles, ones(16), explain(RedNet(), tiles, ones(16)))
        assert found.outcome is Outcome.PASSED
        for said in ("deletion beats random order", "deletion beats centre", "insertion beats random order"):
            assert said in found.verdict
        assert found.deletion["map"].auc < found.deletion["random order"].auc - 0.2
        assert found.insertion["map"].auc > found.insertion["centre"].auc + 0.03

    def test_a_model_that_is_sure_whatever_it_sees_are_not_assessed(self) -> None:
        """Its probability is 1 to many digits; the order of the remaining ones would be a verdict on rounding."""
        tiles, _ = red_tiles(16)
        sure = RedNet()
        with torch.no_grad():
            sure.head.bias.copy_(torch.tensor([-30.0, 0.0]))
        found = deletion_insertion(sure, tiles, ones(16), explain(sure, tiles, ones(16)))
        assert found.moves < 1e-3
        assert found.outcome is Outcome.NOT_ASSESSED
        assert found.outcome is Outcome.NOT_ASSESSED

    @pytest.mark.parametrize("kind", ["constant", "opposite", "another model's"])
    def test_maps_that_say_nothing_fail(self, kind: str) -> None:
        tiles, _ = red_tiles(32)
        own = explain(RedNet(), tiles, ones(32))
        maps = {
            "constant": torch.ones_like(own),
            "opposite": -own,
            "another model's": torch.rand(own.shape, generator=torch.Generator().manual_seed(1)),
        }[kind]
        found = deletion_insertion(RedNet(), tiles, ones(32), maps)
        assert found.outcome is Outcome.FAILED
        assert found.verdict.startswith("FAILED: ")

    def test_curves_are_those_of_a_loop_over_pixels(self) -> None:
        tiles, _ = red_tiles(2)
        net = RedNet()
        raw = torch.rand(2, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).double()  # no ties
        found = deletion_insertion(net, tiles, ones(2), raw, batch_size=1)
        blurred = _blurred(tiles)
        assert (blurred.std((2, 3)) < 0.6 * tiles.std((2, 3))).all()
        for way, start, end in (("deletion", tiles, blurred), ("insertion", blurred, tiles)):
            curve = np.zeros((2, 11))
            for tile in range(2):
                order = raw[tile].flatten().argsort(descending=True)
                for step in range(11):
                    mixed = start[tile].clone().reshape(3, -1)
                    first = order[: math.ceil(SIDE * SIDE * step / 10 - 1e-9)]
                    mixed[:, first] = end[tile].reshape(3, -1)[:, first]
                    curve[tile, step] = net(mixed.reshape(1, 3, SIDE, SIDE)).softmax(1)[0, 1].item()
            of = getattr(found, way)["map"]
            np.testing.assert_allclose(of.curve, curve.mean(0), atol=1e-5)
            assert of.auc == pytest.approx(np.trapezoid(curve, dx=0.1, axis=1).mean(), abs=1e-5)

    def test_intervals_are_of_the_tiles_and_of_their_own_differences(self) -> None:
        rng = np.random.default_rng(0)
        curves = {name: rng.random((4, 11)) for name in ("map", "random order", "centre")}
        found = order_curves(curves, groups=None, span=0.4)
        areas = {name: np.trapezoid(curve, dx=0.1, axis=1) for name, curve in curves.items()}
        for name, of in found.items():
            assert of.curve == pytest.approx(curves[name].mean(0))
            assert of.auc == pytest.approx(areas[name].mean())
            assert of.interval == pytest.approx(Mean.of(areas[name], span=0.4).interval)
            if name == "map":
                assert (of.difference, of.difference_interval) == (None, None)
                continue
            less = areas["map"] - areas[name]
            assert of.difference == pytest.approx(less.mean())
            assert of.difference_interval == pytest.approx(Mean.of(less, span=0.4, bounds=(-1, 1)).interval)

    def test_of_one_slide_there_is_no_interval(self) -> None:
        tiles, _ = red_tiles(8)
        found = deletion_insertion(RedNet(), tiles, ones(8), explain(RedNet(), tiles, ones(8)), groups=["a"] * 8)
        assert found.deletion["map"].interval is found.insertion["centre"].difference_interval is None
        assert found.outcome is Outcome.INCONCLUSIVE
        assert type(found).model_validate_json(found.model_dump_json()) == found
        assert "1 slide or patient is too few" in found.verdict

    def test_evidence_in_the_centre_passes_though_it_does_not_beat_the_centre(self) -> None:
        def curves(random_order: tuple[float, float]) -> dict[str, OrderCurve]:
            same = {"curve": (0.5, 0.5), "auc": 0.5, "interval": (0.4, 0.6)}
            intervals = {"random order": random_order, "centre": (-0.1, 0.1)}
            return {name: OrderCurve(**same, difference_interval=interval) for name, interval in intervals.items()}

        better, worse = curves((-0.2, -0.1)), curves((0.1, 0.2))
        outcome, reason = highlights_what_matters(0.5, better, worse, tiles=16, groups=None)
        assert outcome is Outcome.PASSED
        assert "deletion beats random order, deletion ties with centre, insertion beats random order" in reason
        outcome, reason = highlights_what_matters(0.5, worse, worse, tiles=16, groups=None)
        assert outcome is Outcome.FAILED
        assert "deletion loses to random order" in reason
        assert (
            highlights_what_matters(0.5, better, worse, tiles=5, groups=None)[0] is Outcome.INCONCLUSIVE
        )  # too few to tell
        outcome, reason = highlights_what_matters(0.5, better, worse, tiles=16, groups=4)
        assert outcome is Outcome.INCONCLUSIVE
        assert "4 slides or patients are too few" in reason
        unsure = curves((-0.1, 0.1))  # up to 0.1 better, where 0.05 would matter
        assert highlights_what_matters(0.5, unsure, worse, tiles=16, groups=None)[0] is Outcome.INCONCLUSIVE
        assert highlights_what_matters(5, unsure, worse, tiles=16, groups=None)[0] is Outcome.FAILED  # 0.5 would matter

    def test_same_seed_same_numbers(self) -> None:
        tiles, _ = red_tiles(4)
        maps = explain(RedNet(), tiles, ones(4))
        one, two, other = (deletion_insertion(RedNet(), tiles, ones(4), maps, seed=seed) for seed in (0, 0, 1))
        assert one == two
        assert one.deletion["map"].curve == other.deletion["map"].curve
        assert one.deletion["random order"].curve != other.deletion["random order"].curve

    def test_the_explained_class_is_the_first_of_a_pair(self) -> None:
        tiles, _ = red_tiles(2)
        maps = explain(RedNet(), tiles, ones(2))
        pair = deletion_insertion(RedNet(), tiles, torch.tensor([[1, 0]] * 2), maps)
        assert pair.deletion["map"] == deletion_insertion(RedNet(), tiles, ones(2), maps).deletion["map"]


class TestEquivariance:
    def test_a_model_of_whole_cells_turns_with_its_tile(self) -> None:
        found = map_checks.equivariance(RedNet(), red_tiles()[0], ones(8), explain=explain, batch_size=3)
        assert found.outcome is Outcome.PASSED
        assert len(found.symmetries) == 7
        assert found.mean == pytest.approx(1, abs=1e-6)

    def test_a_model_that_looks_at_places_fails(self) -> None:
        pattern = torch.arange(64.0).reshape(8, 8).expand(8, 8, 8)
        found = map_checks.equivariance(BlindNet(pattern), red_tiles()[0], ones(8), explain=explain)
        assert found.outcome is Outcome.FAILED
        assert found.symmetries["180°"] == pytest.approx(-1)
        assert "-1.00 at 180°" in found.verdict

    def test_constant_maps_are_not_assessed(self) -> None:
        found = map_checks.equivariance(BlindNet(torch.ones(8, 8, 8)), red_tiles()[0], ones(8), explain=explain)
        assert found.outcome is Outcome.NOT_ASSESSED

    def test_the_eight_are_eight_and_each_is_undone(self) -> None:
        x = torch.arange(9.0).reshape(1, 3, 3)
        seen = set()
        for turns in range(4):
            for flip in (False, True):
                moved = map_checks.turned(x, turns, flip=flip)
                seen.add(tuple(moved.flatten().tolist()))
                assert torch.equal(map_checks.turned(moved, turns, flip=flip, back=True), x)
        assert len(seen) == 8


class TestBoxes:
    def test_a_plateau_has_one_box(self) -> None:
        raw = np.zeros((40, 40))
        raw[10:20, 5:25] = 3.0
        assert box_checks.box_sensitivity([raw] * 5, threshold=0.2).outcome is Outcome.INCONCLUSIVE
        found = box_checks.box_sensitivity([*[raw] * 5, 2 * raw, -raw], threshold=0.2)
        assert found.tiles == 6  # the last has no evidence
        assert found.outcome is Outcome.PASSED
        assert found.ends == 1
        assert set(found.area_fraction.mean) == {200 / 1600}
        assert set(found.iou.mean) == {1.0}
        assert set(found.centre_shift.mean) == {0.0}

    def test_a_slope_has_the_box_of_its_threshold(self) -> None:
        raw = np.tile(np.linspace(0, 1, 101)[1:], (100, 1))  # 0.01 to 1 from left to right
        found = box_checks.box_sensitivity([raw] * 6, threshold=0.2)
        expected = [1 - round(100 * t - 1) / 100 for t in found.thresholds]  # columns of at least t
        assert found.area_fraction.mean == pytest.approx(expected, abs=0.011)
        assert found.centre_shift.mean[-1] == pytest.approx(0.2, abs=0.006)
        assert found.iou.mean[found.thresholds.index(0.2)] == 1
        assert found.iou.mean[-1] == pytest.approx(0.41 / 0.81, abs=0.01)
        assert (found.whole_tile, found.ends) == (6, 0)  # 81% of the tile says no place
        assert found.outcome is Outcome.FAILED
        areas = found.area_fraction.mean
        assert f"{areas[0]:.0%} of the tile at 0.1, {areas[-1]:.0%} at 0.6" in found.verdict

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
    def test_of_a_gaussian_spot_the_boxes_a_fifth_apart_are_known(self, threshold: float) -> None:
        y, x = np.mgrid[:200, :200]
        raw = np.exp(-((y - 100) ** 2 + (x - 100) ** 2) / (2 * 25**2))
        found = box_checks.box_sensitivity([raw] * 30, threshold=threshold)
        assert found.ends == pytest.approx(np.log(1.2 * threshold) / np.log(0.8 * threshold), abs=0.04)
        if threshold == 0.5:
            assert found.outcome is Outcome.PASSED

    def test_boxes_of_the_whole_tile_fail_though_no_threshold_changes_them(self) -> None:
        raw = np.ones((40, 40))
        raw[20, 20] = 1.5
        found = box_checks.box_sensitivity([raw] * 8, threshold=0.2)
        assert (found.whole_tile, found.ends, found.outcome) == (8, 0, Outcome.FAILED)
        assert "no localisation" in found.verdict
        assert set(found.area_fraction.mean) == {1.0}

    def test_no_evidence_no_verdict(self) -> None:
        found = box_checks.box_sensitivity([-np.ones((8, 8)), np.ones((8, 8))], threshold=0.2)  # the second boxes all
        assert found.outcome is Outcome.NOT_ASSESSED

    def test_overlap_at_each_threshold_is_that_of_the_box(self) -> None:
        y, x = np.mgrid[:40, :40]
        raw = np.exp(-((y - 15) ** 2 + (x - 20) ** 2) / 50)
        mask = np.zeros((40, 40), bool)
        mask[10:20, 15:27] = True
        thresholds = box_checks.ACCURACY_THRESHOLDS
        expected = [boxes.localisation(raw, boxes.find_box(raw, threshold=t), mask).box_iou for t in thresholds]
        assert box_checks.box_overlaps(raw, mask).tolist() == pytest.approx(expected)
        assert not box_checks.box_overlaps(-raw, mask).any()

    def test_a_gain_is_taken_tile_by_tile(self) -> None:
        rng = np.random.default_rng(0)
        theirs = rng.random(40)
        found = box_checks.gain(theirs + 0.1 + 0.01 * rng.standard_normal(40), theirs, groups=None)
        assert found.mean == pytest.approx(0.1, abs=0.01)
        assert found.interval is not None
        assert found.interval[0] < 0.1 < found.interval[1]
        assert box_checks.gain(theirs, theirs, groups=np.array(["one"] * 40)).interval is None

    def test_best_threshold_is_one_for_all_tiles(self) -> None:
        overlaps = np.zeros((3, len(box_checks.ACCURACY_THRESHOLDS)))
        overlaps[:, :3] = [[0.2, 0.6, 0.4], [0.8, 0.5, 0.1], [0.3, 0.55, 0.75]]  # at 0.05, 0.1 and 0.15
        found = box_checks.max_box_accuracy(overlaps)
        assert found == {
            "0.3": BoxAccuracy(accuracy=1.0, threshold=0.1),
            "0.5": BoxAccuracy(accuracy=1.0, threshold=0.1),
            "0.7": BoxAccuracy(accuracy=1 / 3, threshold=0.05),
        }


def test_the_four_checks_come_back_from_their_file(tmp_path: Path) -> None:
    tiles, _ = red_tiles(4)
    found = check_maps(
        RedNet(),
        tiles,
        ones(4),
        explain=explain,
        random_models=[RedNet(planted=False, seed=1)],
        threshold=0.3,
        seed=0,
        batch_size=4,
        progress=False,
    )
    names = ["checks.json", "randomisation.png", "deletion_insertion.png", "box_sensitivity.png"]
    assert check_plots.write_checks(found, out=tmp_path, title="$x$") == names
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert read_record(MapChecks, tmp_path / "checks.json", made_by="a test") == found
    assert max(map(len, checks_text(found).splitlines())) <= 80
    text = " ".join(checks_text(found).split())
    for check in found.each.values():
        assert check.question in text
        assert check.verdict in text
    assert found.box_sensitivity.threshold == 0.3
