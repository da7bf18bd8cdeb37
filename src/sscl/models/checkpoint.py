"""The checkpoint of a run: what it holds, and the only place where it is built, written and read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field

from sscl import run
from sscl.config import DataConfig, FinetuneConfig, PretrainConfig, SourceConfig, plain, sources_of, validate
from sscl.config.encoders import Deviation, EncoderName, Kwargs, Mean, OutputStride, Pool, Stem
from sscl.config.messages import shown
from sscl.data.scale import Scale
from sscl.metrics_log import kind_of_row, name_of_row
from sscl.models.calibration import KeptCalibration, PrecisionName
from sscl.models.tensors import fault_in
from sscl.models.torch_files import read_torch_file
from sscl.places import missing
from sscl.records import strictly
from sscl.words import first_twice
from sscl.writing import replacing

CHECKPOINT_FORMAT = "sscl checkpoint 2"
FORMATS = "sscl checkpoint "  # how every version of it begins

Kind = Literal["pretrain", "finetune"]
KINDS: tuple[Kind, ...] = ("pretrain", "finetune")
TensorDict = dict[str, torch.Tensor]
StateDict = dict[str, object]  # of an optimizer or a gradient scaler, as torch defines it

_THREE = Field(min_length=3, max_length=3)  # channels

# What a classifier has beyond the fields of every checkpoint, and what it takes to go on with a training.
OF_CLASSIFIERS = ("head", "validation", "calibration")
OF_TRAINING = ("model", "optimizer", "scaler")
_WEIGHTS = ("encoder", "head", *OF_TRAINING)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run after an epoch: its encoder, what goes with it, and what it was trained on.

    Attributes:
        kind: the command that wrote it.
        epoch: epochs done.
        encoder_name, stem, output_stride, kwargs, pooling: the arguments of `build_encoder`.
        size_px: side of the tiles.
        source_px, mpp, mpp_range: at which scale they show tissue, see `Scale`: mpp is µm per pixel at size_px.
        mean, std: channel means and standard deviations of pixels in 0-1.
        classes: K names in the order of the logits; of pretraining, those of its tiles if any.
        config: the resolved configuration.
        fingerprint: of the training tiles, see `Tiles.fingerprint`.
        precision: fp32, bf16 or fp16.
        lineage: data sections of the earlier runs behind its starting weights, oldest first.
        damaged: places of its training tiles that could not be read, so that others of the slide stood for them.
        encoder: its tensors.
        head: those of the classifier's linear layer (finetune).
        model, optimizer, scaler: what resuming needs; in last.pt, which of finetune has no encoder and head besides.
        validation: the row of metrics.jsonl of this epoch (finetune, best.pt).
        calibration: fitted on the validation tiles (finetune, best.pt).
    """

    kind: Kind
    epoch: Annotated[int, Field(ge=0)]
    encoder_name: EncoderName
    stem: Stem
    output_stride: OutputStride
    kwargs: Kwargs
    pooling: Pool
    size_px: Annotated[int, Field(ge=16, le=1024)]
    mpp: Annotated[float, Field(gt=0)] | None
    mpp_range: tuple[Annotated[float, Field(gt=0)], ...]
    source_px: tuple[Annotated[int, Field(ge=1)], ...]
    mean: Annotated[tuple[Mean, ...], _THREE]
    std: Annotated[tuple[Deviation, ...], _THREE]
    classes: tuple[Annotated[str, Field(min_length=1)], ...]
    config: PretrainConfig | FinetuneConfig
    fingerprint: str
    precision: PrecisionName
    lineage: tuple[DataConfig | SourceConfig, ...]
    damaged: tuple[Annotated[int, Field(ge=0)], ...] = ()
    encoder: TensorDict = field(default_factory=dict, repr=False)
    head: TensorDict = field(default_factory=dict, repr=False)
    model: TensorDict = field(default_factory=dict, repr=False)
    optimizer: StateDict = field(default_factory=dict, repr=False)
    scaler: StateDict = field(default_factory=dict, repr=False)
    validation: dict[str, float] | None = None
    calibration: KeptCalibration | None = None

    @property
    def finetune_config(self) -> FinetuneConfig:
        """The configuration of a finetune run."""
        return cast(FinetuneConfig, self.config)

    @property
    def c(self) -> float | None:
        """The C of its logistic regression; None where it was trained by epochs."""
        return (self.validation or {}).get("c")

    @property
    def chosen(self) -> str:
        """What it is of its run: "epoch 3", or "C=0.01" of a logistic regression."""
        return name_of_row(self.epoch, self.c)

    @property
    def chosen_kind(self) -> str:
        """What validation chose: "the epoch" or "C"."""
        return kind_of_row(self.c)

    @property
    def scale(self) -> Scale:
        """At which scale its tiles show tissue."""
        return Scale(self.source_px, self.mpp, self.mpp_range)

    @property
    def fitted(self) -> KeptCalibration:
        """The calibration of a finetune run."""
        assert self.calibration is not None
        return self.calibration

    @property
    def goes_on(self) -> bool:
        """Whether it holds what resuming needs."""
        return bool(self.optimizer)

    @property
    def weights(self) -> TensorDict:
        """All tensors of the network that it holds."""
        return self.model or {**self.encoder, **self.head}

    @property
    def trained_on(self) -> tuple[DataConfig | SourceConfig, ...]:
        """Data sections of all runs behind these weights, oldest first; the last are this run's."""
        return (*self.lineage, *sources_of(self.config).values())

    def without_tensors(self) -> Checkpoint:
        """Return the facts alone: no weights, no optimizer; the calibration's few logits stay."""
        kept = self.calibration
        if kept is not None:  # no part of a file that may change
            kept = dataclasses.replace(kept, logits=kept.logits.clone(), labels=kept.labels.clone())
        return dataclasses.replace(self, encoder={}, head={}, model={}, optimizer={}, scaler={}, calibration=kept)

    def to_dict(self) -> dict[str, object]:
        """Return tensors and plain containers, as they are written."""
        found: dict[str, object] = {"format": CHECKPOINT_FORMAT}
        for name in _fields(self.kind, goes_on=self.kind == "pretrain" or self.goes_on):
            value = getattr(self, name)
            found[name] = list(value) if isinstance(value, tuple) else value
        found |= {"config": plain(self.config), "lineage": [plain(data) for data in self.lineage]}
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_dict()
        return found

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, unread: Collection[str] = ()) -> Checkpoint:
        """Return the checkpoint in what `to_dict` gave.

        Args:
            unread: fields whose numbers are not looked at.

        Raises:
            ValueError: another format, or a field is missing, unknown or of another type; it is named.
        """
        if wrong := fault_in(content, unread=unread):
            raise ValueError(wrong)
        if content.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"format: got {shown(content.get('format'))}, expected {CHECKPOINT_FORMAT!r}")
        kind = content.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind: got {shown(kind)}, allowed are {', '.join(KINDS)}")
        needed = _fields(kind, goes_on=kind == "pretrain" or any(name in content for name in OF_TRAINING))
        missing = [name for name in needed if name not in content]
        if missing:
            raise ValueError(f"{missing[0]}: missing")
        if not isinstance(content["config"], dict):
            raise ValueError(f"config: must be a mapping, got {shown(content['config'])}")
        try:
            config = validate(
                PretrainConfig if kind == "pretrain" else FinetuneConfig, content["config"], source="of the run"
            )
        except ValueError as error:
            raise ValueError(f"config.{str(error).splitlines()[0]}") from None
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
        del fields["format"]
        if fields.get("calibration") is not None:
            fields["calibration"] = strictly(KeptCalibration, fields["calibration"], at="calibration.")
        found = strictly(Checkpoint, fields | {"config": config})
        found._check()
        return found

    def _check(self) -> None:
        """Raise ValueError where fields, each of them allowed, do not go together."""
        if len(self.mpp_range) not in (0, 2):
            raise ValueError(f"mpp_range: must be the lowest and the highest, or empty, got {shown(self.mpp_range)}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: {first_twice(self.classes)!r} is there twice")
        if self.kind == "finetune":
            if len(self.classes) < 2:
                raise ValueError(f"classes: must be two or more, got {shown(self.classes)}")
            weight = self.head.get("weight")
            if not self.goes_on and (weight is None or weight.shape[:1] != (len(self.classes),)):
                raise ValueError(f"head: has no row for each of the {len(self.classes)} classes")
        if self.calibration is not None:
            self.calibration.check(self.classes)


def _fields(kind: Kind, *, goes_on: bool) -> list[str]:
    """Return the names of the fields that a checkpoint of a command has; with `goes_on` one to resume from."""
    others = (*(OF_CLASSIFIERS if kind == "pretrain" else ()), *(() if goes_on else OF_TRAINING))
    return [field.name for field in dataclasses.fields(Checkpoint) if field.name not in others]


def build_checkpoint(
    config: PretrainConfig | FinetuneConfig,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    pooling: Pool,
    classes: Sequence[str],
    lineage: Sequence[DataConfig | SourceConfig],
    fingerprint: str,
    precision: str,
    encoder_name: str | None = None,
    kwargs: Kwargs | None = None,
    scale: Scale | None = None,
) -> Checkpoint:
    """Return the checkpoint of a run before its first epoch, still without tensors; `dataclasses.replace` adds them.

    The encoder's name and arguments may be others than those configured: a folder's become those of what is in it.
    """
    source_px, mpp, mpp_range = scale or Scale()
    return Checkpoint(
        kind="pretrain" if isinstance(config, PretrainConfig) else "finetune",
        epoch=0,
        encoder_name=encoder_name or config.model.name,
        stem=config.model.stem,
        output_stride=config.model.output_stride,
        kwargs=config.model.kwargs if kwargs is None else kwargs,
        pooling=pooling,
        size_px=next(iter(sources_of(config).values())).size_px,
        mpp=mpp,
        mpp_range=mpp_range,
        source_px=source_px,
        mean=tuple(mean),
        std=tuple(std),
        classes=tuple(classes),
        config=config,
        fingerprint=fingerprint,
        precision=precision,
        lineage=tuple(lineage),
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint (tensors and plain containers) in one step.

    Raises:
        ValueError: some number in it is NaN or infinite; the checkpoint before stays.
        OSError: it cannot be written, likewise.
    """
    content = checkpoint.to_dict()
    if found := fault_in(content):
        raise ValueError(
            f"{path}: not written after epoch {checkpoint.epoch}: {found}; lower train.learning_rate or use "
            "precision=fp32"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = f"the one before epoch {checkpoint.epoch} is kept, for --resume" if path.is_file() else "there is none yet"
    with replacing(path, kept=kept) as temporary:
        torch.save(content, temporary)


def checkpoint_file(path: str | Path, *, key: str = "") -> Path:
    """Return the checkpoint file of a run folder (best.pt, else last.pt); a file is returned as it is.

    Raises:
        FileNotFoundError: no such file, or the folder has neither; begins with the `key` that named it, if given.
    """
    path, where = Path(path), f"{key}: " if key else ""
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{where}{missing(path, 'run folder or checkpoint file')}")
        return path
    for name in ("best.pt", "last.pt"):
        if (path / "checkpoints" / name).is_file():
            return path / "checkpoints" / name
    runs = sorted(inner.parents[1].name for inner in path.glob("*/checkpoints/best.pt"))
    several = f"; the runs in it have some: name one, such as {path / runs[0]}" if runs else ""
    raise FileNotFoundError(
        f"{where}{path}: not a run folder with a checkpoint (no checkpoints/best.pt or last.pt){several}"
    )


def load_checkpoint(
    path: str | Path, *, kind: Kind | None = None, tensors: bool = True, to_resume: bool = False
) -> Checkpoint:
    """Return a checkpoint, on the CPU.

    Args:
        path: a run folder or a checkpoint file.
        kind: the command that must have written it; None: either.
        tensors: false leaves weights and optimizer out: they stay on disk, and only the facts are read.
        to_resume: whether training goes on from it; otherwise last.pt of finetune is refused, which is no classifier.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated, not an sscl checkpoint, a field missing or wrong, or written by the other command.
    """
    file = checkpoint_file(path)
    content = read_torch_file(file, mapped=not tensors)
    if not is_checkpoint(content):
        raise ValueError(
            f"{file}: not an sscl checkpoint; expected the run folder or file of sscl {kind or 'pretrain'}"
        )
    found = parse_checkpoint(content, source=file, to_resume=to_resume, unread=() if tensors else _WEIGHTS)
    if kind is not None and found.kind != kind:
        raise ValueError(f"{file}: written by sscl {found.kind}; a checkpoint of sscl {kind} is needed here")
    return found if tensors else found.without_tensors()


def is_checkpoint(content: object) -> bool:
    """Return whether what a file holds is an sscl checkpoint, of whatever version."""
    found = content.get("format") if isinstance(content, dict) else None
    return isinstance(found, str) and found.startswith(FORMATS)


def parse_checkpoint(
    content: Mapping[str, Any], *, source: str | Path, to_resume: bool = False, unread: Collection[str] = ()
) -> Checkpoint:
    """Return the checkpoint in a file's content; `to_resume` as for `load_checkpoint`, `unread` as for `from_dict`.

    Raises:
        ValueError: the file, the field and what is wrong with it, in one line.
    """
    try:
        found = Checkpoint.from_dict(content, unread=unread)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; damaged, or of another version of sscl: train again") from None
    if found.kind == "finetune" and found.goes_on and not to_resume:
        raise ValueError(
            f"{source}: is what sscl finetune --resume goes on from, not the classifier; name the run folder or best.pt"
        )
    return found


def unfinished_notes(checkpoint: str | Path) -> list[str]:
    """Return a sentence where the training that a checkpoint is of has not ended, as its run folder says."""
    folder = run_of(str(checkpoint))
    found = run.unfinished(folder)
    return [] if found is None else [f"the training of {folder} is {found}; {run.way_on(folder)}"]


def run_of(checkpoint: str) -> Path:
    """Return the run folder of a checkpoint, given as the folder itself or as a file in it."""
    file = checkpoint_file(checkpoint, key="checkpoint")
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent
