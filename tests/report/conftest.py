"""Audits and checks of heatmaps that are made up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sscl.data.audit import Audit
from sscl.explain.records import (
    BoxSensitivity,
    DeletionInsertion,
    Equivariance,
    MapChecks,
    OrderCurve,
    Randomisation,
    Spread,
    verdict_of,
)


def make_audit(*, pairs: int = 0, leakage: bool | None = None, verdict: str | None = None) -> Audit:
    """An audit of 1,200 tiles that found `pairs` exact pairs across the splits."""
    pair = {
        "kind": "exact",
        "across": True,
        "first": {"part": "train", "id": "<a>"},
        "second": {"part": "test", "id": "b"},
        "score": 1.0,
        "movement": "",
        "hash_distance": None,
        "keypoints": None,
        "overlap": None,
        "labelled_otherwise": False,
    }
    leaks = pairs > 0 if leakage is None else leakage
    return Audit.model_validate(
        {
            "leakage": leaks,
            "verdict": verdict or ("THE SPLIT LEAKS: x" if leaks else "no leakage found: x"),
            "parts": {"train": {"root": "r", "tiles": 1000, "class_counts": {}, "groups": None}},
            "tiles_with_near_duplicates": {},
            "counts": {
                "tiles": 1200,
                "pairs": {"exact": pairs, "hash": 0, "keypoints": 0, "embedding": 0},
                "pairs_across": pairs,
                "pairs_labelled_otherwise": 0,
                "clusters": 1,
                "tiles_in_clusters": 2,
                "largest_cluster": 2,
                "flagged": {"blank": 3},
            },
            "straddling_groups": {},
            "pairs": [pair] * pairs,
            "clusters": [],
            "flagged": [],
            "method": {"size_px": 64, "neighbours": 5, "encoder": None, "min_cosine": None},
            "notes": ["no slide ids"],
        }
    )


@pytest.fixture(scope="session")
def map_checks() -> Callable[..., MapChecks]:
    """Return a function that gives checks of heatmaps that passed, failed or were not assessed, all or by name."""

    def made(passed: bool | None = None, **by_name: bool | None) -> MapChecks:
        def common(name: str) -> dict[str, Any]:
            said = by_name.get(name, passed)
            return {"tiles": 4 if said is not None else 0, "passed": said, "verdict": verdict_of(said, "so it is")}

        spread = Spread(mean=(0.5, 0.2), sd=(0.1, 0.1))
        way = OrderCurve(curve=(0.9, 0.5), auc=0.7, interval=(0.6, 0.8))
        return MapChecks(
            tiles=4,
            randomisation=Randomisation(
                **common("randomisation"),
                draws=1,
                cells=49,
                stages=("head", "all"),
                unrelated_below=0.5,
                rank_correlation=Spread(mean=(0.4, -0.1), sd=(0.1, 0.1)),
                absolute_rank_correlation=spread,
                ssim=spread,
            ),
            deletion_insertion=DeletionInsertion(
                **common("deletion_insertion"),
                fractions=(0, 1),
                moves=0.4,
                deletion={"map": way, "centre": way},
                insertion={"map": way, "centre": way},
            ),
            equivariance=Equivariance(**common("equivariance"), mean=0.9, sd=0.1),
            box_sensitivity=BoxSensitivity(
                **common("box_sensitivity"),
                threshold=0.2,
                thresholds=(0.1, 0.2),
                area_fraction=spread,
                iou=spread,
                centre_shift=spread,
                ends=0.6,
            ),
        )

    return made
