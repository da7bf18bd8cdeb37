"""Classifiers, audits and checks of heatmaps that are made up, and ways into their sections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.config import DataConfig, FinetuneConfig, FinetuneTrainConfig, ModelConfig
from sscl.data.audit import Audit
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, evaluation, evaluation_text
from sscl.evaluate.predictions import predictions_of
from sscl.evaluate.records import Evaluated, Evaluation
from sscl.evaluate.verdicts import Outcome, verdict_of
from sscl.explain.records import (
    BoxSensitivity,
    DeletionInsertion,
    Equivariance,
    MapChecks,
    OrderCurve,
    Randomisation,
    Spread,
)
from sscl.models.checkpoint import build_checkpoint
from sscl.report import page, summary
from sscl.report.blocks import Section
from sscl.report.subject import Subject

CLASSES = ("HP", "SSA")


@pytest.fixture(scope="module", autouse=True)
def blank(blank_pictures: None) -> None:
    """Sections are made of what charts show; tests/plots renders them."""


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
        "reason": "identical pixels",
        "confidence": 1.0,
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
            "method": {"size_px": 64, "neighbours": 5, "stretched": True, "encoder": None, "min_cosine": None},
            "notes": ["no slide ids"],
        }
    )


@pytest.fixture(scope="session")
def map_checks() -> Callable[..., MapChecks]:
    """Return a function that gives checks of heatmaps that passed, failed or were not assessed, all or by name."""

    def told(said: bool | None) -> dict[str, Any]:
        return {"outcome": Outcome.of(said), "verdict": verdict_of(Outcome.of(said), "so it is")}

    def made(passed: bool | None = None, **by_name: bool | None) -> MapChecks:
        def common(name: str) -> dict[str, Any]:
            said = by_name.get(name, passed)
            return {"tiles": 4 if said is not None else 0, **told(said)}

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


def subject(*, skill: float = 2.0, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Subject:
    """A classifier of 80 tiles; the larger `skill`, the better it tells the classes apart; 0 = not at all."""
    rng = np.random.default_rng(seed)
    count, kinds = 80, len(classes)
    labels = np.arange(count) % kinds
    logits = torch.from_numpy(rng.normal(size=(count, kinds)) + skill * np.eye(kinds)[labels])
    tiles = Tiles(
        images=np.zeros((count, 4, 4, 3), dtype=np.uint8),
        labels=labels,
        classes=classes,
        ids=tuple(f"t{i}" for i in range(count)),
        votes=rng.integers(0, 8, count) if kinds == 2 else None,
    )
    positive = 1 if kinds == 2 else None
    kept = calibration.fit_calibration(logits[:40], labels[:40], classes=classes, positive=positive)
    found = evaluation.evaluate(tiles, logits, positive=positive, kept=kept)
    evaluated = Evaluated(
        checkpoint="runs/x",
        epoch=2,
        data=DataConfig(source="folder", root="/data/colon", size_px=64),
        split="test",
        protocol=None,
        tiles=count,
        classes=classes,
        class_counts=tiles.class_counts(),
        positive=None if positive is None else classes[positive],
        data_fingerprint="f",
        test_time_augmentation=False,
        precision="fp32",
    )
    report = Evaluation(**dict(evaluated), **dict(found), caveats=("a caveat",), notes=())
    report = report.model_copy(update={"notes": tuple(evaluation_text.reading_notes(report))})
    probabilities = calibration.softmax(logits, temperature=report.calibration.temperature)
    config = FinetuneConfig(
        run="runs/x",
        data=DataConfig(root="/data/colon"),
        model=ModelConfig(name="resnet18", weights="runs/ssl"),
        train=FinetuneTrainConfig(batch_size=8, learning_rate=1e-3, select="loss"),
    )
    blank = build_checkpoint(
        config,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        pooling="mean",
        classes=classes,
        lineage=(DataConfig(root="/data/unlabelled"),),
        fingerprint="f",
        precision="fp32",
    )
    epoch = {"validation_accuracy": 0.8, "validation_balanced_accuracy": 0.75, "validation_loss": 0.5}
    return Subject(
        folder=Path("runs/x"),
        trained=replace(blank, epoch=2, validation=epoch, calibration=kept),
        log=[{"epoch": i, "train_loss": 1.0 - i / 10, "train_accuracy": 0.5, **epoch} for i in (1, 2, 3)],
        evaluated=Path("runs/x/eval_test"),
        report=report,
        found=predictions_of(tiles, probabilities),
    )


def changed(one: Subject, section: str, **keys: Any) -> Subject:
    """The same with keys of a section of its configuration changed."""
    config = one.trained.config
    part = getattr(config, section).model_copy(update=keys)
    return replace(one, trained=replace(one.trained, config=config.model_copy(update={section: part})))


def reported(one: Subject, **keys: Any) -> Subject:
    """The same with other results of its evaluation."""
    return replace(one, report=one.report.model_copy(update=keys))


def checks_of(one: Subject, *, audits: Sequence[Audit] = (), checks: MapChecks | None = None) -> Section:
    return summary.checks_section(one, summary.check_all(one, audits=audits, checks=checks))


def first_screen(one: Subject, *, tiles: int | None = 100, unfinished: bool = False, **found: Any) -> list[str]:
    """Its three sentences. found: audits and checks."""
    checks = summary.check_all(one, **({"audits": [], "checks": None} | found))
    section = summary.summary(one, training_tiles=tiles, checks=checks, unfinished=unfinished)
    assert not section["folded"]
    (rows,) = (block["rows"] for block in section["blocks"] if block["kind"] == "lead")
    return [text for _, text in rows]


def verdicts(section: Section) -> dict[str, str]:
    return {block["title"]: block["outcome"] for block in section["blocks"] if block["kind"] == "verdict"}


def tables(section: Section) -> dict[str, list[list[str]]]:
    return {block["caption"]: block["rows"] for block in section["blocks"] if block["kind"] == "table"}


def rendered(section: Section) -> str:
    return page.render(
        {"title": "t", "subtitle": "s", "made": "m", "id": "0" * 16, "gallery": None, "sections": [section]}
    )


def kinds(section: Section, kind: str) -> list[dict[str, Any]]:
    return [dict(block) for block in section["blocks"] if block["kind"] == kind]
