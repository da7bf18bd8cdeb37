"""What all slides of a command share: the classifier, its scale, the settings, and which of these cannot be used.

A classifier at another scale than that of its training tiles gives a map that looks as convincing and means nothing, so
that an unknown scale, or another one, is refused unless the command says `mpp`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sscl.api import Model
from sscl.config import PredictConfig, plain
from sscl.data.scale import differ
from sscl.models.checkpoint import checkpoint_file, unfinished_notes
from sscl.models.classifier import precision_notes
from sscl.predict.cam import Plan, plan_of
from sscl.report.slide_record import NO_DIAGNOSIS, STANDING, AppliedClassifier
from sscl.slides.index import Index

OF_TILES = ("panels", "fit")
OF_SLIDES = ("slides_csv", "slide_mpp", "min_coverage", "overlap")
OF_INDEX = "slides_root"
OF_BOTH = ("threshold", "cam", "blind")
RESEARCH_USE = (
    "for research use; the probabilities hold for tiles like the training tiles, not for other tissue or stains"
)
_AT_ONCE = 2**22  # bytes


@dataclass(frozen=True)
class Job:
    """How slides are predicted.

    Attributes:
        model: the classifier. sha256: of its checkpoint file.
        mpp: µm per pixel of the tiles.
        plan: of the heatmap of a region; None: none is wanted.
        notes: what a reader must know of all slides, a sentence each.
    """

    model: Model
    config: PredictConfig
    sha256: str
    mpp: float
    plan: Plan | None
    notes: tuple[str, ...]


def job_of(model: Model, config: PredictConfig) -> Job:
    """Return how slides are predicted.

    Raises:
        ValueError: the µm per pixel of the tiles are not known; the classifier has no such heatmap.
    """
    mpp, plan = wanted_mpp(model, config), plan_of(model, config)
    digest = hashlib.sha256()
    with checkpoint_file(config.checkpoint, key="checkpoint").open("rb") as file:
        while part := file.read(_AT_ONCE):
            digest.update(part)
    notes = [*notes_of(model, config, mpp=mpp), *([] if plan is None else [plan.note])]
    return Job(model, config, digest.hexdigest(), mpp, plan, tuple(notes))


def check_keys(config: PredictConfig, *, index: str | None) -> None:
    """Raise ValueError where a key is given that has no meaning for these paths.

    Args:
        index: the folder of an index among the paths; None: they are slides.
    """
    given, defaults = plain(config), plain(PredictConfig(checkpoint="x", paths=("x",)))
    for key in OF_TILES if index is None else (*OF_TILES, *OF_SLIDES):
        if given[key] != defaults[key]:
            why = "is of tiles" if key in OF_TILES else "was decided when the index was made"
            what = "slides" if index is None else "an index"
            raise ValueError(f"{key}: {why}, and {config.paths[0]} is {what}; leave {key} out")
    if index is None and config.slides_root is not None:
        raise ValueError(f"{OF_INDEX}: says where the slides of an index are; leave it out, or give the index")


def check_no_slides(config: PredictConfig) -> None:
    """Raise ValueError where a key of slides is given for tiles."""
    given = plain(config)
    for key in (*OF_SLIDES, OF_INDEX, *OF_BOTH):
        if given[key] != PredictConfig.model_fields[key].default:
            raise ValueError(f"{key}: is of whole slides, and {config.paths[0]} is none; leave {key} out")


def check_apart(out: Path, paths: Sequence[str]) -> None:
    """Raise ValueError if what is read lies in the folder to write, or that in a folder that is read."""
    there = out.resolve()
    for path in map(Path, paths):
        here = path.resolve()
        if here.is_relative_to(there):
            raise ValueError(f"out: {out} contains {path}, which is to be read; choose another folder to write to")
        if path.is_dir() and there.is_relative_to(here):
            raise ValueError(
                f"out: {out} lies in {path}, all of which is read: the next run would read what is written now; choose "
                "another folder to write to"
            )


def check_index(index: Index, folder: str, job: Job) -> None:
    """Raise ValueError where the tiles of an index are not what is wanted."""
    model, mpp = job.model, job.mpp
    again = f"index the slides again: sscl slides tile SLIDES out=FOLDER mpp={mpp:.4g} size_px={model.size_px}"
    if index.size_px != model.size_px:
        raise ValueError(f"{folder}: has tiles of {index.size_px} px, the classifier takes {model.size_px}; {again}")
    if differ(index.mpp, mpp):
        told = f", or mpp={index.mpp:g} takes them all the same" if model.mpp is None or mpp == model.mpp else ""
        raise ValueError(
            f"{folder}: has tiles of {index.mpp:g} µm per pixel, the classifier needs {mpp:.4g}: at another scale its "
            f"predictions mean nothing; {again}{told}"
        )


def wanted_mpp(model: Model, config: PredictConfig) -> float:
    """Return µm per pixel of the tiles: what the command says, else those of the classifier's training tiles.

    Raises:
        ValueError: neither is known.
    """
    mpp = config.mpp if config.mpp is not None else model.mpp
    if mpp is None:
        raise ValueError(
            f"mpp: {config.checkpoint} does not say at how many µm per pixel it was trained, and at another scale its "
            f"predictions mean nothing; give that of its training tiles at {model.size_px} px, as in mpp=0.5"
        )
    return mpp


def applied(model: Model, config: PredictConfig) -> AppliedClassifier:
    """Return what summary.json and slides.json say of the classifier."""
    return AppliedClassifier(
        checkpoint=config.checkpoint,
        epoch=model.checkpoint.epoch,
        classes=model.classes,
        size_px=model.size_px,
        stain=model.stain,
        temperature=model.temperature,
        calibrated=config.calibrate,
        test_time_augmentation=config.tta,
        precision=model.precision,
        decide_from=model.decide_from,
        decide_from_method=threshold_origin(model, config),
    )


def threshold_origin(model: Model, config: PredictConfig) -> str:
    """Return where the abstention threshold comes from, in words."""
    if model.decide_from is None:
        return "abstain=0"
    if config.confidence is not None:
        return f"confidence={config.confidence:g}"
    tiles = model.checkpoint.fitted.tiles
    return f"limit {100 * config.abstain:g}% of {tiles} validation tiles"


def notes_of(model: Model, config: PredictConfig, *, mpp: float) -> list[str]:
    """Return what a reader must know of all slides, a sentence each."""
    lines = [STANDING, NO_DIAGNOSIS]
    if config.mpp is not None:
        known = f"it was trained on {model.checkpoint.scale}" if model.mpp is not None else "it does not say its own"
        lines.append(f"mpp={mpp:g} is that of the command; {known}")
        if model.mpp is not None and differ(mpp, model.mpp):
            lines[-1] += ": over 5% apart, so the predictions may mean nothing"
    lines += model.checkpoint.scale.mixed()
    return [*lines, *application_notes(model, config), RESEARCH_USE]


def application_notes(model: Model, config: PredictConfig) -> list[str]:
    """Return what a reader must know of how the classifier is applied to tiles, of slides or not, a sentence each."""
    lines = ["temperature and thresholds were fitted without test-time augmentation"] if config.tta else []
    lines += unfinished_notes(config.checkpoint)
    lines += precision_notes(model.precision, fitted=model.checkpoint.fitted.precision)
    if model.stain != "none":
        lines.append(f"{model.stain} stain normalisation as in training, applied to each tile separately")
    return lines
