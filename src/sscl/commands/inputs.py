"""From a configuration to what the commands work with: tiles, encoder, preprocessing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import features
from sscl.config import DataConfig, EncoderConfig, ModelConfig, plain, validate
from sscl.data import duplicates
from sscl.data.folder import load_folder
from sscl.data.mhist import load_mhist
from sscl.data.pathmnist import load_pathmnist
from sscl.data.stain import normalise_tiles
from sscl.data.tiles import Tiles
from sscl.models import Encoder, build_encoder, preprocessing_of
from sscl.run import CHECKPOINT_FORMAT, checkpoint_file
from sscl.weights import exported_facts, load_trunk, read_torch_file, read_trunk

# Keys that decide which tiles of a folder are its test split.
SPLIT_KEYS = ("source", "protocol", "split_seed", "test_fraction", "groups_csv", "group_near_duplicates")
NO_STATISTICS = (
    "warning: train.freeze_batch_norm keeps the batch-norm statistics of the weights, and random ones have none "
    "(mean 0, variance 1): nothing is normalised; leave it out, or give model.weights"
)
# What a checkpoint holds besides plain values.
TENSORS = ("encoder", "head", "model", "optimizer", "scaler")


def load_tiles(data: DataConfig, *, split: str, progress: bool) -> Tiles:
    """Return the tiles of a split, "train", "test" or "all", or "validation" of a set with one of its own.

    With `data.group_near_duplicates` their groups are the given ones joined with the clusters of duplicates of the
    whole set. Stain statistics stay those of the given groups.
    """
    found = near_duplicate_groups(data, split=split, progress=progress) if data.group_near_duplicates else None
    tiles = _load(data, split=split, progress=progress, group_of=None if found is None else found.joined)
    if data.stain != "none":
        given = tiles if found is None else replace(tiles, groups=found.given_of(tiles.ids))
        normal = normalise_tiles(given, method=data.stain, cache_dir=data.cache_dir, progress=progress)
        tiles = replace(tiles, images=normal.images)
    return tiles


@dataclass(frozen=True)
class NearDuplicateGroups:
    """The groups of a set's tiles by id: as given (None: not at all), and joined with the clusters of duplicates."""

    given: dict[str, str] | None
    joined: dict[str, str]

    def given_of(self, ids: tuple[str, ...]) -> NDArray[np.str_] | None:
        """Return the given groups of these tiles, (N,)."""
        return None if self.given is None else np.array([self.given[name] for name in ids])


def near_duplicate_groups(data: DataConfig, *, split: str, progress: bool) -> NearDuplicateGroups:
    """Return the groups of a set's tiles, joined with the clusters of duplicates, which are kept in the cache.

    Neither the tile size, the stain normalisation nor the split decides what is found: the whole set is searched, at
    one size. A set that gives its splits as parts of one file is searched part by part.
    """
    whole = {"size_px": duplicates.SIZE_PX, "stain": "none"}
    if data.source in ("mhist", "synthetic"):
        whole["protocol"] = "official"  # all tiles, not those that a seed has drawn
    part = split if data.source == "pathmnist" else "all"
    tiles = _load(data.model_copy(update=whole), split=part, progress=progress)
    digest = hashlib.sha256()
    for start in range(0, len(tiles), 256):
        digest.update(np.ascontiguousarray(tiles.images[start : start + 256]).data)

    def search() -> torch.Tensor:
        pairs = duplicates.find_pairs(tiles.images, progress=progress)
        found = duplicates.clusters_of(len(tiles), [(pair.first, pair.second) for pair in pairs])
        return torch.from_numpy(found.astype(np.float32))[:, None]

    key = ("near-duplicates", duplicates.VERSION, digest.hexdigest())
    numbers = features.cached_outputs(search, key=key, rows=len(tiles), cache_dir=data.cache_dir)
    joined = duplicates.join_groups(numbers[:, 0].long().numpy(), tiles.groups, ids=tiles.ids)
    return NearDuplicateGroups(
        given=None if tiles.groups is None else dict(zip(tiles.ids, tiles.groups.tolist(), strict=True)),
        joined=dict(zip(tiles.ids, joined.tolist(), strict=True)),
    )


def _load(data: DataConfig, *, split: str, progress: bool, group_of: dict[str, str] | None = None) -> Tiles:
    if data.source == "pathmnist":
        tiles = load_pathmnist(
            data.root, split=split, size_px=data.size_px, cache_dir=data.cache_dir, progress=progress
        )
        return tiles if group_of is None else replace(tiles, groups=np.array([group_of[name] for name in tiles.ids]))
    if data.source in ("mhist", "synthetic"):
        return load_mhist(
            data.root,
            protocol=data.protocol,
            split=split,
            seed=data.split_seed,
            size_px=data.size_px,
            published=data.published and data.source == "mhist",
            group_of=group_of,
            cache_dir=data.cache_dir,
            progress=progress,
        )
    return load_folder(
        data.root,
        split=split,
        groups_csv=data.groups_csv,
        group_of=group_of,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
        size_px=data.size_px,
        cache_dir=data.cache_dir,
        progress=progress,
    )


def load_splits(data: DataConfig, *, progress: bool) -> dict[str, Tiles]:
    """Return train, validation where the set has its own, and test.

    A flat folder without classes has one split, all, and train/ may stand without test/.
    """
    train = load_tiles(data, split="train", progress=progress)
    if not train.classes:
        return {"all": train}
    root = Path(data.root)
    if data.source == "folder" and (root / "train").is_dir() and not (root / "test").is_dir():
        return {"train": train}
    names = ("validation", "test") if has_validation(data) else ("test",)
    return {"train": train} | {name: load_tiles(data, split=name, progress=progress) for name in names}


def slides_known(data: DataConfig) -> bool:
    """Return whether the set says of which slide or patient its tiles are."""
    if data.source == "folder":
        return data.groups_csv is not None
    return data.source != "pathmnist" and (Path(data.root) / "slides.csv").is_file()


def groups_are(data: DataConfig) -> str:
    """Return what the groups of the set's tiles are, in words, where they have some."""
    if not data.group_near_duplicates:
        return "slides or patients"
    return "slides or patients, joined by near-duplicates" if slides_known(data) else "clusters of near-duplicates"


def has_validation(data: DataConfig) -> bool:
    """Return whether the set has a validation split of its own, so that none is carved from train."""
    return data.source == "pathmnist"


def describe_tiles(data: DataConfig, tiles: Tiles, *, split: str) -> str:
    """Return one line: source, protocol, split, count, classes."""
    protocol = f", protocol {data.protocol}" if data.source == "mhist" else ""
    stain = "" if data.stain == "none" else f", {data.stain} stain normalisation"
    counts = ", ".join(f"{count} {name}" for name, count in tiles.class_counts().items())
    of = f" ({counts})" if counts else ""
    together = ""
    if data.group_near_duplicates and tiles.groups is not None:
        _, sizes = np.unique(tiles.groups, return_counts=True)
        clusters = f"{(sizes > 1).sum()} clusters (with the given groups, if any) of 2 to {sizes.max()} tiles, "
        together = (
            f"; near-duplicates stay together: {clusters if (sizes > 1).any() else ''}{(sizes == 1).sum()} single tiles"
        )
    return f"{data.root} ({data.source}{protocol}{stain}), split {split}: {len(tiles)} tiles{of}{together}"


def merge_data(trained: dict[str, Any], changes: dict[str, Any]) -> DataConfig:
    """Return the data section a checkpoint was trained with, with some keys changed."""
    try:
        return validate(DataConfig, {**trained, **changes}, source="the checkpoint's data with your data.* keys")
    except ValueError as error:
        raise ValueError("\n".join(f"data.{line}" for line in str(error).splitlines())) from None


def split_changes(data: DataConfig, trained: dict[str, Any]) -> list[str]:
    """Return the keys by which the test split differs from that of a data section trained on, as data.KEY."""
    now = plain(data)
    deciding = ("source",) if data.source == "pathmnist" else SPLIT_KEYS  # an .npz file holds its splits
    # Checkpoints from before there was a key have none of it: its default.
    return [f"data.{key}" for key in deciding if now[key] != trained.get(key, DataConfig.model_fields[key].default)]


def check_inputs_outside(folder: Path, inputs: dict[str, str | None]) -> None:
    """Raise ValueError if a file or folder to read, given by its key, lies in the folder that would be replaced."""
    for key, value in inputs.items():
        if value not in (None, "imagenet") and Path(str(value)).resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: holds {key}={value}, which would be lost; name another folder to write")


@dataclass(frozen=True)
class Start:
    """An encoder, and what comes with its weights.

    Attributes:
        encoder: with its weights.
        mean, std: channel means and deviations of pixels in 0-1.
        history: the data sections of the runs that its weights went through, oldest first; eval compares them.
        size_px: side of the tiles it was trained on; None: nothing says.
        content: a checkpoint of ours without its tensors; None for other weights.
    """

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    history: list[dict[str, Any]]
    size_px: int | None = None
    content: dict[str, Any] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits from the name, the weights and the normalisation: equal for equal features of equal tiles."""
        digest = hashlib.sha256(repr((self.encoder.name, self.encoder.output_stride, self.mean, self.std)).encode())
        for name, value in self.encoder.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def start_encoder(model: ModelConfig) -> Start:
    """Return the encoder to start training from.

    Raises:
        ValueError: the weights are another encoder's, or not readable.
        FileNotFoundError: no such run or file.
    """
    file = weights_file(model.weights)
    content = None if file is None else _own_content(file)
    if content is not None:
        made = content["encoder_name"], content["stem"]
        if made != (model.name, model.stem):
            raise ValueError(
                f"model.weights: {file} holds {made[0]} with the {made[1]} stem; set model.name={made[0]} "
                f"model.stem={made[1]} (got {model.name}, {model.stem})"
            )
        if content["kind"] == "finetune":
            print(f"model.weights: {file} was trained with labels ({', '.join(content['classes'])})")
    return _open(
        model.name,
        weights=model.weights,
        file=file,
        stem=model.stem,
        output_stride=model.output_stride,
        mean=model.mean,
        std=model.std,
        content=content,
    )


def frozen_encoder(spec: EncoderConfig) -> Start:
    """Return an encoder to look at, in evaluation mode; a checkpoint of ours says itself which one it is.

    Raises:
        ValueError: it takes a name, or another one than given; the weights do not fit or are not readable.
        FileNotFoundError: no such run or file.
    """
    file = weights_file(spec.weights)
    content = None if file is None else _own_content(file)
    name, stem, output_stride = spec.model, spec.stem, 32
    said = {} if file is None else exported_facts(file)
    if content is not None:
        said = {**content, "encoder": content["encoder_name"], "size_px": content["preprocessing"]["size_px"]}
    if said:
        if name not in (None, said["encoder"]):
            raise ValueError(f"model: got {name}, but {file} holds {said['encoder']}; leave model out")
        # Older checkpoints and files do not say their stride.
        name, stem, output_stride = said["encoder"], said["stem"], said.get("output_stride", 32)
    if name is None:
        what = "random weights" if spec.weights is None else f"weights={spec.weights}"
        raise ValueError(f"model: missing; {what} takes the encoder's name, for instance model=resnet18")
    if spec.weights is None:
        torch.manual_seed(spec.seed)
    start = _open(
        name,
        weights=spec.weights,
        file=file,
        stem=stem,
        output_stride=output_stride,
        mean=spec.mean,
        std=spec.std,
        content=content,
    )
    start.encoder.eval()
    return replace(start, size_px=spec.size_px or said.get("size_px"))


def weights_file(weights: str | None) -> Path | None:
    """Return the file that `weights` names, a run folder's checkpoint too; None for random and ImageNet weights.

    Raises:
        FileNotFoundError: no such run or file.
    """
    return None if weights in (None, "imagenet") else checkpoint_file(str(weights))


def _own_content(file: Path) -> dict[str, Any] | None:
    """Return a checkpoint's content without its tensors; None if it is not one of ours."""
    content = read_torch_file(file)
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        return None
    return {key: value for key, value in content.items() if key not in TENSORS}


def _open(
    name: str,
    *,
    weights: str | None,
    file: Path | None,
    stem: str,
    output_stride: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    content: dict[str, Any] | None,
) -> Start:
    size_px: int | None = None
    history: list[dict[str, Any]] = []
    if file is None:
        encoder = build_encoder(name, weights=weights, stem=stem, output_stride=output_stride)
        own_mean, own_std = preprocessing_of(name, weights)
    else:
        encoder = build_encoder(name, stem=stem, output_stride=output_stride)
        trunk = read_trunk(file)
        load_trunk(encoder, trunk.state, source=str(file))
        usual_mean, usual_std = preprocessing_of(name, None)  # where the file does not say
        own_mean, own_std = trunk.mean or usual_mean, trunk.std or usual_std
    if content is not None:
        size_px = content["preprocessing"]["size_px"]
        data = content["config"]["data"]
        sources = [data] if isinstance(data, dict) else data  # pretraining has a list
        # Before it had one, there was `unlabelled`, a folder besides.
        more = [
            {**source, "source": "folder", "root": source["unlabelled"]}
            for source in sources
            if source.get("unlabelled")
        ]
        history = [*content["history"], *sources, *more]
    return Start(
        encoder=encoder,
        mean=tuple(mean or own_mean),
        std=tuple(std or own_std),
        history=history,
        size_px=size_px,
        content=content,
    )


def all_rows(tiles: Tiles) -> NDArray[np.int64]:
    """Return 0 .. N-1."""
    return np.arange(len(tiles), dtype=np.int64)


def run_of(checkpoint: str) -> Path:
    """Return the run folder of a checkpoint, given as the folder itself or as a file in it."""
    file = checkpoint_file(checkpoint)
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent


def check_classes(tiles: Tiles, content: dict[str, Any], *, checkpoint: str, root: str) -> None:
    """Raise ValueError unless the tiles have the classes, in order, that the checkpoint was trained on."""
    if list(tiles.classes) != content["classes"]:
        found = ", ".join(tiles.classes) or "none"
        raise ValueError(
            f"data.root: {root} has the classes {found}, but {checkpoint} was trained on "
            f"{', '.join(content['classes'])}"
        )
