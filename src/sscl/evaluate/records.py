"""What `sscl eval` writes: metrics.json as records with typed fields.

K classes, T thresholds.
"""

from __future__ import annotations

from sscl.config import DataConfig
from sscl.evaluate.by_place import ByPlace
from sscl.evaluate.calibration import MiscalledClass, ReliabilityBin
from sscl.evaluate.metric_intervals import Intervals
from sscl.evaluate.metrics import Metrics
from sscl.evaluate.proportions import Agreement, Proportion, Proportions
from sscl.records import Record

FILE = "metrics.json"


class ByChance(Record):
    """The calibration error that true probabilities would have on as many tiles.

    power: in which fraction of such samples a true error of `calibration.MATTERS_ECE` would exceed the 95% quantile.
    """

    mean: float
    quantile_95: float
    power: float


class CalibrationErrors(Record):
    """How far probabilities are off; the definitions are in `calibration.DEFINITION`.

    `ece_positive` and `brier_positive` are those of the positive class, `soft_vote_brier` is against the annotators'
    votes; each is None where there is no such thing. `miscalled`: see `calibration.miscalled_classes`.
    """

    ece: float
    ece_by_chance: ByChance
    ece_equal_mass: float
    ece_positive: float | None
    brier: float
    brier_positive: float | None
    soft_vote_brier: float | None
    loss: float
    miscalled: tuple[MiscalledClass, ...]
    reliability: tuple[ReliabilityBin, ...]


class BeforeAfter(Record):
    """A number without and with the temperature."""

    before: float
    after: float


class CalibrationReport(Record):
    """The temperature, and calibration errors on these tiles without (`before`) and with it (`after`).

    fitted_in: precision of the encoder for the validation tiles.
    """

    temperature: float
    fitted_on: int
    fitted_in: str
    method: str
    validation_ece: BeforeAfter
    definition: str
    before: CalibrationErrors
    after: CalibrationErrors


class OperatingPoint(Record):
    """A threshold that validation chose, and what it does on these tiles: `here`, named as by `outcomes_at`."""

    threshold: float
    rule: str
    chosen_on: int
    on_validation: dict[str, float]
    here: dict[str, Proportion | None]


class Abstention(Record):
    """A confidence below which tiles are left undecided, chosen on validation; `here`: decided, and accuracy on these.

    `limit` is the largest fraction of the validation tiles to abstain on, `left_out_on_validation` those it leaves out.
    """

    threshold: float
    limit: float
    left_out_on_validation: int
    chosen_on: int
    here: dict[str, Proportion | None]


class CoverageRow(Record):
    """Accuracy on the most confident tiles: which fraction of all they are, and their lowest confidence."""

    coverage: float
    confidence: float
    accuracy: Proportion


class Coverage(Record):
    """Accuracy against coverage; `area`: mean error over all coverages, `area_random` and `area_best` to compare."""

    definition: str
    area: float
    area_random: float
    area_best: float
    at: tuple[CoverageRow, ...]
    abstention: Abstention


class DecisionCurve(Record):
    """Net benefit at T thresholds: of the model with its 95% interval (None = too few groups), and of calling all."""

    threshold: tuple[float, ...]
    model: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    treat_all: tuple[float, ...]


class Evaluated(Record):
    """What was evaluated on what.

    external: whether this is another set than the one trained on. precision: of the encoder; logits are always float32.
    synthetic: whether the tiles were drawn by a program. c: of a logistic regression, which has no epochs.
    """

    checkpoint: str
    epoch: int
    c: float | None = None
    data: DataConfig
    split: str
    external: bool = False
    protocol: str | None
    tiles: int
    classes: tuple[str, ...]
    class_counts: dict[str, int]
    positive: str | None
    data_fingerprint: str
    test_time_augmentation: bool
    precision: str
    synthetic: bool = False


class Results(Record):
    """The results of an evaluation. groups: how many slides or the like the tiles are of; None = not known."""

    loss: float
    metrics: Metrics
    intervals: Intervals
    interval_method: str
    groups: int | None = None
    proportions: Proportions
    confusion_matrix: tuple[tuple[int, ...], ...]
    accuracy_by_agreement: tuple[Agreement, ...] | None
    calibration: CalibrationReport
    operating_point: OperatingPoint | None
    decision_curve: DecisionCurve | None
    coverage: Coverage


class Evaluation(Results, Evaluated):
    """metrics.json: what was evaluated, the results, and what a reader must know of them.

    by_place: metrics of each slide or site; None = not asked for.
    """

    by_place: ByPlace | None = None
    caveats: tuple[str, ...]
    notes: tuple[str, ...]
