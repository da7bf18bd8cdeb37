"""The tiles of a report: which are shown, that maps and boxes are those of Grad-CAM, and that a page stays small."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sscl import augment
from sscl.data.tiles import place_store
from sscl.evaluate.predictions import TilePredictions
from sscl.explain import cam
from sscl.explain.boxes import find_box
from sscl.explain.targets import DIFFERENCE, PREDICTED, Score, Target
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier
from sscl.plots import cam as cam_plots
from sscl.report import gallery


def predictions(count: int, *, classes: int = 2, wrong: float = 0.2, seed: int = 0, **more: object) -> TilePredictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    guess = np.where(rng.random(count) < wrong, (labels + 1) % classes, labels)
    top = rng.uniform(1 / classes + 0.01, 1, count)
    probabilities = np.repeat(((1 - top) / (classes - 1))[:, None], classes, 1)
    probabilities[np.arange(count), guess] = top
    return TilePredictions(
        ids=tuple(f"t{i}" for i in range(count)),
        classes=tuple(f"c{i}" for i in range(classes)),
        labels=labels,
        predictions=probabilities.argmax(1),
        losses=-np.log(probabilities[np.arange(count), labels]),
        probabilities=probabilities,
        **more,  # type: ignore[arg-type]
    )


class TestChoice:
    def test_all_tiles_where_they_fit(self) -> None:
        rows, said = gallery.choose(predictions(20), count=20)

        assert rows.tolist() == list(range(20))
        assert said == "all 20 tiles"

    def test_all_errors_then_the_least_confident_of_each_class(self) -> None:
        found = predictions(400, classes=3)
        rows, said = gallery.choose(found, count=200)

        right = found.predictions == found.labels
        assert len(rows) == 200 == len(set(rows.tolist()))
        assert rows.tolist() == sorted(rows.tolist())
        assert set(np.flatnonzero(~right)) <= set(rows.tolist())
        places = 200 - (~right).sum()
        confidence = found.probabilities.max(1)  # type: ignore[union-attr]
        for label in range(3):
            of_class = np.flatnonzero(right & (found.labels == label))
            least = of_class[np.argsort(confidence[of_class])][: places // 2 // 3]
            assert set(least) <= set(rows.tolist())
        assert f"all {(~right).sum()} errors" in said
        assert "errors are over-represented" in said

    def test_too_many_errors_are_shared_among_the_cells_most_confident_first(self) -> None:
        found = predictions(300, classes=3, wrong=0.9)
        rows, said = gallery.choose(found, count=9)

        cells = list(zip(found.labels[rows], found.predictions[rows], strict=True))
        assert all(truth != guess for truth, guess in cells)
        counts = [cells.count(cell) for cell in set(cells)]
        assert max(counts) - min(counts) <= 1
        confidence = found.probabilities.max(1)  # type: ignore[union-attr]
        for truth, guess in set(cells):
            here = (found.labels == truth) & (found.predictions == guess)
            assert confidence[here].max() in confidence[rows]
        assert said.startswith("9 of 300 tiles: 9 of ")

    def test_some_of_the_rest_are_drawn_by_the_seed(self) -> None:
        found = predictions(500, wrong=0)
        first, second, third = (set(gallery.choose(found, count=100, seed=seed)[0].tolist()) for seed in (0, 0, 1))

        assert first == second != third
        assert len(first & third) >= 50  # the least confident are the same

    def test_a_page_takes_a_bounded_number_and_says_so(self) -> None:
        rows, note = gallery.choose(predictions(6000), count=50_000)
        assert len(rows) == 5000
        assert note.startswith("5,000 of 6,000 tiles: at most 5,000")


class TestProbabilities:
    def test_of_many_classes_the_most_probable_and_those_asked_for(self) -> None:
        found = np.random.default_rng(0).dirichlet(np.ones(1000))
        kept = gallery.most_probable(found, also=(7, -1, 9))
        assert {7, 9} < set(kept)
        assert len(kept) <= 22
        assert set(np.argsort(-found)[:20].tolist()) <= set(kept)
        assert kept == {label: round(float(found[label]), 4) for label in sorted(kept)}


class TestMaps:
    def test_scaled_to_255_without_what_is_negative(self) -> None:
        raw = np.array([[-1.0, 0.5], [1.0, 2.0]], dtype=np.float32)

        assert list(base64.b64decode(gallery.encode_map(raw))) == [0, 64, 128, 255]
        assert gallery.encode_map(-raw.clip(0)) == ""

    def test_a_large_map_is_made_smaller_by_means(self) -> None:
        raw = np.zeros((56, 56), dtype=np.float32)
        raw[:2, :2] = 4
        raw[2:4, :2] = [[4, 0], [0, 4]]
        small = np.frombuffer(base64.b64decode(gallery.encode_map(raw)), np.uint8).reshape(28, 28)

        assert small[0, 0] == 255
        assert small[1, 0] == 128
        assert small.sum() == 255 + 128

    @pytest.mark.parametrize("target", [DIFFERENCE, PREDICTED, Target(Score.CLASS, 1)])
    def test_maps_and_boxes_are_those_of_cam_alone(self, target: Target) -> None:
        torch.manual_seed(0)
        model = Classifier(build_encoder("resnet14_small"), num_classes=2).eval()
        images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
        mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
        rows = np.array([3, 0, 4])

        heats = list(
            gallery.heats(
                model,
                place_store(images, device="cpu", budget_gb=1),
                rows,
                target=target,
                mean=mean,
                std=std,
                threshold=0.4,
                batch_size=2,
            )
        )

        for row, heat in zip(rows, heats, strict=True):
            x = augment.normalise(augment.to_unit(torch.from_numpy(images[row : row + 1])), mean=mean, std=std)
            raw, logits = cam.grad_cam(model, x, target=target)
            large = cam.upsample(raw, size_px=64)[0].numpy()
            np.testing.assert_allclose(heat.raw, raw[0].numpy(), atol=1e-5)
            assert heat.maximum == pytest.approx(float(large.max()), abs=1e-5)
            assert heat.box == pytest.approx(find_box(large, threshold=0.4)) or (
                heat.box is not None and heat.box.corners == find_box(large, threshold=0.4).corners  # type: ignore[union-attr]
            )
            assert heat.prediction == int(logits.argmax())


class TestPictures:
    def test_the_first_quality_that_is_small_enough(self) -> None:
        rng = np.random.default_rng(0)
        smooth = Image.fromarray(np.full((224, 224, 3), (200, 120, 180), dtype=np.uint8))
        noise = Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8))

        assert gallery.encode_picture(smooth)[1] == 85
        uri, quality = gallery.encode_picture(noise)
        data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        assert quality < 85
        assert len(data) <= gallery.PICTURE_BYTES
        assert Image.open(io.BytesIO(data)).size == (224, 224)
        larger = io.BytesIO()
        noise.save(larger, "JPEG", quality=gallery.QUALITIES[gallery.QUALITIES.index(quality) - 1], optimize=True)
        assert larger.tell() > gallery.PICTURE_BYTES

    def test_where_no_quality_is_small_enough_the_side_is_halved(self) -> None:
        noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8))

        uri, _ = gallery.encode_picture(noise, limit=4000)

        data = base64.b64decode(uri.partition(",")[2])
        assert len(data) <= 4000
        assert Image.open(io.BytesIO(data)).size == (112, 112)

    def test_files_give_their_side_and_no_more_than_224_px(self, tmp_path: Path) -> None:
        for side in (64, 500):
            Image.new("RGB", (side, side), (10, 20, 30)).save(tmp_path / f"{side}.png")

        small, large = gallery.pictures_of_files([tmp_path / "64.png", tmp_path / "500.png"])

        assert (small.region, small.image.size) == ((0, 0, 64, 64), (64, 64))
        assert (large.region, large.image.size) == ((0, 0, 500, 500), (224, 224))

    def test_pixels_are_scaled_down_and_have_no_file(self) -> None:
        images = [np.zeros((size, size, 3), dtype=np.uint8) for size in (28, 300)]

        sides = [(picture.region, picture.image.width) for picture in gallery.pictures_of_pixels(images)]

        assert sides == [(None, 28), (None, 224)]


def built(found: TilePredictions, rows: np.ndarray, *, raw: np.ndarray | None = None, **more: object) -> dict:
    raw = np.array([[0.0, 1.0], [2.0, 4.0]], dtype=np.float32) if raw is None else raw
    large = cam.upsample(torch.from_numpy(raw)[None], size_px=64)[0].numpy()
    heat = gallery.Heat(raw, float(large.max()), find_box(large, threshold=0.5), 0)
    picture = gallery.Picture(Image.new("RGB", (64, 64)), region=(8, 0, 128, 128))
    keys = {"size_px": 64, "target": "x", "threshold": 0.5, "decided_from": None, "notes": ["n"]} | more
    return gallery.build(found, rows, pictures=[picture] * len(rows), heats=[heat] * len(rows), **keys)  # type: ignore[arg-type]


class TestBuild:
    def test_every_tile_says_what_the_classifier_said(self) -> None:
        votes = np.array([0, 3, 4, 7, 6])
        found = predictions(5, votes=votes, groups=tuple("aabbc"))
        rows = np.array([4, 1])

        content = built(found, rows, decided_from=0.8)

        json.dumps(content, allow_nan=False)
        assert [tile["id"] for tile in content["tiles"]] == ["t4", "t1"]
        for tile, row in zip(content["tiles"], rows, strict=True):
            confidence = found.probabilities[row].max()  # type: ignore[index]
            assert tile["label"] == found.labels[row]
            assert tile["prediction"] == found.predictions[row]
            whole = dict(enumerate(found.probabilities[row]))  # type: ignore[index]
            assert tile["probabilities"] == pytest.approx(whole, abs=1e-4)
            assert tile["loss"] == pytest.approx(found.losses[row], abs=1e-4)
            assert tile["decided"] == (confidence >= 0.8)
            assert tile["region"] == [8, 0, 128, 128]
        assert [tile["agreement"] for tile in content["tiles"]] == ["6/7", "4/7"]
        assert [tile["group"] for tile in content["tiles"]] == ["c", "a"]
        assert content["map_side"] == 2
        assert content["tiles"][0]["maximum"] == 4

    def test_a_tile_at_the_threshold_is_decided(self) -> None:
        found = predictions(5)
        least = float(found.probabilities.max(1)[2])  # type: ignore[union-attr]

        for threshold, decided in ((least, True), (float(np.nextafter(least, 1)), False), (None, None)):
            (tile,) = built(found, np.array([2]), decided_from=threshold)["tiles"]
            assert tile["decided"] is decided

    def test_votes_mean_agreement_between_two_classes_only(self) -> None:
        found = predictions(5, classes=3, votes=np.arange(5))

        assert built(found, np.array([0]))["tiles"][0]["agreement"] is None

    def test_without_evidence_there_is_neither_map_nor_box(self) -> None:
        tile = built(predictions(3), np.array([0]), raw=-np.ones((2, 2), dtype=np.float32))["tiles"][0]

        assert tile["map"] == ""
        assert tile["box"] is None
        assert tile["maximum"] == -1

    def test_colours_are_those_of_the_heatmaps(self) -> None:
        content = built(predictions(3), np.array([0]))
        colours = np.frombuffer(base64.b64decode(content["colours"]), np.uint8).reshape(256, 3)

        levels = np.arange(256).reshape(16, 16) / 255
        np.testing.assert_array_equal(colours.reshape(16, 16, 3), cam_plots.heatmap_rgb(levels))


def test_a_thousand_tiles_of_noise_stay_below_30_mb() -> None:
    """The worst tile there is, noise with a full-sized map, times a thousand; the page adds less than a megabyte."""
    rng = np.random.default_rng(0)
    found = predictions(3, classes=9, groups=("patient-with-a-long-name",) * 3)
    raw = rng.random((28, 28), dtype=np.float32)
    large = cam.upsample(torch.from_numpy(raw)[None], size_px=224)[0].numpy()
    heat = gallery.Heat(raw, float(large.max()), find_box(large, threshold=0.2), 0)
    noise = gallery.Picture(
        Image.fromarray(rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)), region=(0, 0, 224, 224)
    )

    content = gallery.build(
        found,
        np.arange(3),
        pictures=[noise] * 3,
        heats=[heat] * 3,
        size_px=224,
        target="logit of the predicted class",
        threshold=0.2,
        decided_from=0.5,
        notes=[],
    )

    a_tile = len(json.dumps(content["tiles"])) / 3
    assert 1000 * a_tile < 29e6
