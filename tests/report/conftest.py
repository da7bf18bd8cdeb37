"""Audits that are made up."""

from __future__ import annotations

from sscl.data.audit import Audit


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
