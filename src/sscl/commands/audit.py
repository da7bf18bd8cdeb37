"""sscl data audit: does the split leak? Duplicates within and across splits, odd tiles, the evidence as pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import run, writing
from sscl.config import AuditConfig, DataConfig, SourceConfig, plain
from sscl.data import audit, duplicates
from sscl.data.audit import Flag
from sscl.data.duplicates import Pair
from sscl.data.load import all_rows, load_splits, load_tiles, near_duplicate_groups, split_changes
from sscl.data.rows import Rows
from sscl.data.tiles import UNLABELLED, Tiles, place_store
from sscl.device import describe_device, pick_device, pick_precision
from sscl.evaluate import metrics
from sscl.models import checkpoint, features
from sscl.models.start import frozen_encoder
from sscl.plots import audit as audit_plots
from sscl.plots import sheets
from sscl.run import check_inputs_outside

HELD_OUT = ("validation", "test")  # no tile of these may come again in another part


@dataclass(frozen=True)
class Parts:
    """All tiles looked at, one part after the other.

    Attributes:
        tiles: of each part, at the size of the search: the set's splits, then the sets of `against` and `run`.
        root: of each part.
        part_of, ids, labels: of each row.
    """

    tiles: dict[str, Tiles]
    root: dict[str, str]

    @property
    def images(self) -> Rows:
        """Pixels of all rows."""
        return Rows([tiles.images for tiles in self.tiles.values()])

    @property
    def part_of(self) -> NDArray[np.str_]:
        """The part of each row, (N,)."""
        return np.repeat(np.array(list(self.tiles)), [len(tiles) for tiles in self.tiles.values()])

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [name for tiles in self.tiles.values() for name in tiles.ids]

    @property
    def labels(self) -> list[str | None]:
        """The class of each row; None where it has none."""
        parts = self.tiles.values()
        return [tiles.classes[label] if label != UNLABELLED else None for tiles in parts for label in tiles.labels]


def main(config: AuditConfig, *, overwrite: bool = False, strict: bool = False) -> int:
    """Write audit.json, pairs.png and flagged.png, say whether the split leaks, and return 1 if it does and `strict`.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line; then nothing is written.
    """
    out = run.check_run_folder(config.out, overwrite=overwrite)
    further = further_sets(config)
    check_inputs_outside(
        out,
        {
            "data.root": config.data.root,
            "encoder.weights": config.encoder.weights,
            "run": config.run,
            **{f"{name}.root": data.root for name, data in further.items()},
        },
    )
    parts = open_parts(config, further)
    embeddings = embed(config, further) if asks_for_encoder(config) else None
    part_of, ids, labels = parts.part_of, parts.ids, parts.labels
    pairs = duplicates.find_pairs(
        parts.images,
        embeddings=embeddings,
        min_cosine=config.min_cosine,
        neighbours=config.neighbours,
        progress=config.progress,
    )
    sure = [pair for pair in pairs if pair.kind != "embedding"]
    clusters = duplicates.clusters_of(len(ids), [(pair.first, pair.second) for pair in sure])
    across = audit.crossing(pairs, part_of, held_out=HELD_OUT)
    crossing = set(across)
    twins = audit.tiles_with_twins(clusters, part_of, held_out=HELD_OUT)
    own = {name: tiles for name, tiles in parts.tiles.items() if name not in further}
    straddling = audit.straddling_groups(own)
    flags = flag_sets(parts, own=len(own), progress=config.progress)
    leaks = bool(across or straddling)
    pairs = sorted(pairs, key=lambda pair: seriousness(pair, across=crossing))

    sizes = np.bincount(clusters)
    report: dict[str, Any] = {
        "leakage": leaks,
        "verdict": verdict(parts, across=across, twins=twins, straddling=straddling),
        "parts": {name: part_facts(parts, name) for name in parts.tiles},
        "tiles_with_twins": twins,
        "counts": {
            "tiles": len(ids),
            "pairs": {kind: sum(pair.kind == kind for pair in pairs) for kind in duplicates.KINDS},
            "pairs_across": len(across),
            "pairs_labelled_otherwise": sum(labelled_otherwise(pair, labels) for pair in sure),
            "clusters": int((sizes > 1).sum()),
            "tiles_in_clusters": int(sizes[sizes > 1].sum()),
            "largest_cluster": int(sizes.max()),
            "flagged": dict(Counter(flag.kind for flag in flags)),
        },
        "straddling_groups": straddling,
        "pairs": [
            pair_facts(pair, part_of, ids, across=pair in crossing)
            | {"labelled_otherwise": labelled_otherwise(pair, labels)}
            for pair in pairs
        ],
        "clusters": cluster_facts(clusters, part_of, ids),
        "flagged": [
            {"part": str(part_of[flag.row]), "id": ids[flag.row], "kind": flag.kind, "why": flag.reason}
            for flag in flags
        ],
        "method": {
            "size_px": duplicates.SIZE_PX,
            "neighbours": config.neighbours,
            "encoder": plain(config.encoder) if embeddings is not None else None,
            "min_cosine": config.min_cosine if embeddings is not None else None,
        },
        "notes": notes(config, parts, leaks=leaks),
    }

    run.start_folder(out, config=plain(config), overwrite=overwrite)
    writing.write_json(out / "audit.json", report)
    written = ["audit.json", *draw(config, parts, pairs, across=across, flags=flags, out=out)]
    for line in summary(report):
        print(line)
    print(f"wrote {out}/{', '.join(written)}")
    return int(strict and leaks)


def asks_for_encoder(config: AuditConfig) -> bool:
    """Return whether an encoder was named."""
    return config.encoder.model is not None or config.encoder.weights is not None


def further_sets(config: AuditConfig) -> dict[str, DataConfig]:
    """Return the sets of `against`, and those that `run` was trained on, by the name of their part.

    Raises:
        ValueError, FileNotFoundError: `run` is not a checkpoint or not the run folder of one.
    """
    named: dict[str, DataConfig] = {f"against.{i}": data for i, data in enumerate(config.against)}
    if config.run is None:
        return named
    found: dict[str, DataConfig] = {}
    for section in checkpoint.load_checkpoint(config.run, tensors=False).trained_on:
        source = SourceConfig(**plain(section))
        same = Path(source.root).resolve() == Path(config.data.root).resolve()
        if not (same and not split_changes(config.data, source)) and source not in found.values():
            found[f"run.{len(found)}"] = source
    return {**named, **found}


def open_parts(config: AuditConfig, further: dict[str, DataConfig]) -> Parts:
    """Load the splits of the set, and the training tiles of the further sets, at the size of the search."""
    same = {"size_px": duplicates.SIZE_PX, "stain": "none"}
    tiles = load_splits(config.data.model_copy(update=same), progress=config.progress)
    root = dict.fromkeys(tiles, config.data.root)
    for name, data in further.items():
        try:
            tiles[name] = load_tiles(data.model_copy(update=same), split="train", progress=config.progress)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{name}.root: {error}") from error
        root[name] = data.root
    return Parts(tiles, root)


def embed(config: AuditConfig, further: dict[str, DataConfig]) -> NDArray[np.float32]:
    """Return the encoder's embeddings of all parts, (N, C), of tiles at the encoder's size."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    start = frozen_encoder(config.encoder)
    print(f"device: {describe_device(device)}, precision {precision}")
    encoder = start.encoder.to(device)

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


def flag_sets(parts: Parts, *, own: int, progress: bool) -> list[Flag]:
    """Return the tiles that stand out, with their rows among all: in the set as a whole, and in each further one."""
    names = list(parts.tiles)
    flags, first = [], 0
    for group in (names[:own], *([name] for name in names[own:])):
        images = Rows([parts.tiles[name].images for name in group])
        found = audit.flag_tiles(audit.measure(images, progress=progress))
        flags += [Flag(first + flag.row, flag.kind, flag.reason, flag.value) for flag in found]
        first += len(images)
    return flags


def seriousness(pair: Pair, *, across: set[Pair]) -> tuple[Any, ...]:
    """Return what sorts the pairs: across splits first, then surest kind, highest score."""
    return pair not in across, duplicates.KINDS.index(pair.kind), -pair.score, pair.first, pair.second


def verdict(
    parts: Parts,
    *,
    across: Sequence[Pair],
    twins: dict[str, dict[str, int]],
    straddling: dict[str, dict[str, int]],
) -> str:
    """Return in words whether the split leaks."""
    if not twins:
        return "there is no held-out part here, so nothing can leak; duplicates within the tiles are listed"
    found = [
        f"{count} of {len(parts.tiles[held])} {held} tiles show what a tile of {part} shows"
        for held, of in twins.items()
        for part, count in of.items()
        if count
    ]
    if straddling:
        found.append(f"{len(straddling)} groups ({metrics.GROUPS}) have tiles on both sides")
    if found and (across or straddling):
        return f"THE SPLIT LEAKS: {'; '.join(found)}"
    others = [part for part in parts.tiles if part not in twins]
    of = " or ".join(part if "." not in part else f"{part} ({Path(parts.root[part]).name})" for part in others)
    return f"no leakage found: no {' or '.join(twins)} tile was found that shows what a tile of {of} shows"


def notes(config: AuditConfig, parts: Parts, *, leaks: bool) -> list[str]:
    """Return what a reader must know beside the verdict."""
    found = []
    if leaks and made_here(config.data) and not config.data.group_near_duplicates:
        found.append("this split is made here: data.group_near_duplicates=true keeps duplicates on one side")
    elif leaks:
        found.append("the set or its groups give this split: leave the tiles of audit.json out of one side")
    given = next(iter(parts.tiles.values())).groups
    if config.data.group_near_duplicates:  # the groups hold clusters of duplicates too
        found_groups = near_duplicate_groups(config.data, split="train", progress=False)
        given = None if found_groups.given is None else given
    if given is None and any(name in HELD_OUT for name in parts.tiles):
        found.append(
            "no slide or patient ids: tiles of one slide that do not overlap may still lie on both sides, unseen"
        )
    return found


def made_here(data: DataConfig) -> bool:
    """Return whether train and test are divided by sscl, not by the data set."""
    if data.source == "folder":
        return not (Path(data.root) / "train").is_dir()
    return data.source in ("mhist", "synthetic") and data.protocol == "paper_balanced"


def part_facts(parts: Parts, name: str) -> dict[str, Any]:
    """Return where a part is from, its tiles by class, and how many groups it has."""
    tiles = parts.tiles[name]
    return {
        "root": parts.root[name],
        "tiles": len(tiles),
        "class_counts": tiles.class_counts(),
        "groups": None if tiles.groups is None else len(np.unique(tiles.groups)),
    }


def pair_facts(pair: Pair, part_of: NDArray[np.str_], ids: Sequence[str], *, across: bool) -> dict[str, Any]:
    """Return a pair for audit.json."""
    return {
        "kind": pair.kind,
        "across": across,
        "first": {"part": str(part_of[pair.first]), "id": ids[pair.first]},
        "second": {"part": str(part_of[pair.second]), "id": ids[pair.second]},
        "score": round(pair.score, 4),
        "movement": pair.movement,
        "hash_distance": pair.distance,
        "keypoints": pair.keypoints,
        "overlap": None if pair.overlap is None else round(pair.overlap, 3),
    }


def labelled_otherwise(pair: Pair, labels: Sequence[str | None]) -> bool:
    """Return whether both tiles of a pair have a class, and not the same one."""
    return None not in (labels[pair.first], labels[pair.second]) and labels[pair.first] != labels[pair.second]


def cluster_facts(
    clusters: NDArray[np.int64], part_of: NDArray[np.str_], ids: Sequence[str]
) -> list[list[dict[str, str]]]:
    """Return the clusters of two tiles and more, largest first."""
    members: dict[int, list[dict[str, str]]] = {}
    sizes = np.bincount(clusters)
    for row in np.flatnonzero(sizes[clusters] > 1):
        members.setdefault(int(clusters[row]), []).append({"part": str(part_of[row]), "id": ids[int(row)]})
    return sorted(members.values(), key=lambda cluster: -len(cluster))


def draw(
    config: AuditConfig,
    parts: Parts,
    pairs: Sequence[Pair],
    *,
    across: Sequence[Pair],
    flags: Sequence[Flag],
    out: Path,
) -> list[str]:
    """Draw pairs.png and flagged.png where there is something to draw; return their names."""
    images, part_of, ids = parts.images, parts.part_of, parts.ids
    written = []
    shown = list(pairs[: config.shown])
    if shown:
        serious = set(across)
        audit_plots.pair_sheet(
            [(images[pair.first], images[pair.second]) for pair in shown],
            captions=[
                (
                    f"{part_of[pair.first]}: {Path(ids[pair.first]).name}",
                    f"{part_of[pair.second]}: {Path(ids[pair.second]).name}",
                    pair_caption(pair),
                )
                for pair in shown
            ],
            serious=[pair in serious for pair in shown],
            path=out / "pairs.png",
            title=f"{len(shown)} of {len(pairs):,} pairs; {len(across):,} lie across splits (thick frame), shown first",
        )
        written.append("pairs.png")
    if flags:
        by_kind = sorted(flags, key=lambda flag: (flag.kind, -abs(flag.value)))
        turn = Counter[str]()
        order = []
        for flag in by_kind:  # the kinds take turns
            order.append((turn[flag.kind], flag))
            turn[flag.kind] += 1
        chosen = [flag for _, flag in sorted(order, key=lambda entry: entry[0])[: config.shown]]
        sheets.contact_sheet(
            np.stack([images[flag.row] for flag in chosen]),
            captions=[f"{part_of[flag.row]}: {Path(ids[flag.row]).name}\n{flag_caption(flag)}" for flag in chosen],
            path=out / "flagged.png",
        )
        written.append("flagged.png")
    return written


def pair_caption(pair: Pair) -> str:
    """Return the line below a pair: how it was found, how sure, how moved."""
    if pair.kind == "exact":
        return "equal pixels"
    if pair.kind == "embedding":
        return f"alike only: cosine {pair.score:.3f}"
    if pair.kind == "hash":
        return f"r {pair.score:.2f}, hash {pair.distance} bits apart\n{pair.movement}"
    return f"r {pair.score:.2f}, {pair.keypoints} points, {100 * (pair.overlap or 0):.0f}% overlap\n{pair.movement}"


def flag_caption(flag: Flag) -> str:
    """Return the short reason under a flagged tile."""
    if flag.kind == "blank":
        return f"blank: {flag.reason}"
    return f"{flag.kind}: {abs(flag.value):.1f} dev."  # contact_sheet has room for 20 letters


def summary(report: dict[str, Any]) -> list[str]:
    """Return the lines to print."""
    lines = []
    for name, facts in report["parts"].items():
        counts = ", ".join(f"{count} {label}" for label, count in facts["class_counts"].items())
        groups = "no groups" if facts["groups"] is None else f"{facts['groups']} groups"
        lines.append(f"{name}: {facts['tiles']} tiles of {facts['root']} ({counts}; {groups})")
    counts = report["counts"]
    kinds = counts["pairs"]
    lines.append(
        f"pairs that show the same: {kinds['exact'] + kinds['hash'] + kinds['keypoints']} ({kinds['exact']} of equal "
        f"pixels, {kinds['hash']} by hash, {kinds['keypoints']} by keypoints), {counts['pairs_across']} across splits"
    )
    if counts["pairs_labelled_otherwise"]:
        lines.append(
            f"of these, {counts['pairs_labelled_otherwise']} pairs have another class on each side: look at them"
        )
    if counts["clusters"]:
        lines.append(
            f"clusters: {counts['clusters']} of 2 to {counts['largest_cluster']} tiles, "
            f"{counts['tiles_in_clusters']} of {counts['tiles']} tiles"
        )
    if report["method"]["encoder"] is not None:
        lines.append(f"alike by embedding only, not counted: {kinds['embedding']} pairs")
    flagged = counts["flagged"]
    if flagged:
        lines.append("tiles to look at: " + ", ".join(f"{flagged[kind]} {kind}" for kind in sorted(flagged)))
    lines.append(report["verdict"])
    return lines + [f"note: {note}" for note in report["notes"]]
