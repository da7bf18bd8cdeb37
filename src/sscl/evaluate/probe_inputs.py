"""What a probe opens before it computes anything: encoders and sets, checked; and the features of a set's parts."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm

from sscl.config import DataConfig, EncoderConfig, ProbeConfig, ProbeEncoder, ProbeSet
from sscl.data import split, task
from sscl.data.load import check_embeddable, has_validation, load_tiles, split_is_made_here
from sscl.data.scale import Trained
from sscl.data.tiles import UNLABELLED, Tiles, TileStore, place_store
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.probe_report import MissingEncoder, ProbedEncoder, ProbedSet
from sscl.evaluate.robustness import Compared
from sscl.models import batch_norm, features, frozen
from sscl.models.published import NotHere
from sscl.models.start import frozen_encoder
from sscl.words import count

EVALUATED = ("test", "held-out")


@dataclass(frozen=True)
class Job:
    """One encoder of a row, opened and checked, without its weights.

    Attributes:
        row: the row it belongs to. spec: the row's encoder with this seed.
        fingerprint: of weights and normalisation. num_features: C.
        size_px: side of its tiles; None: each set's own. lineage: data sections of the runs behind its weights.
        labelled: the last of these, where its labels were trained on.
    """

    row: ProbeEncoder
    seed: int
    spec: EncoderConfig
    fingerprint: str
    num_features: int
    size_px: int | None
    mpp: Trained | None
    lineage: tuple[DataConfig, ...]
    labelled: DataConfig | None


@dataclass(frozen=True, eq=False)
class Part:
    """The labelled tiles of a part of a set: these rows of the tiles."""

    tiles: Tiles
    rows: IntArray

    @functools.cached_property
    def labels(self) -> IntArray:
        return self.tiles.labels[self.rows]

    @functools.cached_property
    def groups(self) -> NDArray[np.str_] | None:
        return None if self.tiles.groups is None else np.asarray(self.tiles.groups[self.rows])

    @functools.cached_property
    def sites(self) -> NDArray[np.str_] | None:
        return None if self.tiles.sites is None else self.tiles.sites[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        return frozen.pixels_of(self.tiles, self.rows)


Parts = dict[str, Part]  # train, test, and where there are such: held-out, validation


def open_encoders(config: ProbeConfig) -> tuple[list[Job], list[MissingEncoder]]:
    """Return every encoder of every row, each opened once to see that it can be, and the rows that cannot be had.

    Published weights that are neither on this disk nor can be fetched are such: the others go on.

    Raises:
        ValueError, FileNotFoundError: as `frozen_encoder`, with the entry's number and name; no row can be had.
    """
    jobs: list[Job] = []
    absent: list[MissingEncoder] = []
    for i, row in enumerate(config.encoders):
        for seed in row.seeds or (row.seed,):
            weights = None if row.weights is None else row.weights.replace("{seed}", str(seed))
            given = {key: getattr(row, key) for key in EncoderConfig.model_fields}
            spec = EncoderConfig(**{**given, "weights": weights, "seed": seed})
            where = f"encoders.{i} ({row.name})"
            try:
                start = frozen_encoder(spec)
                for data in config.sets:
                    start.encoder.check_size(start.size_px or data.size_px)
            except NotHere as error:
                absent.append(MissingEncoder(name=row.name, why=f"{where}: {error}"))
                break
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"{where}: {error}") from error
            normed = any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in start.encoder.modules())
            if row.adapt_batch_norm and not normed:
                raise ValueError(f"{where}: adapt_batch_norm: {start.encoder.name} has no batch norm; leave it false")
            jobs.append(
                Job(
                    row=row,
                    seed=seed,
                    spec=spec,
                    fingerprint=start.fingerprint,
                    num_features=start.encoder.num_features,
                    size_px=start.size_px,
                    mpp=start.mpp,
                    lineage=start.lineage,
                    labelled=start.lineage[-1] if start.saw_labels else None,
                )
            )
    if not jobs:
        raise FileNotFoundError(absent[0].why)
    check_seeds(config)
    return jobs, absent


def check_seeds(config: ProbeConfig) -> None:
    """Raise ValueError where a row and the reference have no seed in common, so that there is nothing to pair."""
    seeds = {row.name: set(row.seeds or (row.seed,)) for row in config.encoders}
    theirs = seeds[config.reference] if config.reference is not None else set()
    for name, ours in seeds.items():
        if len(theirs) > 1 and len(ours) > 1 and not theirs & ours:
            raise ValueError(
                f"reference: {config.reference} has the seeds {sorted(theirs)} and {name} has {sorted(ours)}; "
                "pairs need the same seeds"
            )


def open_set(data: ProbeSet, *, config: ProbeConfig) -> Parts:
    """Return the parts of a set at its size, without unlabelled tiles.

    Raises:
        ValueError, FileNotFoundError: as the loader, with the set's name; no labels, one class, a class in test that
            train lacks, a held-out part that cannot be drawn.
    """
    key = f"sets.{[one.name for one in config.sets].index(data.name)}"
    if data.cache_dir is None:
        data = data.model_copy(update={"cache_dir": config.cache_dir})
    try:
        whole = load_tiles(data, split="train", progress=config.progress, key=key)
        check_embeddable(data, whole, key=key)
        task.check_two_classes(whole, data=data, key=f"{key}.root")
        train = labelled(whole)
        parts = {"train": train, "test": labelled(load_tiles(data, split="test", progress=config.progress, key=key))}
        if has_validation(data):
            parts["validation"] = labelled(load_tiles(data, split="validation", progress=config.progress, key=key))
        classes = train.tiles.classes
        present = np.unique(train.labels)
        for name, part in parts.items():
            if len(part.rows) == 0:
                raise ValueError(f"{data.root} has no labelled tiles in {name}")
            unseen = [part.tiles.classes[label] for label in np.setdiff1d(part.labels, present)]
            if part.tiles.classes != classes or unseen:
                raise ValueError(
                    f"{data.root}: {name} has tiles of {', '.join(unseen or part.tiles.classes)}, train has none; "
                    "add training tiles of that class or remove it"
                )
        if data.holdout_fraction:
            rest, held = split.stratified_split(
                train.labels,
                fraction=data.holdout_fraction,
                seed=data.split_seed,
                groups=train.groups,
                classes=classes,
            )
            parts |= {"train": Part(train.tiles, train.rows[rest]), "held-out": Part(train.tiles, train.rows[held])}
    except (ValueError, FileNotFoundError) as error:
        where = "" if str(error).startswith(f"{key}.") else f"{key} ({data.name}): "
        raise type(error)(f"{where}{error}") from error
    return parts


def check_set(data: ProbeSet, parts: Parts, *, key: str) -> list[str]:
    """Return what is doubtful about probing on a set, a sentence each.

    Raises:
        ValueError: no task for a classifier, see `check_task`; begins with the key.
    """
    names = {"train": "training"}
    tiles = {names.get(name, name): part.tiles.subset(part.rows) for name, part in parts.items()}
    made_here = {"held-out", *(["test"] if split_is_made_here(data) else [])}
    return [f"{data.name}: {text}" for text in task.check_task(tiles, data=data, made_here=made_here, key=key)]


def labelled(tiles: Tiles) -> Part:
    """Return all tiles that have a label."""
    return Part(tiles, np.flatnonzero(tiles.labels != UNLABELLED))


def embed(
    job: Job, parts: Parts, *, data: ProbeSet, config: ProbeConfig, device: torch.device, precision: str
) -> dict[str, torch.Tensor]:
    """Return the features of each part, (N, C), computed unless the cache has them."""

    @functools.cache
    def encoder() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
        start = frozen_encoder(job.spec)
        model = start.encoder.to(device).to(memory_format=torch.channels_last)
        return model, torch.tensor(start.mean, device=device), torch.tensor(start.std, device=device)

    @functools.cache
    def store(tiles: Tiles) -> TileStore:
        return place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)

    def compute(name: str, part: Part) -> torch.Tensor:
        model, mean, std = encoder()
        shown = f"{job.row.name}, {data.name} {name}" if config.progress else None
        if job.row.adapt_batch_norm:
            model = batch_norm.adapt_batch_norm(
                model,
                store(part.tiles),
                part.rows,
                mean=mean,
                std=std,
                batch_size=config.batch_size,
                precision=precision,
                progress=shown,
            )
        return features.outputs(
            model,
            store(part.tiles),
            part.rows,
            mean=mean,
            std=std,
            batch_size=config.batch_size,
            precision=precision,
            progress=shown,
        )

    def cached(name: str, part: Part) -> torch.Tensor:
        # Adaptation depends on the batches that deeper layers see.
        adapted = config.batch_size if job.row.adapt_batch_norm else 0
        key = frozen.FeatureKey(job.fingerprint, part.fingerprint, len(part.rows), precision, adapted=adapted)
        return frozen.kept_features(functools.partial(compute, name, part), key, cache_dir=config.cache_dir)

    try:
        return {name: cached(name, part) for name, part in parts.items()}
    except ValueError as error:
        raise ValueError(f"{job.row.name} on {data.name}: {error}") from error


def robust_tiles(parts: Parts) -> Compared | str:
    """Return the tiles of all parts, joined in their order, whose neighbours are looked at; or why there are none."""
    labels = np.concatenate([part.labels for part in parts.values()])
    groups, sites = (
        None if any(one is None for one in known) else np.concatenate([one for one in known if one is not None])
        for known in ([part.groups for part in parts.values()], [part.sites for part in parts.values()])
    )
    return Compared.of(labels, groups=groups, sites=sites)


def describe_encoder(job: Job) -> ProbedEncoder:
    """Return what the report says of an encoder."""
    return ProbedEncoder(
        **{**dict(job.spec), "size_px": job.size_px},
        name=job.row.name,
        adapt_batch_norm=job.row.adapt_batch_norm,
        images=job.row.images,
        num_features=job.num_features,
        fingerprint=job.fingerprint,
    )


def describe_set(data: ProbeSet, parts: Parts) -> ProbedSet:
    """Return what the report says of a set."""
    classes = parts["train"].tiles.classes
    return ProbedSet(
        **dict(data),
        classes=classes,
        tiles={
            name: {c: int((part.labels == label).sum()) for label, c in enumerate(classes)}
            for name, part in parts.items()
        },
        data_fingerprints={name: part.fingerprint for name, part in parts.items()},
    )


def set_in_words(data: ProbeSet, parts: Parts) -> str:
    """Return one line: name, root, classes, tiles of each part and how many have no label."""
    tiles = ", ".join(f"{len(part.rows):,} {name}" for name, part in parts.items())
    left_out = unlabelled(parts)
    rest = f"; {count(left_out, 'tile')} without a label left out" if left_out else ""
    classes = ", ".join(parts["train"].tiles.classes)
    return f"{data.name}: {data.root} ({data.source}), classes {classes}; tiles: {tiles}{rest}"


def unlabelled(parts: Parts) -> int:
    """Return how many tiles of a set have no label."""
    every = {id(part.tiles): part.tiles for part in parts.values()}
    return sum(int((tiles.labels == UNLABELLED).sum()) for tiles in every.values())
