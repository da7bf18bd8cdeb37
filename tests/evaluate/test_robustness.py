"""The robustness index against a naive loop, and its ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sscl.evaluate.intervals import Sample, metric_interval
from sscl.evaluate.robustness import (
    Compared,
    Neighbourhood,
    chance_of,
    chosen_tiles,
    counts_of_neighbours,
    index_of,
    robustness_differences,
    summarise_robustness,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 120)
SITES = RNG.choice(["x", "y", "z"], 120)
SLIDES = np.char.add(SITES, RNG.choice(["1", "2", "3", "4"], 120))


def naive(features, labels, places, slides, k):
    """Neighbours one after another."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    same_class, same_place = [], []
    for i in range(len(labels)):
        similar = {
            j: float(features[i] @ features[j])
            for j in range(len(labels))
            if j != i and (slides is None or slides[j] != slides[i])
        }
        nearest = sorted(similar, key=lambda j: -similar[j])[:k]
        same_class.append(sum(labels[j] == labels[i] and places[j] != places[i] for j in nearest))
        same_place.append(sum(labels[j] != labels[i] and places[j] == places[i] for j in nearest))
    return same_class, same_place


@pytest.mark.parametrize("known", ["slides", "sites", "both"])
def test_neighbours_are_those_of_a_naive_loop(known):
    features = np.random.default_rng(1).normal(size=(120, 5))
    groups, sites = (None if known == "sites" else SLIDES), (None if known == "slides" else SITES)
    compared = Compared.of(LABELS, groups=groups, sites=sites)
    assert compared.confounder == ("group" if known == "slides" else "site")
    found = counts_of_neighbours(torch.tensor(features), compared, neighbours=7)
    places, apart = (SLIDES if known == "slides" else SITES), (SLIDES if known == "both" else None)
    expected = naive(features, LABELS, places, apart, 7)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.tolist() == theirs
    same_class, same_place = (np.array(one) for one in expected)
    assert index_of(*found, compared.sample).value == same_class.sum() / (same_class + same_place).sum()
    # with all others as neighbours the index is what chance gives
    everyone = counts_of_neighbours(torch.tensor(features), compared, neighbours=119)
    if known != "both":
        assert index_of(*everyone, compared.sample).value == pytest.approx(chance_of(compared))
    rates = naive(features, LABELS, places, apart, 119)
    allowed = np.array([sum(1 for s in apart if s != own) for own in apart]) if apart is not None else 119
    by_class, by_place = ((np.array(one) / allowed).sum() for one in rates)
    assert chance_of(compared) == pytest.approx(by_class / (by_class + by_place))


def test_features_of_the_class_alone_give_1_and_of_the_slide_alone_0():
    compared = Compared.of(LABELS, groups=SLIDES, sites=None)
    noise = 0.01 * np.random.default_rng(2).normal(size=(120, 12))
    _, slide = np.unique(SLIDES, return_inverse=True)
    for which, expected in ((LABELS, 1.0), (slide, 0.0)):
        features = torch.tensor(np.eye(12)[which] + noise)
        counts = counts_of_neighbours(features, compared, neighbours=3)
        assert index_of(*counts, compared.sample).value == pytest.approx(expected, abs=0.05)


def test_what_cannot_be_told_says_why():
    assert "no slides" in Compared.of(LABELS, groups=None, sites=None)
    assert "one slide" in Compared.of(LABELS, groups=np.full(120, "s"), sites=None)
    of_one_class = np.char.add("s", LABELS.astype(str))
    assert "tiles of two classes" in Compared.of(LABELS, groups=of_one_class, sites=None)
    assert "no site has" in Compared.of(LABELS, groups=SLIDES, sites=of_one_class)


def test_the_interval_is_over_slides_and_differences_are_paired():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    slides = np.char.mod("s%d", np.arange(400) // 10)
    compared = Compared.of(labels, groups=slides, sites=None)
    tiles = {"set": compared}

    def neighbourhood(name: str, seed: int, apart: float) -> Neighbourhood:
        # what tiles of a slide share, and what tiles of a class do
        noise = np.random.default_rng(seed)
        features = noise.normal(size=(40, 6))[np.arange(400) // 10] + noise.normal(size=(400, 6))
        features[:, 0] += apart * labels
        counts = counts_of_neighbours(torch.tensor(features), compared, neighbours=5)
        return Neighbourhood(name, seed, "set", index_of(*counts, compared.sample), 5)

    found = [neighbourhood(name, seed, apart) for name, apart in (("good", 8), ("poor", 0)) for seed in (0, 1)]
    good, poor = summarise_robustness(found, tiles)
    assert (good.groups, good.tiles, good.neighbours, good.confounder) == (40, 400, 5, "group")
    assert good.index > good.chance > poor.index
    assert good.index == pytest.approx(np.mean(good.values))
    for row in (good, poor):
        assert row.interval[0] < row.index < row.interval[1]
    (gain,) = robustness_differences(found, reference="poor")
    assert gain.difference == pytest.approx(good.index - poor.index)
    assert gain.interval[0] < gain.difference < gain.interval[1]  # wide: of two seeds
    (gain,) = robustness_differences([one for one in found if one.seed == 0], reference="poor")
    assert gain.interval[0] > 0
    loose = replace(found[2].estimate, sample=Sample(np.zeros_like(labels), 1, None))
    low, high = metric_interval(loose)
    assert high - low < poor.interval[1] - poor.interval[0]


def test_many_tiles_are_thinned_evenly():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    rows = chosen_tiles(labels, most=100)
    assert len(set(rows.tolist())) == 100
    assert np.bincount(labels[rows]).tolist() == pytest.approx([60, 30, 10], abs=1)
    assert chosen_tiles(labels).tolist() == list(range(1000))
