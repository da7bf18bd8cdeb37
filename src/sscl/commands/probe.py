"""sscl probe: what frozen features are worth to a linear classifier and to nearest neighbours.

Every encoder and every set is opened and checked before any features are computed; the folder is written at the end.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from sscl import run, writing
from sscl.config import DataConfig, EncoderConfig, ProbeConfig, ProbeEncoder, ProbeSet, plain
from sscl.data import cache, split
from sscl.data.load import groups_are, has_validation, load_tiles, slides_known, split_changes
from sscl.data.tiles import UNLABELLED, Tiles, TileStore, place_store
from sscl.device import describe_device, pick_device, pick_precision
from sscl.evaluate import metrics, probe, probe_tables
from sscl.models import batch_norm, features
from sscl.models.start import frozen_encoder
from sscl.plots import probe as probe_plots
from sscl.run import check_inputs_outside

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
    lineage: tuple[DataConfig, ...]
    labelled: DataConfig | None


@dataclass(frozen=True, eq=False)
class Part:
    """The labelled tiles of a part of a set: these rows of the tiles."""

    tiles: Tiles
    rows: NDArray[np.int64]

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        return self.tiles.labels[self.rows]

    @functools.cached_property
    def groups(self) -> NDArray[np.str_] | None:
        return None if self.tiles.groups is None else self.tiles.groups[self.rows]

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.tiles.fingerprint.encode() + self.rows.astype("<i8").tobytes())
        for start in range(0, len(self.rows), 256):  # that of the tiles has seen 64 of them only
            digest.update(self.tiles.images[self.rows[start : start + 256]].tobytes())
        return digest.hexdigest()


Parts = dict[str, Part]  # train, test, and where there are such: held-out, validation


def main(config: ProbeConfig, *, overwrite: bool = False) -> None:
    """Probe every encoder on every set and write probe.json, probe.md and the charts.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line.
    """
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    out = run.check_run_folder(config.out, overwrite=overwrite)
    check_inputs_outside(out, {f"sets.{i}.root": data.root for i, data in enumerate(config.sets)})
    print(f"device: {describe_device(device)}, precision {precision}")
    jobs = open_encoders(config)
    check_inputs_outside(out, {f"weights of {job.row.name}": job.spec.weights for job in jobs})
    opened = {
        (data.name, size): open_set(data.model_copy(update={"size_px": size}), config=config)
        for data in config.sets
        for size in dict.fromkeys(job.size_px or data.size_px for job in jobs)
    }
    first = {data.name: opened[data.name, jobs[0].size_px or data.size_px] for data in config.sets}
    for data in config.sets:
        print(describe_set(data, first[data.name]))

    found = probe_tables.Found()
    for name, parts in first.items():
        for part in EVALUATED:
            if part in parts:
                found.labels[name, part], found.groups[name, part] = parts[part].labels, parts[part].groups
    fits = {"fits": 0, "unconverged": 0}
    total = len(jobs) * len(config.sets) * len(config.fractions) * len(config.label_seeds)
    with tqdm(total=total, desc="probe", unit="fit", disable=not config.progress) as bar:
        for job in jobs:
            for data in config.sets:
                bar.set_postfix_str(f"{job.row.name}, {data.name}")
                parts = opened[data.name, job.size_px or data.size_px]
                embedded = embed(job, parts, data=data, config=config, device=device, precision=precision)
                for fraction in config.fractions:
                    for label_seed in config.label_seeds:
                        entries = fit_and_predict(
                            parts, embedded, config=config, fraction=fraction, label_seed=label_seed, fits=fits
                        )
                        for entry, predictions in entries:
                            place = {"encoder": job.row.name, "seed": job.seed, "set": data.name}
                            found.runs.append({**place, **entry})
                            found.predictions.append(predictions)
                        bar.update()

    bootstrap: dict[str, int] = {"samples": config.bootstrap_samples, "seed": config.bootstrap_seed}
    probe_tables.measure(found, **bootstrap, progress=config.progress)
    summary = probe_tables.summarise(found)
    gains = [] if config.reference is None else probe_tables.differences(found, reference=config.reference)
    report = {
        "device": describe_device(device),
        "precision": precision,
        "encoders": [describe_job(job) for job in jobs],
        "sets": [describe_parts(data, first[data.name]) for data in config.sets],
        "interval_method": f"95% intervals: bootstrap of the tiles ({probe_tables.resampled(**bootstrap)})",
        "linear_fits": fits,
        "notes": notes(config, jobs, first, fits),
        "summary": summary,
        "differences": gains,
        "runs": found.runs,
    }
    tables = probe_tables.tables(summary, gains, reference=config.reference)

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    writing.write_json(out / "probe.json", report)
    legend = probe_tables.legend(neighbours=config.neighbours, **bootstrap, reference=config.reference)
    sections = [*(table.markdown() for table in tables), *(f"{line}." for line in legend)]
    sections += [f"Note: {note}." for note in report["notes"]]
    writing.write_text(out / "probe.md", "\n\n".join(sections) + "\n")
    chance = {where: 1 / len(np.unique(labels)) for where, labels in found.labels.items()}
    images = {row.name: row.images for row in config.encoders}
    charts = probe_plots.draw_charts(summary, chance=chance, images=images, folder=out)
    for table in tables:
        print(table.text())
    for line in legend:
        print(line)
    for note in report["notes"]:
        print(f"note: {note}")
    print(f"wrote {out}/{', '.join(['probe.json', 'probe.md', *charts])}")


def open_encoders(config: ProbeConfig) -> list[Job]:
    """Return every encoder of every row, each opened once to see that it can be.

    Raises:
        ValueError, FileNotFoundError: as `frozen_encoder`, with the entry's number and name.
    """
    jobs = []
    for i, row in enumerate(config.encoders):
        for seed in row.seeds or (row.seed,):
            weights = None if row.weights is None else row.weights.replace("{seed}", str(seed))
            given = {key: getattr(row, key) for key in EncoderConfig.model_fields}
            spec = EncoderConfig(**{**given, "weights": weights, "seed": seed})
            where = f"encoders.{i} ({row.name})"
            try:
                start = frozen_encoder(spec)
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
                    lineage=start.lineage,
                    labelled=start.lineage[-1] if start.saw_labels else None,
                )
            )
    check_seeds(config)
    return jobs


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
            train lacks, a held-out part that cannot be had.
    """
    if data.cache_dir is None:
        data = data.model_copy(update={"cache_dir": config.cache_dir})
    try:
        train = labelled(load_tiles(data, split="train", progress=config.progress))
        if len(train.rows) == 0:
            raise ValueError(f"{data.root} has no labelled tiles; a probe needs a class for each")
        parts = {"train": train, "test": labelled(load_tiles(data, split="test", progress=config.progress))}
        if has_validation(data):
            parts["validation"] = labelled(load_tiles(data, split="validation", progress=config.progress))
        classes = train.tiles.classes
        present = np.unique(train.labels)
        if len(present) < 2:
            raise ValueError(
                f"{data.root} has training tiles of {classes[present[0]]} alone; a probe needs two classes"
            )
        for name, part in parts.items():
            if len(part.rows) == 0:
                raise ValueError(f"{data.root} has no labelled tiles in {name}")
            unseen = [part.tiles.classes[label] for label in np.setdiff1d(part.labels, present)]
            if part.tiles.classes != classes or unseen:
                raise ValueError(
                    f"{data.root}: {name} has tiles of {', '.join(unseen or part.tiles.classes)}, train has none; "
                    "add training tiles of that class or take it out"
                )
        if data.holdout_fraction:
            rest, held = split.stratified_split(
                train.labels, fraction=data.holdout_fraction, seed=data.split_seed, groups=train.groups
            )
            parts |= {"train": Part(train.tiles, train.rows[rest]), "held-out": Part(train.tiles, train.rows[held])}
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"sets ({data.name}): {error}") from error
    return parts


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
        net = start.encoder.to(device).to(memory_format=torch.channels_last)
        return net, torch.tensor(start.mean, device=device), torch.tensor(start.std, device=device)

    @functools.cache
    def store(tiles: Tiles) -> TileStore:
        return place_store(tiles.images, device=device, budget_gb=data.device_budget_gb)

    def compute(name: str, part: Part) -> torch.Tensor:
        net, mean, std = encoder()
        shown = f"{job.row.name}, {data.name} {name}" if config.progress else None
        given: dict[str, Any] = {"mean": mean, "std": std, "batch_size": config.batch_size, "precision": precision}
        if job.row.adapt_batch_norm:
            net = batch_norm.adapt_batch_norm(net, store(part.tiles), part.rows, **given, progress=shown)
        return features.outputs(net, store(part.tiles), part.rows, **given, progress=shown)

    def cached(name: str, part: Part) -> torch.Tensor:
        # Adaptation depends on the batches that deeper layers see.
        adapted = config.batch_size if job.row.adapt_batch_norm else 0
        key = (job.fingerprint, job.spec.stem, part.fingerprint, part.tiles.images.shape[1], precision, adapted)
        compute_part: Callable[[], torch.Tensor] = functools.partial(compute, name, part)
        return cache.cached_outputs(compute_part, key=key, rows=len(part.rows), cache_dir=config.cache_dir)

    try:
        return {name: cached(name, part) for name, part in parts.items()}
    except ValueError as error:
        raise ValueError(f"{job.row.name} on {data.name}: {error}") from error


def fit_and_predict(
    parts: Parts,
    embedded: dict[str, torch.Tensor],
    *,
    config: ProbeConfig,
    fraction: float,
    label_seed: int,
    fits: dict[str, int],
) -> list[tuple[dict[str, Any], NDArray[np.int64]]]:
    """Return an entry and the predictions of each classifier on each evaluated part; counts the fits in `fits`.

    Within the fraction of the labels, a validation part chooses C; then all of them are fitted with it. A set's own
    validation part, of which the same fraction is used, chooses C and is not fitted.
    """
    train = parts["train"]
    used = split.label_fraction(train.labels, fraction=fraction, seed=label_seed)
    x, y = embedded["train"][torch.from_numpy(used)], train.labels[used]
    fit_rows = np.arange(len(y))
    if "validation" in parts:
        own = split.label_fraction(parts["validation"].labels, fraction=fraction, seed=label_seed)
        fit_x = torch.cat([x, embedded["validation"][torch.from_numpy(own)]])
        fit_y = np.concatenate([y, parts["validation"].labels[own]])
        folds, how = [(fit_rows, np.arange(len(y), len(fit_y)))], "the set's own"
    else:
        groups = None if train.groups is None else train.groups[used]
        fit_x, fit_y = x, y
        folds, how = probe.validation_folds(y, fraction=config.validation_fraction, seed=label_seed, groups=groups)
    linear = probe.fit_linear_probe(
        fit_x, fit_y, folds=folds, grid=config.c_grid, rows=fit_rows, max_iterations=config.max_iterations
    )
    fits["fits"] += linear.fits
    fits["unconverged"] += linear.unconverged

    classes = len(train.tiles.classes)
    chosen = {"c": linear.c, "validation": how, "validation_scores": {f"{c:g}": s for c, s in linear.scores.items()}}
    entries = []
    for name in EVALUATED:
        if name not in parts:
            continue
        votes = probe.knn_probabilities(
            x, torch.from_numpy(y), embedded[name], neighbours=config.neighbours, num_classes=classes
        )
        for classifier, probabilities in (
            ("linear", linear.probabilities(embedded[name], num_classes=classes)),
            ("knn", votes.numpy()),
        ):
            entry = {"part": name, "fraction": fraction, "label_seed": label_seed, "labels": len(y)}
            entry |= {"classifier": classifier, **(chosen if classifier == "linear" else {})}
            entries.append((entry, probabilities.argmax(1)))
    return entries


def describe_job(job: Job) -> dict[str, Any]:
    """Return what the report says of an encoder."""
    told = {"name": job.row.name, "seed": job.seed, **plain(job.spec), "size_px": job.size_px}
    return told | {
        "adapt_batch_norm": job.row.adapt_batch_norm,
        "images": job.row.images,
        "num_features": job.num_features,
        "fingerprint": job.fingerprint,
    }


def describe_parts(data: ProbeSet, parts: Parts) -> dict[str, Any]:
    """Return what the report says of a set."""
    classes = parts["train"].tiles.classes
    counts = {
        name: {c: int((part.labels == label).sum()) for label, c in enumerate(classes)} for name, part in parts.items()
    }
    fingerprints = {name: part.fingerprint for name, part in parts.items()}
    return {**plain(data), "classes": list(classes), "tiles": counts, "data_fingerprints": fingerprints}


def describe_set(data: ProbeSet, parts: Parts) -> str:
    """Return one line: name, root, classes, tiles of each part and how many have no label."""
    tiles = ", ".join(f"{len(part.rows)} {name}" for name, part in parts.items())
    left_out = unlabelled(parts)
    rest = f"; {left_out} without a label left out" if left_out else ""
    classes = ", ".join(parts["train"].tiles.classes)
    return f"{data.name}: {data.root} ({data.source}), classes {classes}; tiles: {tiles}{rest}"


def unlabelled(parts: Parts) -> int:
    """Return how many tiles of a set have no label."""
    every = {id(part.tiles): part.tiles for part in parts.values()}
    return sum(int((tiles.labels == UNLABELLED).sum()) for tiles in every.values())


def notes(config: ProbeConfig, jobs: list[Job], sets: dict[str, Parts], fits: dict[str, int]) -> list[str]:
    """Return what a reader must know before believing the figures, a sentence each."""
    found = [
        note
        for data in config.sets
        for job in jobs
        for note in lineage(job, data, holds_out="held-out" in sets[data.name])
    ]
    for row in config.encoders:
        if row.adapt_batch_norm:
            found.append(
                f"{row.name}: batch-norm statistics come from the tiles of each part themselves, the evaluated ones' "
                "too (transductive, without labels)"
            )
    for name, parts in sets.items():
        left_out = unlabelled(parts)
        if left_out:
            found.append(f"{name}: {left_out} tiles without a label were left out")
        groups, test = parts["train"].groups, parts["test"].groups
        data = next(data for data in config.sets if data.name == name)
        if groups is None or test is None:
            found.append(
                f"{name}: no slide or patient ids: tiles of one slide may lie in the training and the evaluated part, "
                "and the intervals take tiles for independent"
            )
        elif set(groups) & set(test):
            shared = sorted(set(groups) & set(test))
            found.append(f"{name}: of the {groups_are(data)} {len(shared)} lie in train and test, such as {shared[0]}")
        if groups is not None and data.group_near_duplicates and not slides_known(data):
            found.append(
                f"{name}: no slide or patient ids, only clusters of near-duplicates: tiles of one slide may lie in the "
                "training and the evaluated part, and the intervals take them for independent"
            )
        for part in EVALUATED:
            few = metrics.few_groups(parts[part].groups) if part in parts else None
            if few is not None:
                found.append(f"{name}, {part}: {few}")
    if fits["unconverged"]:
        found.append(
            f"{fits['unconverged']} of {fits['fits']} linear fits stopped at max_iterations={config.max_iterations} "
            "before they had converged"
        )
    return list(dict.fromkeys(found))


def lineage(job: Job, data: ProbeSet, *, holds_out: bool) -> list[str]:
    """Return what an encoder's weights have seen of a set, a sentence for each run of its lineage that did."""
    found = []
    here = Path(data.root).resolve()
    may_have_seen = "its test tiles may have been among those, so the figures may say nothing about new tiles"
    for section in job.lineage:
        there = Path(section.root).resolve()
        with_labels = section is job.labelled
        how = "with their labels" if with_labels else "without labels"
        seen = f"{job.row.name} was trained on the training tiles of {data.name} {how}"
        if holds_out:
            seen += ", its held-out tiles among them"
        changed = split_changes(data, section) if there == here else []
        if changed:
            found.append(
                f"WARNING: {job.row.name} was trained on {data.name} under another split "
                f"({', '.join(changed)} differs): {may_have_seen}"
            )
        elif there in (here, here / "train"):
            found.append(seen)
        elif there.is_relative_to(here) or here.is_relative_to(there):
            found.append(
                f"WARNING: {job.row.name} was trained on {there}, which overlaps {data.name} ({here}): {may_have_seen}"
            )
    return found
