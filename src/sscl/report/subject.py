"""The classifier that a report is about, with its evaluation: read from its run folder, checked to belong together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sscl import metrics_log
from sscl.config import DataConfig
from sscl.config.encoders import NO_FILES
from sscl.data.load import has_validation, load_tiles, merge_data
from sscl.evaluate import records
from sscl.evaluate.metrics import confusion_matrix
from sscl.evaluate.predictions import TilePredictions, read_predictions
from sscl.evaluate.records import Evaluation
from sscl.metrics_log import MetricsRow
from sscl.models import checkpoint
from sscl.models.checkpoint import Checkpoint
from sscl.records import read_record
from sscl.report import blocks
from sscl.report.folders import Sources, kind_of


@dataclass(frozen=True)
class Subject:
    """A classifier and its evaluation.

    Attributes:
        folder: of the run. trained: the facts of its checkpoint. log: rows of its metrics.jsonl.
        evaluated: folder of the evaluation. report: its metrics.json. found: its predictions.csv.
    """

    folder: Path
    trained: Checkpoint
    log: Sequence[MetricsRow]
    evaluated: Path
    report: Evaluation
    found: TilePredictions

    @property
    def positive(self) -> int | None:
        """Index of the positive class of two."""
        name = self.report.positive
        return None if name is None else self.found.classes.index(name)

    @property
    def decided_from(self) -> float:
        """Confidence below which the classifier abstains."""
        return self.report.coverage.abstention.threshold

    @property
    def set_name(self) -> str:
        """What the set of tiles is called."""
        return blocks.name_of(self.report.data.root)

    @property
    def split(self) -> str:
        """The tiles that were evaluated on, in words."""
        if self.report.split == "all":
            return f"set {self.set_name}" + (", which is not the one trained on" if self.report.external else "")
        return f"{self.report.split} split of {'the synthetic set ' * self.report.synthetic}{self.set_name}"

    @property
    def title(self) -> str:
        """Above the charts."""
        return f"{self.report.split} split, {self.report.tiles} {'synthetic ' * self.report.synthetic}tiles"


def read_subject(folder: Path, there: Path) -> Subject:
    """Return the classifier of a run with the evaluation in a folder, see `lineage.folder_of`."""
    split = there.name.rsplit("_", 1)[1]
    trained = checkpoint.load_checkpoint(folder, kind="finetune", tensors=False)
    log = folder / "metrics.jsonl"
    subject = Subject(
        folder=folder,
        trained=trained,
        log=metrics_log.read_metrics(log, needs=metrics_log.FINETUNE_ROW) if log.is_file() else [],
        evaluated=there,
        report=read_record(Evaluation, there / records.FILE, made_by="sscl eval"),
        found=read_predictions(there / "predictions.csv"),
    )
    report, found = subject.report, subject.found
    if report.split != split:
        raise ValueError(f"{there}: metrics.json is of the split {report.split!r}; run sscl eval again")
    counted = confusion_matrix(found.labels, found.predictions, num_classes=len(found.classes))
    same = found.classes == report.classes == trained.classes
    if not same or tuple(map(tuple, counted.tolist())) != report.confusion_matrix or len(found.ids) != report.tiles:
        raise ValueError(
            f"{there}: predictions.csv and metrics.json do not belong to this checkpoint; run sscl eval again"
        )
    return subject


def worksheet_id(subject: Subject) -> str:
    """Return the key under which the browser keeps a review: equal for equal weights and tiles, whatever is shown."""
    digest = hashlib.sha256(checkpoint.checkpoint_file(subject.folder).read_bytes())
    digest.update(f"{subject.report.split} {subject.report.data_fingerprint}".encode())
    return digest.hexdigest()[:16]


def interrupted(subject: Subject) -> list[str]:
    """Return a sentence where training did not come to its end."""
    return checkpoint.unfinished_notes(subject.folder)


def count_tiles(
    subject: Subject, data: DataConfig, *, caveats: list[str], progress: bool
) -> tuple[dict[str, dict[str, int]], dict[str, int | None]]:
    """Return tiles by class, and slides or patients, of the training split, of validation's own and of the evaluated.

    Training tiles that are not there any more are not counted, which `caveats` then says.
    """
    counts: dict[str, dict[str, int]] = {}
    groups: dict[str, int | None] = {}
    trained = subject.trained.finetune_config.data
    moved = trained.root == subject.report.data.root
    changes = {"root": data.root, "cache_dir": data.cache_dir} if moved else {}
    try:
        before = merge_data(trained, changes)
        for split in ("train", "validation") if has_validation(before) else ("train",):
            tiles = load_tiles(before, split=split, progress=progress)
            counts[split] = tiles.class_counts()
            groups[split] = None if tiles.groups is None else len(np.unique(tiles.groups))
    except (ValueError, FileNotFoundError) as error:
        caveats.append(f"the training tiles could not be counted: {str(error).splitlines()[0]}")
    split = subject.report.split
    counts[split] = subject.report.class_counts
    groups[split] = None if subject.found.groups is None else len(set(subject.found.groups))
    return counts, groups


def add_own_folders(sources: Sources, subject: Subject) -> None:
    """Add what lies beside a classifier: its heatmaps, and the pretraining run its weights came from."""
    own = subject.folder / subject.evaluated.name.replace("eval", "gradcam", 1)
    if kind_of(own) == "gradcam":
        _add(sources, "gradcam", own)
    start = started_from(subject)
    if start is not None:
        _add(sources, "pretrain", start)


def _add(sources: Sources, kind: str, folder: Path) -> None:
    known = sources.setdefault(kind, [])
    if folder.resolve() not in [other.resolve() for other in known]:
        known.insert(0, folder)


def started_from(subject: Subject) -> Path | None:
    """Return the pretraining run that the classifier's weights came from, where it still lies there or beside it."""
    weights = subject.trained.config.model.weights
    if weights is None or weights in NO_FILES:
        return None
    path = Path(weights)
    for folder in (path, path.parent, path.parent.parent, subject.folder.parent / path.name):
        if kind_of(folder) == "pretrain":
            return folder
    return None
