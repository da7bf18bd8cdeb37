"""What earlier training has seen of the tiles that are evaluated, and whether slides are known: one wording each."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sscl.config import DataConfig, strict_yaml
from sscl.data import scale, task
from sscl.data.groups import Groups
from sscl.data.load import (
    groups_are,
    has_test,
    load_tiles,
    merge_data,
    own_splits,
    saw_all,
    slides_known,
    split_changes,
    training_slides,
)
from sscl.data.review_labels import answers_by_sight, images_alone, takes_reviews
from sscl.data.slide_set import WEAK, quickhashes
from sscl.data.split_names import split_named
from sscl.data.tiles import Tiles
from sscl.evaluate import intervals
from sscl.models.checkpoint import Checkpoint, load_checkpoint
from sscl.words import count, listed

NO_SLIDE_IDS = "no slide or patient ids: tiles of one slide may be on both sides of a split, which inflates the metrics"
# The numbers are from scripts/coverage, in docs/intervals.md.
INDEPENDENT = (
    "these intervals assume independent tiles; of simulated sets of 200 tiles from 10 or 20 slides of one class each, "
    "they hold the truth in 53% or 71% instead of 95%"
)


def same_root(data: DataConfig, trained: DataConfig) -> bool:
    """Return whether two sets are one folder or file."""
    return Path(data.root).resolve() == Path(trained.root).resolve()


@dataclass(frozen=True)
class Choice:
    """Which tiles a command takes for a classifier.

    Attributes:
        data: their section. split: "test", "train" or "all".
        external: whether this is another set than the one whose labels were trained on.
        reviewed: whether its classes are those of reviews that the command was given.
    """

    data: DataConfig
    split: str
    external: bool
    reviewed: bool = False

    def folder(self, run: Path, command: str) -> Path:
        """Return the folder in a run that a command writes to, as in eval_test, or eval_NAME_all of another set.

        With the classes of reviews it is eval_reviewed_test.
        Where that is of a third set, whose folder has the same name, the folder above comes into the name too, and then
        a digest of the whole path.
        """
        command = f"{command}_reviewed" if self.reviewed else command
        if not self.external:
            return run / f"{command}_{self.split}"
        root = Path(self.data.root).resolve()
        digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
        for name in (root.name, f"{root.parent.name}-{root.name}"):
            there = run / f"{command}_{_plain(name)}_{self.split}"
            if not there.exists() or _root_of(there) in (root, None):
                return there
        return run / f"{command}_{_plain(root.name)}-{digest}_{self.split}"


def folder_of(run: Path, command: str, data: Mapping[str, object], split: str | None) -> Path:
    """Return the folder of a run that a command has written, before its tiles are read.

    It is that of the other set in data.root where there is one, else the set's own: data.root may say where it is now.
    """
    reviewed = bool(data.get("reviews"))
    if "root" in data:
        section = DataConfig(root=str(data["root"]))
        other = Choice(section, split or "all", external=True, reviewed=reviewed).folder(run, command)
        if (other / "config.yaml").is_file():
            return other
    command = f"{command}_reviewed" if reviewed else command
    return run / f"{command}_{split or 'test'}"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)


def _root_of(folder: Path) -> Path | None:
    """Return the set that a command's folder is of, as its config.yaml says; None where it does not say."""
    try:
        content = strict_yaml.read((folder / "config.yaml").read_text(encoding="utf-8"))
        return Path(content["data"]["root"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose(trained: Checkpoint, changes: Mapping[str, object], *, split: str | None) -> Choice:
    """Return which tiles to take: of the set trained on the test split, of another one all, unless a split is given.

    Args:
        trained: the classifier's checkpoint. changes: keys of its data section that are replaced.

    Raises:
        ValueError: a key or value that the section does not have.
    """
    data = merge_data(trained.finetune_config.data, changes)
    reviewed = bool(changes.get("reviews"))
    if not is_external(data, trained):
        if split in (None, "test") and not has_test(data):
            raise ValueError(
                f"split: {data.root} has no test split; give other tiles after the run (or split=all, whose metrics "
                "say nothing about new tiles)"
            )
        return Choice(data, split or "test", external=False, reviewed=reviewed)
    theirs = {
        "groups_csv": None,
        "published": False,
        "mpp": None,
        "slides_root": None,
        "annotations": None,
        "reviews": (),
    }  # facts of the set trained on
    if data.source == "slides":
        del theirs["mpp"]  # that of the index
    data = data.model_copy(update={key: value for key, value in theirs.items() if key not in changes})
    return Choice(data, split or "all", external=True, reviewed=reviewed)


def is_external(data: DataConfig, trained: Checkpoint) -> bool:
    """Return whether a set is another one than the one whose labels were trained on; that may have moved, or be a copy.

    A folder of the same name, or any folder where the former one is gone, is the set trained on if its training split
    has the same fingerprint.
    """
    section = trained.finetune_config.data
    if overlap(data, section) == "same":
        return False
    there = Path(section.root).resolve()
    if there.exists() and there.name != Path(data.root).resolve().name:
        return True
    try:
        train = load_tiles(_labelled_as(section, data), split="train", progress=False)
    except (ValueError, FileNotFoundError):
        return True
    return train.fingerprint != trained.fingerprint


def overlap(data: DataConfig, trained: DataConfig) -> str | None:
    """Return how the folder of a set overlaps with one that was trained on: "same", "overlaps", or None.

    The set's own train/ is "same".
    """
    here, there = Path(data.root).resolve(), Path(trained.root).resolve()
    if there == here or (there.parent == here and split_named(there.name) == "train"):
        return "same"
    return "overlaps" if there.is_relative_to(here) or here.is_relative_to(there) else None


def seen_in_training(data: DataConfig, trained: DataConfig, *, split: str) -> str | None:
    """Return a warning where tiles of the split were, or may have been, training tiles; else None."""
    may_have = "some of these tiles may have been training tiles, so the metrics may not hold for new tiles"
    found = overlap(data, trained)
    if found is None:
        return None
    if found == "overlaps":
        return f"training used {Path(trained.root).resolve()}, which overlaps {Path(data.root).resolve()}: {may_have}"
    if split != "test":
        return "these tiles were training tiles: the metrics say nothing about new tiles"
    if same_root(data, trained) and saw_all(trained):
        return (
            "pretraining took all tiles, those of this test split too, without their labels: the metrics may be "
            "optimistic for new tiles (train/ and test/ folders, or data.labels=true, keep them out)"
        )
    changed = split_changes(data, trained) if same_root(data, trained) else []
    return f"{', '.join(changed)} differs from training: {may_have}" if changed else None


def split_by_reviews(section: DataConfig) -> bool:
    """Return whether a set is split anew with each review, as it has neither splits nor classes of its own."""
    if not takes_reviews(section) or own_splits(section):
        return False
    plain = section.model_copy(update={"reviews": (), "keep": "slides"})
    try:
        return images_alone(section) or not load_tiles(plain, split="all", progress=False).classes
    except (ValueError, FileNotFoundError):  # such as a worksheet that is gone
        return True


def without_slides(data: DataConfig, groups: Groups | None) -> str | None:
    """Return a warning where tiles of one slide cannot be told: no groups, or clusters of near-duplicates alone."""
    if groups is None or (data.group_near_duplicates and not slides_known(data)):
        return NO_SLIDE_IDS
    return None


def shared_groups(data: DataConfig, train: Groups | None, test: Groups | None) -> str | None:
    """Return a warning where groups have tiles in both splits; else None. train, test: group of each tile, or None."""
    if train is None or test is None:
        return None
    shared = sorted(set(train.tolist()) & set(test.tolist()))
    if not shared:
        return None
    return (
        f"{len(shared)} of the {groups_are(data)} are in both train and test (such as {shared[0]}): the metrics are "
        "optimistic"
    )


def caveats(choice: Choice, tiles: Tiles, trained: Checkpoint) -> list[str]:
    """Return what a reader must know before trusting metrics on some tiles, a sentence each.

    Args:
        choice: of the set and split. tiles: those, labelled. trained: the classifier's checkpoint.
    """
    data, split = choice.data, choice.split
    found = []
    if choice.external:
        which = "all its tiles were" if split == "all" else f"its {split} split was"
        found.append(f"{Path(data.root).name} is not the set of training: {which} evaluated")
    found += [f"{WEAK}, not the tiles' own"] if data.weak_labels else []
    found += review_caveats(data)
    found += scale_caveats(data, tiles, trained)
    train = training_tiles(choice, trained) if choice.external or split == "test" else None
    compared = choice.external and train is not None  # with the tiles of the labels, pixel by pixel
    sections = trained.lineage if compared else trained.trained_on
    seen = [seen_in_training(data, section, split=split) for section in sections]
    told = list(dict.fromkeys(text for text in seen if text is not None))
    told += shared_slides(tiles, [section for section, text in zip(sections, seen, strict=True) if text is None])
    if split == "test" and any(same_root(data, one) and split_by_reviews(one) for one in trained.lineage):
        told.append(
            "an earlier training took reviewed tiles of this set, which other reviews split otherwise: some of these "
            "tiles may have been training tiles, so the metrics may not hold for new tiles"
        )
    if train is None and choice.external and not told:
        told.append(
            f"the training tiles are not at {trained.finetune_config.data.root} any more: whether some of these are "
            "among them was not checked"
        )
    if train is not None and not told and train.fingerprint != trained.fingerprint:
        told.append("the training tiles have changed since training: test tiles may have been among the former ones")
    shared = [] if train is None else [shared_groups(data, train.groups, tiles.groups)]
    if train is not None:
        copies = task.shared_tiles(task.labelled(train), tiles, name="evaluated")
        shared.append(None if copies is None else f"{copies}: the metrics are optimistic")
    absent = task.absent_classes(tiles)
    if absent:
        shared.append(f"no tile of {listed(absent)}: {task.WITHOUT['test']}")
    unknown = None if choice.external else without_slides(data, tiles.groups)
    return found + told + [text for text in (unknown, *shared) if text is not None]


def review_caveats(data: DataConfig) -> list[str]:
    """Return what metrics on classes that reviewers gave do not say, a sentence each."""
    if not takes_reviews(data):
        return []
    named, in_sight = answers_by_sight(data.reviews)
    found = ["only tiles that people reviewed: these were chosen, not drawn, so metrics may not hold for new tiles"]
    if in_sight:
        found.append(
            f"{in_sight:,} of {count(named, 'answer')} of reviewers had a prediction in sight: such classes lean "
            "towards the classifier that made it, whose metrics on them are optimistic (blind review avoids it)"
        )
    return found


def shared_slides(tiles: Tiles, sections: Iterable[DataConfig]) -> list[str]:
    """Return a warning for each set that was trained on and has slides of these tiles, whatever their names.

    Args:
        sections: of sets that were trained on.
    """
    return slides_in_training(quickhashes(tiles), sections, so="the metrics may be optimistic for new tiles")


def slides_in_training(here: Mapping[str, str], sections: Iterable[DataConfig], *, so: str) -> list[str]:
    """Return a sentence for each set that was trained on and has some of these slides, whatever their names.

    Args:
        here: names of the slides by quickhash. sections: of sets that were trained on. so: what follows from it.
    """
    found = []
    for section in sections if here else ():
        if section.source != "slides":
            continue
        try:
            there = training_slides(section)
        except (ValueError, FileNotFoundError):
            found.append(
                f"{section.root}, or what gave its tiles their classes, cannot be read any more: whether training used "
                "these slides was not checked"
            )
            continue
        shared = sorted(here.keys() & there.keys(), key=here.__getitem__)
        if shared:
            name, other = here[shared[0]], there[shared[0]]
            called = "" if name == other else f" ({other} there)"
            were = "was" if len(shared) == 1 else "were"
            found.append(
                f"{len(shared):,} of {count(len(here), 'slide')} {were} in training too ({section.root}), such as "
                f"{name}{called}: {so}"
            )
    return found


def scale_caveats(data: DataConfig, tiles: Tiles, trained: Checkpoint) -> list[str]:
    """Return why the tiles may show tissue at another scale than those of training, a sentence each.

    Raises:
        ValueError: the section and its table say different scales.
    """
    here = scale.scale_of(data, tiles)
    return [*here.mixed(), *scale.scale_warnings(here.source_px, here, trained=trained.scale, size_px=data.size_px)]


def other_scales(runs: Mapping[str, Path], *, reference: str) -> list[str]:
    """Return a sentence for each run that was trained at another scale than the reference, where both are known.

    Args:
        runs: folders by name; one without a checkpoint says nothing. reference: one of the names.
    """
    files = {name: folder / "checkpoints" / "best.pt" for name, folder in runs.items()}
    scales = {name: load_checkpoint(file, tensors=False).scale for name, file in files.items() if file.is_file()}
    other = scales.get(reference, scale.Scale())
    return [
        f"{name} was trained on tiles of {own}, {reference} on {other}: over 5% apart, so they see other tissue"
        for name, own in scales.items()
        if own.span and other.span and any(map(scale.differ, own.span, other.span))
    ]


def training_tiles(choice: Choice, trained: Checkpoint) -> Tiles | None:
    """Return the training split as it is now, at the size trained on; None where another set's is not there any more.

    Raises:
        ValueError, FileNotFoundError: as the loader, for the set that is evaluated.
    """
    section = trained.finetune_config.data
    if choice.external:
        try:
            return load_tiles(section, split="train", progress=False)
        except (ValueError, FileNotFoundError):
            return None
    if not same_root(choice.data, section):
        return None
    return load_tiles(_labelled_as(section, choice.data), split="train", progress=False)


def _labelled_as(trained: DataConfig, data: DataConfig) -> DataConfig:
    """Return a section at the size, and with the labels, that were trained on."""
    same = {key: getattr(trained, key) for key in ("annotations", "label_coverage", "reviews")}
    return data.at(trained.size_px).model_copy(update=same)


def doubts_accuracy(caveat: str) -> bool:
    """Return whether a caveat says that the metrics may be better than those of new tiles."""
    return "optimistic" in caveat or "new tiles" in caveat


def interval_caveats(groups: intervals.Groups | None) -> list[str]:
    """Return what to know before trusting the intervals, a sentence each; all of them name "intervals"."""
    few = intervals.few_groups(intervals.group_count(groups))
    return [INDEPENDENT] if groups is None else [few] if few is not None else []
