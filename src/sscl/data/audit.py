"""Does a split leak? Near-duplicates and groups on both sides of it, and the record of an audit.

N tiles of all parts, one part after the other. A part is a split of the set (train, validation, test), or a further set
that was used for pretraining (against.0, run.0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sscl.config import DataConfig, EncoderConfig
from sscl.data import duplicates, outliers
from sscl.data.duplicates import Pair
from sscl.data.load import load_splits, load_tiles
from sscl.data.outliers import Outlier
from sscl.data.rows import Rows
from sscl.data.tiles import UNLABELLED, Tiles
from sscl.records import Record

HELD_OUT = ("validation", "test")  # no tile of these may have a near-duplicate in another part

Counts = dict[str, dict[str, int]]


# --- the record ---


class Place(Record):
    """A tile by its part and its id in it."""

    part: str
    id: str


class PartRecord(Record):
    """A part: where it is from, its tiles by class, and its number of groups (None = no groups known)."""

    root: str
    tiles: int
    class_counts: dict[str, int]
    groups: int | None


class PairRecord(Record):
    """Two tiles that show the same; see `duplicates.Pair`.

    across: one is in a held-out part, the other in another part. labelled_otherwise: their classes differ.
    """

    kind: str
    reason: str
    confidence: float
    across: bool
    first: Place
    second: Place
    score: float
    movement: str
    hash_distance: int | None
    keypoints: int | None
    overlap: float | None
    labelled_otherwise: bool


class OutlierRecord(Record):
    """A tile that stands out; see `outliers.Outlier`."""

    part: str
    id: str
    kind: str
    why: str


class CountsRecord(Record):
    """Totals. pairs: by kind; flagged: outliers by kind. Pairs of kind embedding count in `pairs` alone."""

    tiles: int
    pairs: dict[str, int]
    pairs_across: int
    pairs_labelled_otherwise: int
    clusters: int
    tiles_in_clusters: int
    largest_cluster: int
    flagged: dict[str, int]


class MethodRecord(Record):
    """How near-duplicates were searched; encoder and min_cosine are None without an encoder."""

    size_px: int
    neighbours: int
    stretched: bool
    encoder: EncoderConfig | None
    min_cosine: float | None


class Audit(Record):
    """audit.json.

    leakage: whether near-duplicates or groups are on both sides. verdict: the same in words.
    tiles_with_near_duplicates, straddling_groups: see the functions of these names. pairs: those across splits first.
    clusters: of two and more tiles, largest first.
    """

    leakage: bool
    verdict: str
    parts: dict[str, PartRecord]
    tiles_with_near_duplicates: Counts
    counts: CountsRecord
    straddling_groups: Counts
    pairs: tuple[PairRecord, ...]
    clusters: tuple[tuple[Place, ...], ...]
    flagged: tuple[OutlierRecord, ...]
    method: MethodRecord
    notes: tuple[str, ...]


# --- the search ---


@dataclass(frozen=True)
class Parts:
    """The tiles of each part, at the size of the search, and the folder of each part.

    own: how many of the parts, the first ones, are splits of the set itself.
    """

    tiles: dict[str, Tiles]
    root: dict[str, str]
    own: int

    @cached_property
    def images(self) -> Rows:
        """Pixels of all tiles."""
        return Rows([tiles.images for tiles in self.tiles.values()])

    @cached_property
    def part_of(self) -> NDArray[np.str_]:
        """The part of each tile, (N,)."""
        return np.repeat(np.array(list(self.tiles)), [len(tiles) for tiles in self.tiles.values()])

    @cached_property
    def ids(self) -> list[str]:
        """The id of each tile."""
        return [name for tiles in self.tiles.values() for name in tiles.ids]

    @cached_property
    def labels(self) -> list[str | None]:
        """The class of each tile; None = unlabelled."""
        parts = self.tiles.values()
        return [tiles.classes[label] if label != UNLABELLED else None for tiles in parts for label in tiles.labels]

    def place(self, row: int) -> Place:
        """Return the part and id of a tile."""
        return Place(part=str(self.part_of[row]), id=self.ids[row])

    def labels_differ(self, pair: Pair) -> bool:
        """Return whether both tiles of a pair have a class, and not the same one."""
        first, second = self.labels[pair.first], self.labels[pair.second]
        return None not in (first, second) and first != second


def load_parts(data: DataConfig, further: Mapping[str, DataConfig], *, progress: bool) -> Parts:
    """Return the splits of a set and the training tiles of further sets, at the size of the search.

    Raises:
        ValueError, FileNotFoundError: a set cannot be loaded; for a further one the line begins with its name.
    """
    for name, section in {"data": data, **further}.items():
        if section.source == "slides":
            raise ValueError(
                f"{name}.root: {section.root} is an index of slides; the audit compares tiles that are files (tiles of "
                "a patient or slide stay on one side of a split, and sscl eval says which slides training has used)"
            )
    searched = {"size_px": duplicates.SIZE_PX, "stain": "none"}
    tiles = load_splits(data.model_copy(update=searched), progress=progress)
    root, own = dict.fromkeys(tiles, data.root), len(tiles)
    for name, section in further.items():
        tiles[name] = load_tiles(section.model_copy(update=searched), split="train", progress=progress, key=name)
        root[name] = section.root
    return Parts(tiles, root, own)


@dataclass(frozen=True)
class Findings:
    """What was found among the parts.

    Attributes:
        pairs: all pairs, those across splits first, then by kind and score. across: those across splits.
        clusters: the number of each tile's cluster of near-duplicates, (N,).
        tiles_with_near_duplicates, straddling_groups: see the functions of these names.
        outliers: by row.
    """

    pairs: list[Pair]
    across: list[Pair]
    clusters: NDArray[np.int64]
    tiles_with_near_duplicates: Counts
    straddling_groups: Counts
    outliers: list[Outlier]

    @property
    def leakage(self) -> bool:
        """Whether near-duplicates or groups are on both sides."""
        shared = any(number for of in self.tiles_with_near_duplicates.values() for number in of.values())
        return bool(shared or self.straddling_groups)


def search(
    parts: Parts,
    *,
    embeddings: NDArray[np.float32] | None = None,
    min_cosine: float = 0.95,
    neighbours: int = 20,
    stretched: bool | None = None,
    progress: bool = False,
) -> Findings:
    """Return near-duplicates, shared groups and outliers of the parts; arguments as for `duplicates.find_pairs`."""
    pairs = duplicates.find_pairs(
        parts.images,
        embeddings=embeddings,
        min_cosine=min_cosine,
        neighbours=neighbours,
        stretched=stretched,
        progress=progress,
    )
    same = [(pair.first, pair.second) for pair in pairs if pair.kind != "embedding"]
    clusters = duplicates.clusters_of(len(parts.ids), same)
    across = crossing(pairs, parts.part_of)
    first = set(across)
    own = list(parts.tiles)[: parts.own]

    def order(pair: Pair) -> tuple[bool, int, float, int, int]:
        return pair not in first, duplicates.KINDS.index(pair.kind), -pair.score, pair.first, pair.second

    return Findings(
        pairs=sorted(pairs, key=order),
        across=across,
        clusters=clusters,
        tiles_with_near_duplicates=tiles_with_near_duplicates(clusters, parts.part_of),
        straddling_groups=straddling_groups({name: parts.tiles[name] for name in own}),
        outliers=outliers_of(parts, progress=progress),
    )


def crossing(pairs: Sequence[Pair], part_of: NDArray[np.str_]) -> list[Pair]:
    """Return the pairs of a held-out tile and a tile of another part; part_of: that of each tile, (N,).

    Pairs of kind `embedding` are only similar, and are left out.
    """
    return [
        pair
        for pair in pairs
        if pair.kind != "embedding"
        and part_of[pair.first] != part_of[pair.second]
        and (part_of[pair.first] in HELD_OUT or part_of[pair.second] in HELD_OUT)
    ]


def tiles_with_near_duplicates(clusters: NDArray[np.int64], part_of: NDArray[np.str_]) -> Counts:
    """Return, for each held-out and each other part, how many tiles of the first have a near-duplicate in the other.

    A near-duplicate of a near-duplicate counts too.
    """
    parts = list(dict.fromkeys(part_of.tolist()))
    found: Counts = {}
    for held in (part for part in parts if part in HELD_OUT):
        of_held = clusters[part_of == held]
        found[held] = {part: int(np.isin(of_held, clusters[part_of == part]).sum()) for part in parts if part != held}
    return found


def straddling_groups(parts: Mapping[str, Tiles]) -> Counts:
    """Return the groups (slides, patients) with tiles in several of the parts, and how many in each."""
    counts: Counts = {}
    for name, tiles in parts.items():
        if tiles.groups is not None:
            for group, count in zip(*np.unique(tiles.groups, return_counts=True), strict=True):
                counts.setdefault(str(group), {})[name] = int(count)
    return {group: where for group, where in counts.items() if len(where) > 1}


def outliers_of(parts: Parts, *, progress: bool) -> list[Outlier]:
    """Return the tiles that stand out, with their rows among all: in the set as a whole, and in each further one."""
    names = list(parts.tiles)
    found, first = [], 0
    for group in (names[: parts.own], *([name] for name in names[parts.own :])):
        images = Rows([parts.tiles[name].images for name in group])
        for outlier in outliers.find_outliers(outliers.measure(images, progress=progress)):
            found.append(Outlier(first + outlier.row, outlier.kind, outlier.reason, outlier.value))
        first += len(images)
    return found


# --- from the findings to the record ---


def record_of(parts: Parts, found: Findings, *, method: MethodRecord, verdict: str, notes: Sequence[str]) -> Audit:
    """Return the record of an audit."""
    across = set(found.across)
    same = [pair for pair in found.pairs if pair.kind != "embedding"]
    sizes = np.bincount(found.clusters)
    return Audit(
        leakage=found.leakage,
        verdict=verdict,
        parts={name: _part_record(tiles, parts.root[name]) for name, tiles in parts.tiles.items()},
        tiles_with_near_duplicates=found.tiles_with_near_duplicates,
        counts=CountsRecord(
            tiles=len(parts.ids),
            pairs={kind: sum(pair.kind == kind for pair in found.pairs) for kind in duplicates.KINDS},
            pairs_across=len(across),
            pairs_labelled_otherwise=sum(map(parts.labels_differ, same)),
            clusters=int((sizes > 1).sum()),
            tiles_in_clusters=int(sizes[sizes > 1].sum()),
            largest_cluster=int(sizes.max()),
            flagged=dict(Counter(outlier.kind for outlier in found.outliers)),
        ),
        straddling_groups=found.straddling_groups,
        pairs=tuple(_pair_record(parts, pair, across=pair in across) for pair in found.pairs),
        clusters=tuple(tuple(map(parts.place, rows)) for rows in _members(found.clusters)),
        flagged=tuple(
            OutlierRecord(**parts.place(outlier.row).model_dump(), kind=outlier.kind, why=outlier.reason)
            for outlier in found.outliers
        ),
        method=method,
        notes=tuple(notes),
    )


def _part_record(tiles: Tiles, root: str) -> PartRecord:
    groups = None if tiles.groups is None else len(np.unique(tiles.groups))
    return PartRecord(root=root, tiles=len(tiles), class_counts=tiles.class_counts(), groups=groups)


def _pair_record(parts: Parts, pair: Pair, *, across: bool) -> PairRecord:
    return PairRecord(
        kind=pair.kind,
        reason=pair.reason,
        confidence=round(pair.confidence, 4),
        across=across,
        first=parts.place(pair.first),
        second=parts.place(pair.second),
        score=round(pair.score, 4),
        movement=pair.movement,
        hash_distance=pair.distance,
        keypoints=pair.keypoints,
        overlap=None if pair.overlap is None else round(pair.overlap, 3),
        labelled_otherwise=parts.labels_differ(pair),
    )


def _members(clusters: NDArray[np.int64]) -> list[list[int]]:
    """Return the rows of each cluster of two and more tiles, largest first."""
    members: dict[int, list[int]] = {}
    sizes = np.bincount(clusters)
    for row in np.flatnonzero(sizes[clusters] > 1):
        members.setdefault(int(clusters[row]), []).append(int(row))
    return sorted(members.values(), key=lambda rows: -len(rows))
