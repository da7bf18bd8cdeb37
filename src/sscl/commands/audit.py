"""sscl data audit: check a split for leakage (near-duplicates, shared groups) and list outliers, with pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import run
from sscl.config import AuditConfig, DataConfig, SourceConfig
from sscl.data import audit, duplicates
from sscl.data.audit import HELD_OUT, Audit, Findings, MethodRecord, Parts
from sscl.data.load import (
    accounts,
    all_rows,
    load_splits,
    load_tiles,
    saw_all,
    split_changes,
    split_is_made_here,
)
from sscl.data.tiles import Tiles, place_store
from sscl.device import describe_device, pick_device, pick_precision, tune
from sscl.evaluate import lineage
from sscl.evaluate.intervals import GROUPS
from sscl.models import checkpoint, features
from sscl.models.start import frozen_encoder
from sscl.plots import audit as audit_plots
from sscl.records import write_record
from sscl.words import count, listed, next_command, some


def main(config: AuditConfig, *, overwrite: bool = False, strict: bool = False) -> int:
    """Write audit.json, pairs.png and flagged.png, print the verdict, and return 1 if the split leaks and `strict`."""
    out = Path(config.out)
    further = further_sets(config)
    inputs = {"encoder.weights": config.encoder.weights, "run": config.run}
    for key, data in {"data": config.data, **further}.items():
        inputs |= data.files(key)
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs) as folder:
        parts = audit.load_parts(config.data, further, progress=config.progress)
        for line in accounted(parts):
            print(line)
        stretched = config.stretched
        if stretched is None:
            stretched = len(parts.ids) <= duplicates.STRETCHED_TILES
        with_encoder = config.encoder.model is not None or config.encoder.weights is not None
        found = audit.search(
            parts,
            embeddings=embed(config, further) if with_encoder else None,
            min_cosine=config.min_cosine,
            neighbours=config.neighbours,
            stretched=stretched,
            progress=config.progress,
        )
        report = audit.record_of(
            parts,
            found,
            method=MethodRecord(
                size_px=duplicates.SIZE_PX,
                neighbours=config.neighbours,
                stretched=stretched,
                encoder=config.encoder if with_encoder else None,
                min_cosine=config.min_cosine if with_encoder else None,
            ),
            verdict=verdict(parts, found),
            notes=notes(config, parts, stretched=stretched, leaks=found.leakage),
        )

        write_record(folder / "audit.json", report)
        written = ["audit.json"]
        if found.pairs:
            audit_plots.draw_pairs(parts, found, limit=config.shown, path=folder / "pairs.png")
            written.append("pairs.png")
        if found.outliers:
            audit_plots.draw_outliers(parts, found.outliers, limit=config.shown, path=folder / "flagged.png")
            written.append("flagged.png")
    print("\n".join(summary(report)))
    print(f"wrote {out}/{', '.join(written)}")
    print(next_command("pretrain", config.data.root, "run=runs/pretrain"))
    return int(strict and report.leakage)


def further_sets(config: AuditConfig) -> dict[str, DataConfig]:
    """Return the sets of `against`, and those that `run` was trained on, by the name of their part.

    Raises:
        ValueError, FileNotFoundError: `run` is not a checkpoint or not the run folder of one.
    """
    named: dict[str, DataConfig] = {f"against.{i}": SourceConfig(**dict(data)) for i, data in enumerate(config.against)}
    if config.run is None:
        return named
    found: dict[str, DataConfig] = {}
    for section in checkpoint.load_checkpoint(config.run, tensors=False).trained_on:
        source = SourceConfig(**{"labels": True, **dict(section)})  # fine-tuning has used the classes
        same = Path(source.root).resolve() == Path(config.data.root).resolve()
        if (
            not (same and not split_changes(config.data, source) and not saw_all(source))
            and source not in found.values()
        ):
            found[f"run.{len(found)}"] = source
    return {**named, **found}


def accounted(parts: Parts) -> list[str]:
    """Return what was taken and passed over of each set, a line each."""
    own = [name for name in parts.tiles if "." not in name]
    further = [name for name in parts.tiles if "." in name]
    found = accounts({name: parts.tiles[name] for name in own})
    for name in further:
        found += [f"  {name}: {line.strip()}" for line in accounts({"train": parts.tiles[name]})]
    return found


def embed(config: AuditConfig, further: dict[str, DataConfig]) -> NDArray[np.float32]:
    """Return the encoder's embeddings of all parts, (N, C), computed from tiles at the encoder's size."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    start = frozen_encoder(config.encoder, section="encoder.")
    print(f"device: {describe_device(device)}, precision {precision}")
    tune(device)
    encoder = start.encoder.to(device).to(memory_format=torch.channels_last)

    def of(tiles: Tiles, name: str) -> NDArray[np.float32]:
        store = place_store(tiles.images, device=device, budget_gb=config.data.device_budget_gb)
        found: NDArray[np.float32] = features.outputs(
            encoder,
            store,
            all_rows(tiles),
            mean=torch.tensor(start.mean, device=device),
            std=torch.tensor(start.std, device=device),
            batch_size=config.batch_size,
            precision=precision,
            progress=f"embed {name}" if config.progress else None,
        ).numpy()
        return found

    size_px = start.size_px or config.data.size_px
    splits = load_splits(config.data.model_copy(update={"size_px": size_px}), progress=config.progress)
    rows = [of(tiles, name) for name, tiles in splits.items()]
    for name, data in further.items():
        tiles = load_tiles(data.model_copy(update={"size_px": size_px}), split="train", progress=config.progress)
        rows.append(of(tiles, name))
    return np.concatenate(rows)


def verdict(parts: Parts, found: Findings) -> str:
    """Return in words whether the split leaks."""
    held_out = found.tiles_with_near_duplicates
    if not held_out:
        return "no validation or test part, so nothing can leak; duplicates within the tiles are listed"
    leaks = [
        f"{number} of {count(len(parts.tiles[held]), f'{held} tile')} have a near-duplicate in {part}"
        for held, of in held_out.items()
        for part, number in of.items()
        if number
    ]
    if found.straddling_groups:
        groups = count(len(found.straddling_groups), "group")
        leaks.append(f"{groups} ({GROUPS}) with tiles on both sides of the split")
    if found.leakage:
        return f"THE SPLIT LEAKS: {'; '.join(leaks)}"
    others = [
        part if "." not in part else f"{part} ({Path(parts.root[part]).name})"
        for part in parts.tiles
        if part not in held_out
    ]
    return f"no leakage found: no {' or '.join(held_out)} tile has a near-duplicate in {listed(others, last='or')}"


def notes(config: AuditConfig, parts: Parts, *, stretched: bool, leaks: bool) -> list[str]:
    """Return what a reader must know beside the verdict."""
    found = []
    if not stretched:
        why = f"more than {duplicates.STRETCHED_TILES:,} tiles" if config.stretched is None else "stretched=false"
        found.append(f"{why}: copies stretched by about 2 were not searched and are mostly missed (stretched=true)")
    if leaks and split_is_made_here(config.data) and not config.data.group_near_duplicates:
        found.append("sscl makes this split: data.group_near_duplicates=true keeps near-duplicates on one side")
    elif leaks:
        found.append("the data set or its groups define this split: remove the tiles in audit.json from one side")
    without_slides = lineage.without_slides(config.data, next(iter(parts.tiles.values())).groups)
    if without_slides is not None and any(name in HELD_OUT for name in parts.tiles):
        found.append(f"{without_slides}; only those that overlap are found here")
    return found


def summary(report: Audit) -> list[str]:
    lines = []
    for name, part in report.parts.items():
        classes = some([f"{tiles} {label}" for label, tiles in part.class_counts.items()])
        groups = "no groups" if part.groups is None else count(part.groups, "group")
        lines.append(f"{name}: {count(part.tiles, 'tile')} in {part.root} ({classes}; {groups})")
    counts, kinds = report.counts, report.counts.pairs
    lines.append(
        f"near-duplicates: {count(kinds['exact'] + kinds['hash'] + kinds['keypoints'], 'pair')} ({kinds['exact']} with "
        f"identical pixels, {kinds['hash']} by hash, {kinds['keypoints']} by keypoints), {counts.pairs_across} across "
        "splits"
    )
    if counts.pairs_labelled_otherwise:
        lines.append(f"different labels within a pair: {count(counts.pairs_labelled_otherwise, 'pair')}; check them")
    if counts.clusters:
        lines.append(
            f"clusters: {counts.clusters}, the largest of {count(counts.largest_cluster, 'tile')}; "
            f"{counts.tiles_in_clusters} of {count(counts.tiles, 'tile')} are in a cluster"
        )
    if report.method.encoder is not None:
        lines.append(f"similar by embedding only, not counted: {count(kinds['embedding'], 'pair')}")
    blank = Counter(tile.part for tile in report.flagged if tile.kind == "blank")
    if blank:
        parts = some([f"{number} in {part}" for part, number in blank.items()])
        lines.append(f"blank: {count(blank.total(), 'tile')} ({parts}), compared with no other")
    if counts.flagged:
        lines.append("outliers: " + ", ".join(f"{counts.flagged[kind]} {kind}" for kind in sorted(counts.flagged)))
    lines.append(report.verdict)
    return lines + [f"note: {note}" for note in report.notes]
