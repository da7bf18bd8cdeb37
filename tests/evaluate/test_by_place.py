"""Metrics by slide or site."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from sscl.data.tiles import Tiles
from sscl.evaluate import by_place
from sscl.evaluate.by_place import as_lines, metrics_by_place, worst_in_words
from sscl.evaluate.proportions import proportion_interval
from sscl.words import width_of


def tiles(labels: np.ndarray, **known: np.ndarray) -> Tiles:
    n = len(labels)
    images = np.zeros((n, 2, 2, 3), dtype=np.uint8)
    return Tiles(images=images, labels=labels, classes=("a", "b"), ids=tuple(map(str, range(n))), **known)


def wrong_at(labels: np.ndarray, where: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    missed = where & (rng.random(len(labels)) < share)
    return np.where(missed, 1 - labels, labels)


@pytest.fixture
def hospitals() -> tuple[Tiles, np.ndarray]:
    """Three sites of 20 slides of 10 tiles; north is wrong in 40%, the others in 10%."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    sites = np.repeat(["east", "north", "west"], 200)
    found = wrong_at(labels, sites == "north", 0.4, rng)
    found = wrong_at(found, sites != "north", 0.1, rng)
    slides = np.char.add(sites, np.char.mod("%d", np.arange(600) // 10))
    return tiles(labels, sites=sites, groups=slides), found


def test_metrics_of_each_site_are_those_of_its_tiles(hospitals):
    data, predictions = hospitals
    found = metrics_by_place(data, predictions, by="site")
    assert [place.tiles for place in found.places] == [200] * 3
    accuracies = [place.accuracy for place in found.places]
    assert accuracies == sorted(accuracies)
    for place in found.places:
        here = data.sites == place.name
        assert place.slides == 20
        assert place.accuracy == pytest.approx((predictions == data.labels)[here].mean())
        assert place.balanced_accuracy == pytest.approx(balanced_accuracy_score(data.labels[here], predictions[here]))
        low, high = place.balanced_accuracy_interval
        assert low < place.balanced_accuracy < high
        assert sum(place.class_counts.values()) == 200
    assert (found.worst, found.worse) == ("north", ("north",))
    assert found.places[0].difference == pytest.approx(accuracies[0] - np.mean(accuracies[1:]))


def test_the_lowest_of_equal_slides_is_inconclusive():
    """Of 40 slides of equal accuracy the lowest is low by chance, and that is said."""
    named = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 800)
        data = tiles(labels, groups=np.char.mod("s%d", np.arange(800) // 20))
        predictions = wrong_at(labels, np.ones(800, dtype=bool), 0.2, rng)
        found = metrics_by_place(data, predictions, by="group")
        named.append(bool(found.worse))
        assert found.places[0].accuracy < 0.75
        assert found.worst == found.places[0].name
    assert sum(named) <= 2


def test_a_slide_has_the_interval_of_its_tiles_and_a_small_one_none():
    labels = np.array([0, 1] * 10 + [0, 0])
    groups = np.array(["large"] * 20 + ["small"] * 2)
    predictions = np.where(np.arange(22) < 5, 1 - labels, labels)
    found = {
        place.name: place for place in metrics_by_place(tiles(labels, groups=groups), predictions, by="group").places
    }
    assert found["large"].accuracy_interval == pytest.approx(proportion_interval(15, 20))
    assert found["small"].accuracy == 1
    assert found["small"].accuracy_interval is None
    assert found["small"].balanced_accuracy is None
    both = metrics_by_place(tiles(labels, groups=groups), predictions, by="group")
    assert (both.worst, both.worse) == (None, ())
    assert "too few tiles" in "\n".join(as_lines(both))


def test_a_slide_with_few_tiles_of_a_class_is_not_said_to_have_too_few_slides():
    labels = np.array(([0] * 18 + [1] * 2) * 2)
    found = metrics_by_place(tiles(labels, groups=np.repeat(["a", "b"], 20)), labels, by="group")
    assert found.places[0].balanced_accuracy_interval is None
    assert [line.split()[-3:] for line in as_lines(found)[2:4]] == [["too", "few", "tiles"]] * 2


def test_p_is_corrected_for_as_many_slides_as_are_said_to_be_tested():
    """Those with too few tiles are not."""
    labels = np.arange(212) % 2
    groups = np.array([f"s{i // 25}" for i in range(200)] + [f"small{i}" for i in range(12)])
    found = metrics_by_place(
        tiles(labels, groups=groups), np.where(np.arange(212) < 20, 1 - labels, labels), by="group"
    )
    assert found.worse == ("s0",)
    assert "corrected for 8 slides" in worst_in_words(found)
    alike = metrics_by_place(tiles(labels, groups=groups), np.where(np.arange(212) < 1, 1 - labels, labels), by="group")
    assert "the lowest of 8 " in worst_in_words(alike)


def test_few_slides_at_a_site_are_too_few_to_tell():
    labels = np.arange(80) % 2
    data = tiles(labels, sites=np.repeat(["a", "b"], 40), groups=np.arange(80).astype(str)[np.arange(80) // 20])
    found = metrics_by_place(data, np.where(np.arange(80) < 30, 1 - labels, labels), by="site")
    assert found.worst == "a"
    assert found.worse == ()
    assert found.places[0].p is None
    assert found.places[0].accuracy_interval is None
    assert "inconclusive" in worst_in_words(found)


def test_unknown_sites_say_what_to_give(hospitals):
    data, predictions = hospitals
    with pytest.raises(ValueError, match=r"^by: got site.*column 'site'"):
        metrics_by_place(tiles(data.labels), predictions, by="site")


def test_the_table_fits_the_terminal(hospitals):
    data, predictions = hospitals
    names = np.array([f"a hospital with a long name {name}" for name in data.sites])
    found = metrics_by_place(tiles(data.labels, sites=names, groups=data.groups), predictions, by="site")
    assert max(map(width_of, as_lines(found))) <= 80
    slides = as_lines(metrics_by_place(data, predictions, by="group"))
    assert f"  and {60 - by_place.SHOWN} more, in metrics.json" in slides
