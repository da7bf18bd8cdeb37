"""The encoder to start from: random, ImageNet, an sscl run or a file of weights; and what a training inherits."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch

from sscl.config import DataConfig, EncoderConfig, FinetuneConfig, ModelConfig, PretrainConfig, SourceConfig, sources_of
from sscl.config.encoders import FOLDER, NO_FILES, RANDOM, Kwargs, OutputStride, Pool, Stem
from sscl.data.scale import Scale, Trained, scale_against
from sscl.models.checkpoint import Checkpoint, checkpoint_file, unfinished_notes
from sscl.models.encoders import Encoder, blank_encoder, build_encoder
from sscl.models.pixels import preprocessing_of
from sscl.models.published import Named, published_file, resolve, weights_in
from sscl.models.undrawn import Undrawn
from sscl.models.weights import Trunk, load_trunk, read_trunk
from sscl.words import wrapped

Training = TypeVar("Training", bound=PretrainConfig | FinetuneConfig)

NO_STATISTICS = (
    "warning: train.freeze_batch_norm keeps the batch-norm statistics of the weights, and random weights have none "
    "(mean 0, variance 1): nothing is normalised; leave it out, or give model.weights"
)


@dataclass(frozen=True)
class Start:
    """An encoder, and what comes with its weights.

    Attributes:
        encoder: with its weights.
        mean, std: channel means and standard deviations of pixels in 0-1.
        lineage: the data sections of the runs that its weights went through, oldest first; eval compares them.
        size_px: side of the tiles it was trained on; None: nothing says.
        mpp: µm per pixel of these tiles; None: not known.
        checkpoint: the facts of an sscl checkpoint; None for other weights.
        origin: where the weights are from, in words.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lineage: tuple[DataConfig | SourceConfig, ...] = ()
    size_px: int | None = None
    mpp: Trained | None = None
    checkpoint: Checkpoint | None = None
    origin: str = "random"

    def __str__(self) -> str:
        encoder = self.encoder
        feature = f"{encoder.pooling}, {encoder.num_features:,} numbers"
        return f"encoder: {encoder.name}; feature: {feature}; weights: {self.origin}"

    def suits(self, scale: Scale, *, size_px: int) -> list[str]:
        """Return what is to be said of tiles of this scale and side, a sentence each.

        Raises:
            ValueError: the encoder cannot take tiles of this side.
        """
        doubts = self.doubts(scale, size_px=size_px)
        return [*self.encoder.check_size(size_px), *(f"warning: {doubt}" for doubt in doubts)]

    def doubts(self, scale: Scale, *, size_px: int) -> list[str]:
        """Return what is doubtful about features of tiles of this scale, a sentence each."""
        return [*scale.mixed(), *scale_against(scale, self.mpp, name=self.encoder.name, size_px=size_px)]

    @property
    def saw_labels(self) -> bool:
        """Whether the weights were trained with labels, by sscl; its last data section is then that of the labels."""
        return self.checkpoint is not None and self.checkpoint.kind == "finetune"

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits from the name, the weights and the normalisation: equal for equal features of equal tiles."""
        encoder = self.encoder
        digest = hashlib.sha256(
            repr((encoder.name, encoder.output_stride, encoder.pooling, self.mean, self.std)).encode()
        )
        digest.update(json.dumps(encoder.kwargs, sort_keys=True).encode())
        for name, value in encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Facts(NamedTuple):
    """What weights of sscl say about themselves: the encoder's arguments, and the side of their tiles."""

    name: str
    stem: Stem
    output_stride: OutputStride
    kwargs: Kwargs
    pooling: Pool | None  # None: nothing says it yet
    size_px: int

    def refuse_another(self, named: Named, *, stem: str, source: str) -> None:
        """Raise ValueError where the settings name another encoder than the weights are of."""
        if self.name == named.name and self.kwargs != named.kwargs:
            raise ValueError(
                f"model.kwargs: {source} holds {self.name} with {json.dumps(self.kwargs)}, got "
                f"{json.dumps(named.kwargs)}; leave model.kwargs out"
            )
        if (self.name, self.stem) != (named.name, stem):
            raise ValueError(
                f"model.weights: {source} holds {self.name} with the {self.stem} stem, got {named.name}, {stem}; set "
                f"model.name={self.name} model.stem={self.stem}, or leave both out"
            )


def facts_of(trunk: Trunk) -> Facts | None:
    """Return what a file of sscl says about its weights; None for other people's files."""
    made = trunk.checkpoint
    if made is not None:
        return Facts(made.encoder_name, made.stem, made.output_stride, made.kwargs, made.pooling, made.size_px)
    told = trunk.exported
    if told is None:
        return None
    return Facts(told.encoder, told.stem, told.output_stride, told.kwargs, told.pooling, told.size_px)


def facts_to_be(config: PretrainConfig | FinetuneConfig) -> Facts:
    """Return what the weights of a run with this configuration will say."""
    model, named = config.model, _named(config.model)
    return Facts(named.name, model.stem, model.output_stride, named.kwargs, model.pool, side_of(config))


def inherit(config: Training, *, facts: Facts | None = None) -> tuple[Training, list[str]]:
    """Return a configuration with the encoder and tile size of its weights where it gives none, and lines that say so.

    Pooling, mean and standard deviation stay null, which means those of the weights.

    Args:
        facts: of the weights, where they do not exist yet; None = read them.

    Raises:
        ValueError: the configuration names another encoder; the file cannot be read.
        FileNotFoundError: no such run or file.
    """
    source = str(config.model.weights)
    if facts is None:
        file = weights_file(config.model.weights, key="model.weights")
        facts = None if file is None else facts_of(read_trunk(file))
    if facts is None:
        return _described(config)
    model = config.model
    keys = ("name", "stem", "output_stride", "kwargs")
    taken = {key: getattr(facts, key) for key in keys if key not in model.model_fields_set}
    model = model.model_copy(update=taken)
    facts.refuse_another(_named(model), stem=model.stem, source=source)
    said = {f"model.{key}": value for key, value in taken.items() if value != {}}
    if not _side_given(config):
        config = _with_side(config, facts.size_px)
        said["data.size_px"] = facts.size_px
    said |= {f"model.{key}": "its own" for key in ("mean", "std") if getattr(model, key) is None}
    lines = _taken_from(source, said)
    other = []
    if (side := side_of(config)) != facts.size_px:
        other.append(f"data.size_px={side} (its tiles had {facts.size_px} px)")
    if model.output_stride != facts.output_stride:
        other.append(f"model.output_stride={model.output_stride} (it had {facts.output_stride})")
    if model.pool not in (None, facts.pooling):
        other.append(f"model.pool={model.pool} (it had {facts.pooling})")
    other += [f"model.{key} (its own is not used)" for key in ("mean", "std") if getattr(model, key) is not None]
    lines += [f"otherwise than {source}, as given: {', '.join(other)}"] if other else []
    return _changed(config, model=model), lines


def check_weights(model: ModelConfig) -> None:
    """Raise where the weights to start from cannot be had, before tiles are read; those of others are fetched.

    Raises:
        ValueError, FileNotFoundError: as `start_encoder`.
    """
    if model.weights == "published":
        published_file(_named(model))
    elif model.weights == "imagenet":
        start_encoder(model)
    else:
        weights_file(model.weights, key="model.weights")


def start_encoder(model: ModelConfig) -> Start:
    """Return the encoder to start training from.

    Raises:
        ValueError: the weights are another encoder's, or not readable.
        FileNotFoundError: no such run or file.
    """
    folder = _folder_said(model.weights)
    if folder is not None and "name" not in model.model_fields_set:
        raise ValueError(f"model.name: missing; {model.weights} says which encoder it is: set model.name={folder}")
    named = _named(model)
    file = _file_of(model.weights, named, key="model.weights")
    trunk = None if file is None else read_trunk(file)
    facts = None if trunk is None else facts_of(trunk)
    if facts is not None:
        facts.refuse_another(named, stem=model.stem, source=str(file))
        named = replace(named, pool=model.pool or facts.pooling)
    if trunk is not None and trunk.checkpoint is not None and trunk.checkpoint.kind == "finetune":
        print(f"model.weights: {file} was trained with labels ({', '.join(trunk.checkpoint.classes)})")
    return _started(named, model, trunk, stem=model.stem, output_stride=model.output_stride, source=str(file))


def resumed_encoder(kept: Checkpoint) -> Start:
    """Return the encoder of a run that goes on, its weights still to be loaded.

    What it once started from is not read again: the run has what it needs of it.
    """
    with Undrawn():
        encoder = blank_encoder(kept)
    return Start(encoder=encoder, mean=kept.mean, std=kept.std, lineage=kept.lineage, origin="of this run")


def frozen_encoder(spec: EncoderConfig, *, section: str = "") -> Start:
    """Return an encoder to look at, in evaluation mode; a checkpoint or export of sscl says itself which one it is.

    Args:
        spec: which encoder. section: stands before its keys in errors, as in "encoder.".

    Raises:
        ValueError: a name is missing, or differs from the file's; the weights do not fit or are not readable.
        FileNotFoundError: no such run or file.
    """
    key = section and f"{section}weights"
    name = spec.model or _folder_said(spec.weights)
    named = None if name is None else _resolved(name, spec)
    file = weights_file(spec.weights, key=key) if named is None else _file_of(spec.weights, named, key=key)
    trunk = None if file is None else read_trunk(file)
    said = None if trunk is None else facts_of(trunk)
    stem, output_stride = spec.stem, 32
    if said is not None:
        if named is not None and named.name != said.name:
            raise ValueError(f"{section}model: got {name}, but {file} holds {said.name}; leave {section}model out")
        named = Named(said.name, said.kwargs, spec.pool or said.pooling)
        stem, output_stride = said.stem, said.output_stride
    if named is None:
        what = "random weights do" if spec.weights in RANDOM else f"weights={spec.weights} does"
        raise ValueError(
            f"{section}model: missing; {what} not say which encoder; give its name, as in {section}model=resnet18"
        )
    if spec.weights in RANDOM:
        torch.manual_seed(spec.seed)
    with contextlib.nullcontext() if trunk is None else Undrawn():
        start = _started(named, spec, trunk, stem=stem, output_stride=output_stride, source=str(file))
    start.encoder.eval()
    return replace(start, size_px=spec.size_px or (None if said is None else said.size_px) or start.size_px)


def weights_file(weights: str | None, *, key: str) -> Path | None:
    """Return the file that `weights` names: itself, a run folder's checkpoint, or that in a folder of the hub's kind.

    None for weights that are random, ImageNet's or published.

    Raises:
        FileNotFoundError: no such run or file.
    """
    if weights in (None, *NO_FILES):
        return None
    folder = Path(str(weights))
    of_others = None if (folder / "checkpoints").is_dir() else weights_in(folder)
    return of_others or checkpoint_file(folder, key=key)


def _file_of(weights: str | None, named: Named, *, key: str) -> Path | None:
    """Return the file of the weights, the published ones too; None where there is none, see `weights_file`."""
    return published_file(named) if weights == "published" else weights_file(weights, key=key)


def _folder_said(weights: str | None) -> str | None:
    """Return the name of the encoder in a folder with its config.json, as timm and the hub have it; None for others."""
    return f"{FOLDER}{weights}" if weights is not None and (Path(weights) / "config.json").is_file() else None


def _named(model: ModelConfig) -> Named:
    return _resolved(model.name, model)


def _resolved(name: str, given: ModelConfig | EncoderConfig) -> Named:
    return resolve(name, kwargs=given.kwargs, pool=given.pool, fetch=given.weights == "published")


def _described(config: Training) -> tuple[Training, list[str]]:
    """Return a configuration with the encoder and tile size of published weights where it gives none, and a line."""
    model, said = config.model, {}
    folder = _folder_said(model.weights)
    if folder is not None and "name" not in model.model_fields_set:
        model = model.model_copy(update={"name": folder})
        said["model.name"] = folder
    size_px = None if model.weights in RANDOM else _named(model).size_px
    if size_px is not None and not _side_given(config):
        config = _with_side(config, size_px)
        said["data.size_px"] = str(size_px)
    config = _changed(config, model=model)
    return config, _taken_from(model.weights, said)


def _taken_from(source: object, said: Mapping[str, object]) -> list[str]:
    """Return the line that says which settings are those of a checkpoint or of published weights."""
    return [wrapped(f"from {source}: {', '.join(f'{key}={value}' for key, value in said.items())}")] if said else []


def side_of(config: PretrainConfig | FinetuneConfig) -> int:
    """Return the side of a training's tiles, pixels; all its sets have one."""
    return next(iter(sources_of(config).values())).size_px


def _side_given(config: PretrainConfig | FinetuneConfig) -> bool:
    return any("size_px" in data.model_fields_set for data in sources_of(config).values())


def _with_side(config: Training, size_px: int) -> Training:
    resized = tuple(data.at(size_px) for data in sources_of(config).values())
    return _changed(config, data=resized if isinstance(config.data, tuple) else resized[0])


def _changed(config: Training, **sections: object) -> Training:
    return cast("Training", config.model_copy(update=sections))


def _started(
    named: Named,
    given: ModelConfig | EncoderConfig,
    trunk: Trunk | None,
    *,
    stem: str,
    output_stride: int,
    source: str,
) -> Start:
    """Return an encoder with the weights of a file; without one with random or ImageNet weights."""
    encoder = build_encoder(
        named.name,
        weights=given.weights if trunk is None else None,
        stem=stem,
        output_stride=output_stride,
        kwargs=named.kwargs,
        pool=named.pool,
    )
    made = None if trunk is None else trunk.checkpoint
    if trunk is not None:
        load_trunk(encoder, trunk.state, source=source)
        if made is None:
            print(f"weights: {source}: {trunk.origin}")
        else:
            for note in unfinished_notes(source):
                print(f"warning: {note}")
    mean, std = preprocessing_of(named.name)
    return Start(
        encoder=encoder,
        mean=tuple(given.mean or (trunk and trunk.mean) or named.mean or mean),
        std=tuple(given.std or (trunk and trunk.std) or named.std or std),
        lineage=() if made is None else made.trained_on,
        size_px=made.size_px if made is not None else named.size_px if given.weights not in RANDOM else None,
        mpp=trained_at(trunk) or (named.mpp if given.weights not in RANDOM and made is None else None),
        checkpoint=made,
        origin=_origin(given.weights, source=None if trunk is None else source),
    )


def _origin(weights: str | None, *, source: str | None) -> str:
    """Return where weights are from, in words; source: their file, None where there is none of ours."""
    if weights in RANDOM:
        return "random"
    if source is None:  # the package has them
        return {"imagenet": "ImageNet", "published": "published, of timm"}[str(weights)]
    return f"published, {source}" if weights == "published" else source


def trained_at(trunk: Trunk | None) -> Trained | None:
    """Return µm per pixel of the tiles that sscl's weights in a file were trained on; None: not known."""
    told = None if trunk is None else trunk.checkpoint or trunk.exported
    span = () if told is None else Scale((), told.mpp, told.mpp_range).span
    return Trained(span[0], span[-1]) if span else None
