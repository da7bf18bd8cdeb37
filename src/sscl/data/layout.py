"""Which class, split and slide an image is of, as the names of its folders say.

Nothing is opened here: all is read from the paths that `listing` found.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sscl.data.ingest import group_ids
from sscl.data.listing import LOOKED_FOR, Listing
from sscl.data.split_names import SPLITS, split_named
from sscl.data.tiles import UNLABELLED
from sscl.places import one_form
from sscl.words import count, listed

_PICTURES = re.compile(r"(?:images?|imgs?|tiles?|patches|pictures?|photos?|png|jpe?g|tiff?|raw|data)")
_MASKS = re.compile(
    r"(?:binary|truth|gt)?[ _-]?(?:masks?|labels?|annotations?|segmentations?|ground[ _-]?truth|gt|overlays?)"
    r"(?:[ _-]?(?:images?|png))?"
)


@dataclass(frozen=True)
class Entry:
    """An image: its path below the root, the index of its class (-1: none), and its slide or patient, if known."""

    id: str
    label: int = UNLABELLED
    group: str | None = None


@dataclass(frozen=True)
class Layout:
    """The images of a folder.

    Attributes:
        classes: their names, sorted; empty where the folder has none.
        parts: the images of train, validation and test, or of "all" where the folder has no such folders.
        places: the folder of each part.
        outside: images that lie in no part.
        notes: what a reader must know.
    """

    classes: tuple[str, ...]
    parts: dict[str, list[Entry]]
    places: dict[str, str] = field(default_factory=dict)
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def grouped(self) -> bool:
        """Whether the slide or patient of each image is known."""
        return any(entry.group is not None for part in self.parts.values() for entry in part)


def split_folders(names: Iterable[str], *, root: str) -> dict[str, str]:
    """Return which of the folders in a root are its splits, by split.

    One for validation alone is one only if nothing lies beside it: "valid" beside "invalid" is a class.

    Raises:
        ValueError: two folders mean the same split.
    """
    found: dict[str, str] = {}
    names = list(names)
    for name in names:
        split = split_named(name)
        if split is None:
            continue
        if split in found:
            raise ValueError(f"{root}: both {found[split]}/ and {name}/ mean the {split} split; keep one of them")
        found[split] = name
    if not found.keys() & {"train", "test"} and len(names) > 1:
        return {}
    return {split: found[split] for split in SPLITS if split in found}


def classed(root: str, listing: Listing, *, groups_given: bool) -> Layout:
    """Return the layout of a folder whose images are in folders of classes, or without classes if they lie in the root.

    Args:
        groups_given: whether slides come from elsewhere, so that the folders below a class say nothing.

    Raises:
        ValueError: no such layout; one line.
    """
    tree = _Tree(root, listing)
    _refuse_other_layouts(tree)
    places = split_folders(tree.folders(""), root=root)
    if not places:
        if tree.files("") and tree.folders(""):
            raise ValueError(
                f"{root} has both folders ({tree.folders('')[0]}, …) and images ({tree.files('')[0]}, …); "
                "expected class folders or images, move one of them away"
            )
        if not tree.folders(""):
            return Layout((), {"all": [Entry(name) for name in tree.files("")]})
    else:
        _refuse_classes_beside(tree, places)
    prefixes = _shown(places) or {"all": ""}
    classes = _classes(tree, prefixes)
    label_of = {name: label for label, name in enumerate(classes)}
    parts: dict[str, list[Entry]] = {}
    for split, prefix in prefixes.items():
        below = [name for name in listing.images if name.startswith(prefix)]
        entries = [Entry(name, label_of[one_form(name[len(prefix) :].split("/")[0])]) for name in below]
        # By class first: a class may be written in both Unicode forms.
        parts[split] = sorted(entries, key=lambda entry: entry.label)
    notes: tuple[str, ...] = ()
    if not groups_given:
        parts, notes = _with_groups(root, prefixes, parts)
    return Layout(classes, parts, _shown(places), _outside(listing, places), notes)


def whole(root: str, listing: Listing) -> Layout:
    """Return the layout of a folder that is listed whole, for pretraining: no classes, no groups, and no split but the
    folder's own.

    Raises:
        ValueError: the folder holds other things than tiles, or a test split deeper down; one line.
    """
    tree = _Tree(root, listing)
    _refuse_other_layouts(tree)
    places = split_folders(tree.folders(""), root=root)
    notes = ("folders are not taken for classes (data.labels=true would)",) if listing.folders else ()
    prefixes = _shown(places) or {"all": ""}
    parts = {
        split: [Entry(image) for image in listing.images if image.startswith(prefix)]
        for split, prefix in prefixes.items()
    }
    return Layout((), parts, _shown(places), _outside(listing, places), notes)


class _Tree:
    """The files and folders directly inside each folder."""

    def __init__(self, root: str, listing: Listing) -> None:
        self.root = root
        self._files: dict[str, list[str]] = defaultdict(list)
        self.folders_of: dict[str, list[str]] = defaultdict(list)
        for name in listing.images:
            folder, _, file = name.rpartition("/")
            self._files[folder].append(file)
        for name in listing.folders:
            folder, _, inner = name.rpartition("/")
            self.folders_of[folder].append(inner)
        if not listing.images:
            over = f"; passed over: {listing.passed_over}" if listing.passed_over else ""
            raise ValueError(f"{root} has no images{over} (looked for {LOOKED_FOR})")

    def files(self, folder: str) -> list[str]:
        return self._files.get(folder, [])

    def folders(self, folder: str) -> list[str]:
        return self.folders_of.get(folder, [])

    def shown(self, folder: str) -> str:
        """Return a folder's path with the root."""
        return os.path.join(self.root, folder) if folder else self.root

    def has_images(self, folder: str) -> bool:
        return bool(self.files(folder)) or any(self.has_images(f"{folder}/{name}") for name in self.folders(folder))


def _shown(places: dict[str, str]) -> dict[str, str]:
    return {split: f"{name}/" for split, name in places.items()}


def _outside(listing: Listing, places: dict[str, str]) -> tuple[str, ...]:
    inside = tuple(f"{name}/" for name in places.values())
    return tuple(name for name in listing.images if not name.startswith(inside)) if inside else ()


def _refuse_other_layouts(tree: _Tree) -> None:
    """Raise ValueError where folders are no classes: MHIST's layout, masks beside images, splits deeper down."""
    root = tree.root
    if os.path.isfile(os.path.join(root, "annotations.csv")) and "images" in tree.folders(""):
        raise ValueError(
            f"{root} has annotations.csv and images/, the layout of MHIST; give data.source=mhist (and "
            "data.published=false for other tiles in that layout)"
        )
    for folder, names in tree.folders_of.items():
        masks = [name for name in names if _MASKS.fullmatch(name.casefold())]
        pictures = [name for name in names if _PICTURES.fullmatch(name.casefold())]
        if masks and pictures and any(tree.has_images(f"{folder}/{name}".lstrip("/")) for name in masks):
            raise ValueError(
                f"{tree.shown(folder)} has {pictures[0]}/ and {masks[0]}/: masks are no tiles and these folders are no "
                f"classes; move {masks[0]}/ elsewhere"
                + (f", or give data.root={os.path.join(root, pictures[0])}" if not folder else "")
            )
        splits = {split_named(name): name for name in names}
        if folder and {"train", "test"} <= splits.keys():
            raise ValueError(
                f"{tree.shown(folder)} has {splits['train']}/ and {splits['test']}/, but the splits must be the first "
                f"level below data.root; give data.root={tree.shown(folder)}, or move them up"
            )


def _refuse_classes_beside(tree: _Tree, places: dict[str, str]) -> None:
    """Raise ValueError where the only split folder is test/ and class folders lie beside it."""
    others = [name for name in tree.folders("") if name not in places.values() and tree.has_images(name)]
    if "train" not in places and others:
        raise ValueError(
            f"{tree.root} has {places['test']}/ but no train/, and {others[0]}/ beside it; move the class folders into "
            f"train/, or rename {places['test']}/ if it is a class"
        )


def _classes(tree: _Tree, prefixes: dict[str, str]) -> tuple[str, ...]:
    """Return the names of the class folders, which all parts must share."""
    names_of: dict[str, list[str]] = {}
    for prefix in prefixes.values():
        place = prefix.rstrip("/")
        names = tree.folders(place)
        if not names:
            raise ValueError(f"{tree.shown(place)}: has no class folders; put its images into one folder per class")
        if tree.files(place):
            raise ValueError(
                f"{tree.shown(place)} has both class folders ({names[0]}, …) and images ({tree.files(place)[0]}, …); "
                "move the images into the class folders"
            )
        for name in names:
            if not tree.has_images(f"{prefix}{name}"):
                raise ValueError(
                    f"{tree.shown(f'{prefix}{name}')}: class folder without images; add images or remove the folder"
                )
        names_of[prefix] = sorted({one_form(name) for name in names})
        group_ids(names_of[prefix], where=f"{tree.shown(place)}: class folders", what="class")
    first, *others = names_of
    for other in others:
        differ = [
            f"only {here} has {listed(only)}"
            for here, there in ((first, other), (other, first))
            if (only := [name for name in names_of[here] if name not in names_of[there]])
        ]
        if differ:
            raise ValueError(
                f"{tree.root}: {first} and {other} must have the same class folders, but {' and '.join(differ)}"
            )
    return tuple(names_of[first])


def _with_groups(
    root: str, prefixes: dict[str, str], parts: dict[str, list[Entry]]
) -> tuple[dict[str, list[Entry]], tuple[str, ...]]:
    """Return the parts with the group of each image: the folder below its class; and what to say of them.

    Raises:
        ValueError: only some images have such a folder.
    """
    levels = {
        entry.id: entry.id[len(prefixes[split]) :].split("/")[1:-1] for split, part in parts.items() for entry in part
    }
    direct = next((name for name, level in levels.items() if not level), None)
    nested = next((name for name, level in levels.items() if level), None)
    if nested is None:
        return parts, ()
    if direct is not None:
        raise ValueError(
            f"{root}: {direct} lies in its class folder, {nested} in a folder below it; the folders below a class are "
            "its slides or patients, so put every image into one, or give slides in data.groups_csv"
        )
    found = {level[0] for level in levels.values()}
    if all(_PICTURES.fullmatch(name.casefold()) for name in found):
        return parts, ()
    grouped = {
        split: [Entry(entry.id, entry.label, levels[entry.id][0]) for entry in part] for split, part in parts.items()
    }
    deeper = ", not those deeper down" if any(len(level) > 1 for level in levels.values()) else ""
    return grouped, (f"groups: the {count(len(found), 'folder')} below the classes{deeper}",)
