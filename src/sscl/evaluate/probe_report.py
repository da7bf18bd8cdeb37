"""probe.json: what was probed, on what, and what came out."""

from __future__ import annotations

from sscl.config import EncoderConfig, ProbeSet
from sscl.evaluate.probe_results import Gain, ProbeRun, Summary
from sscl.evaluate.probe_shots import FewShot, FewShotGain
from sscl.evaluate.robustness import Robustness, RobustnessGain
from sscl.records import Record

FILE = "probe.json"


class ProbedEncoder(EncoderConfig):
    """An encoder as it was opened: its settings, and what they led to."""

    name: str
    adapt_batch_norm: bool
    images: int | None
    num_features: int
    fingerprint: str


class ProbedSet(ProbeSet):
    """A set as it was opened: its settings, classes, and tiles of each class by part."""

    classes: tuple[str, ...]
    tiles: dict[str, dict[str, int]]
    data_fingerprints: dict[str, str]


class Fits(Record):
    """Linear fits in all, and those that stopped before they had converged."""

    fits: int
    unconverged: int


class MissingEncoder(Record):
    """A row of an encoder whose weights are not on this disk, and how to get them."""

    name: str
    why: str


class UnknownRobustness(Record):
    """A set on which robustness cannot be told, and why."""

    set: str
    why: str


class ProbeResults(Record):
    """What came out, for the tables: metrics at each place, and how much better encoders are than the reference."""

    summary: tuple[Summary, ...]
    differences: tuple[Gain, ...] = ()
    few_shot: tuple[FewShot, ...] = ()
    few_shot_differences: tuple[FewShotGain, ...] = ()
    robustness: tuple[Robustness, ...] = ()
    robustness_differences: tuple[RobustnessGain, ...] = ()
    robustness_unknown: tuple[UnknownRobustness, ...] = ()
    missing: tuple[MissingEncoder, ...] = ()


class ProbeReport(ProbeResults):
    """probe.json."""

    device: str
    precision: str
    encoders: tuple[ProbedEncoder, ...]
    sets: tuple[ProbedSet, ...]
    interval_method: str
    linear_fits: Fits
    notes: tuple[str, ...]
    runs: tuple[ProbeRun, ...]
