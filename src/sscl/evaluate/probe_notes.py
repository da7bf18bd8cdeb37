"""What a reader must know of a probe: which tiles its encoders have seen, which slides are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sscl.config import ProbeConfig, ProbeSet
from sscl.data.load import split_changes
from sscl.data.slide_set import WEAK
from sscl.evaluate import lineage
from sscl.evaluate.intervals import few_groups, group_count
from sscl.evaluate.probe_inputs import EVALUATED, Job, Parts, unlabelled
from sscl.evaluate.probe_report import Fits, MissingEncoder
from sscl.evaluate.probe_shots import FewShot
from sscl.words import count, some

MAY_HAVE_SEEN = "its test tiles may have been training tiles, so the metrics may not hold for new tiles"


def probe_notes(config: ProbeConfig, jobs: Sequence[Job], sets: Mapping[str, Parts], fits: Fits) -> tuple[str, ...]:
    """Return what a reader must know before trusting the results, a sentence each."""
    found = [
        note
        for data in config.sets
        for job in jobs
        for note in seen_tiles(job, data, holds_out="held-out" in sets[data.name])
    ]
    found += [
        f"WARNING: {job.row.name}: {text}"
        for data in config.sets
        for part in EVALUATED
        if part in sets[data.name]
        for job in jobs
        for text in lineage.shared_slides(
            sets[data.name][part].tiles, [one for one in job.lineage if lineage.overlap(data, one) is None]
        )
    ]
    found += [
        f"{row.name}: batch-norm statistics come from each part's own tiles, also the evaluated ones (transductive, "
        "without labels)"
        for row in config.encoders
        if row.adapt_batch_norm
    ]
    for data in config.sets:
        found += [f"{data.name}{text}" for text in _set_notes(data, sets[data.name])]
    if fits.unconverged:
        found.append(
            f"{fits.unconverged} of {fits.fits} linear fits stopped at max_iterations={config.max_iterations} before "
            "they had converged"
        )
    return tuple(dict.fromkeys(found))


def _set_notes(data: ProbeSet, parts: Parts) -> list[str]:
    """Return what to know of a set, each to follow its name."""
    left_out = unlabelled(parts)
    found = [f": {count(left_out, 'tile')} without a label left out"] if left_out else []
    found += [f": {WEAK}, not the tiles' own"] if data.weak_labels else []
    found += [f": {text}" for text in lineage.review_caveats(data)]
    train, test = parts["train"].groups, parts["test"].groups
    unknown = lineage.without_slides(data, None if test is None else train)
    shared = lineage.shared_groups(data, train, test)
    found += [f": {text}" for text in (unknown, shared) if text is not None]
    if train is None or test is None:
        found.append(f": {lineage.INDEPENDENT}")
    for name in EVALUATED:
        few = few_groups(group_count(parts[name].groups)) if name in parts else None
        found += [f", {name}: {few}"] if few is not None else []
    return found


def reference_notes(config: ProbeConfig, absent: Sequence[MissingEncoder]) -> list[str]:
    """Return that there are no differences where the reference's weights are missing."""
    gone = config.reference is not None and any(one.name == config.reference for one in absent)
    return [f"no differences: the weights of the reference {config.reference} are not on this disk"] if gone else []


def shot_notes(config: ProbeConfig, found: Sequence[FewShot], sets: Mapping[str, Parts]) -> list[str]:
    """Return which classes and numbers of shots SimpleShot leaves out, a sentence each."""
    notes = []
    for data in config.sets:
        train = sets[data.name]["train"]
        tiles = {name: int((train.labels == label).sum()) for label, name in enumerate(train.tiles.classes)}
        of_set = {row.shots: row.left_out for row in found if row.set == data.name}
        for shots in config.shots:
            if shots not in of_set:
                notes.append(f"{data.name}: no SimpleShot with {count(shots, 'shot')}: too few training tiles a class")
            elif of_set[shots]:
                rare = some([f"{name} ({count(tiles[name], 'training tile')})" for name in of_set[shots]])
                notes.append(
                    f"{data.name}: SimpleShot with {count(shots, 'shot')} leaves out {rare} and their test tiles"
                )
    return notes


def seen_tiles(job: Job, data: ProbeSet, *, holds_out: bool) -> list[str]:
    """Return which tiles of a set an encoder was trained on, a sentence for each run of its lineage that used some."""
    found = []
    for section in job.lineage:
        overlap = lineage.overlap(data, section)
        changed = split_changes(data, section) if overlap == "same" and lineage.same_root(data, section) else []
        if changed:
            found.append(
                f"WARNING: {job.row.name} was trained on {data.name} under another split "
                f"({', '.join(changed)} differs): {MAY_HAVE_SEEN}"
            )
        elif overlap == "same":
            how = "with their labels" if section is job.labelled else "without labels"
            held = ", its held-out tiles among them" if holds_out else ""
            found.append(f"{job.row.name} was trained on the training tiles of {data.name} {how}{held}")
        elif overlap == "overlaps":
            found.append(
                f"WARNING: {job.row.name} was trained on {section.root}, which overlaps {data.name} ({data.root}): "
                f"{MAY_HAVE_SEEN}"
            )
    return found
