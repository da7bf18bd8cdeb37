"""What the words of a command line without `=` mean: a config, a run, tiles. KEY=VALUE words stay as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sscl.config import Section


@dataclass(frozen=True)
class Word:
    """A word that a command takes."""

    name: str  # in its usage line, as RUN
    key: str  # that it sets
    about: str  # what it is
    many: bool = False  # whether all further words are of this kind
    exists: bool = False  # whether it must be a file or folder that exists


TILES = Word("TILES", "data.root", "the folder or file of the tiles, or an index of slides", exists=True)
RUN = Word("RUN", "checkpoint", "run folder of finetune, or a checkpoint file")
CONFIG = Word("CONFIG", "--config", "a YAML file, or a name from `sscl configs`")


@dataclass(frozen=True)
class Sorted:
    """The words of a command line by what they mean."""

    config: str | None
    overrides: tuple[str | tuple[str, object], ...]  # KEY=VALUE, and keys with the words that are their values
    tiles: tuple[tuple[str, Word], ...] = ()  # words that must be files or folders


def sort_words(
    kind: type[Section],
    words: Sequence[str],
    *,
    takes: Sequence[Word],
    config: str | None,
    resume: bool = False,
) -> Sorted:
    """Return which config a command line names, and which keys it sets.

    Args:
        kind: the command's configuration.
        words: all words after the command that are no options.
        takes: the words that the command takes, in order; `CONFIG` among them if it takes one.
        config: that of --config, if given.
        resume: whether a run is to be continued: a word that is a run folder is that run.

    Raises:
        ValueError: a word that the command does not take; what words mean.
    """
    from sscl.config.loader import main_name

    bare = [word for word in words if is_bare(word)]
    settings: list[str | tuple[str, object]] = [word for word in words if not is_bare(word)]
    tiles: list[tuple[str, Word]] = []
    taken = {main_name(kind, str(word).partition("=")[0]) for word in settings}
    if CONFIG in takes:
        configs = [word for word in bare if names_config(word)]
        if config is None and configs:
            config = configs[0]
            bare.remove(config)
            _one_meaning(config, takes)
    free = [word for word in takes if word is not CONFIG and word.key not in taken]
    for place, text in enumerate(bare):
        if resume and "run" in kind.model_fields and is_run(text):
            settings.append(("run", text))
            continue
        word = free[0] if free else None
        if (word is None or "." in text) and text in _keys(kind) and not Path(text).exists():
            raise ValueError(_no_value(text))
        if word is None:
            raise ValueError(_too_many(text, takes))
        if word.many:
            settings.append((word.key, bare[place:]))
            break
        free = free[1:]
        if word.exists:
            tiles.append((text, word))
        settings.append((word.key, text))
    return Sorted(config, tuple(settings), tuple(tiles))


def is_bare(word: str) -> bool:
    """Return whether a word is no KEY=VALUE: it has no =, a / before it, which no key has, or it is a file."""
    head, equals, _ = word.partition("=")
    return bool(word) and (not equals or "/" in head or os.sep in head or Path(word).exists())


def names_config(word: str) -> bool:
    """Return whether a word names a config: a YAML file, or a shipped config."""
    from sscl.config import shipped

    return word.lower().endswith((".yaml", ".yml")) or word in shipped.names()


def is_run(text: str) -> bool:
    """Return whether a folder is a run's; an index of slides has a config.yaml too."""
    from sscl.config.data import detect_source

    has = (Path(text) / "config.yaml").is_file() and detect_source(text) != "slides"
    return has or (Path(text) / "checkpoints").is_dir()


def meanings(takes: Sequence[Word]) -> str:
    """Return what the words of a command mean, as in "words are CONFIG (...) and RUN (...)"."""
    from sscl.words import listed

    named = [f"{word.name}{' ...' if word.many else ''} ({word.about})" for word in takes]
    return f"its words are {listed(named)}; settings are KEY=VALUE" if named else "it takes KEY=VALUE only"


def check_tiles(kind: type[Section], found: Sorted, takes: Sequence[Word]) -> None:
    """Raise ValueError where a word that stands for tiles is no file or folder, or is a run; what words mean."""
    from sscl.places import expanded, missing

    for text, word in found.tiles:
        place = Path(expanded(text))
        if not place.exists() and text in _keys(kind):
            raise ValueError(_no_value(text))
        if not place.exists():
            fault = missing(text, "file or folder").removeprefix(f"{text}: ")
            hint = (_nearest_config(text) if CONFIG in takes else "") or meanings(takes)
        elif (place / "checkpoints").is_dir():
            fault = f"is a run folder, but {word.name} stands for {word.about}"
            start = f"from={text} starts from it, --resume continues it"
            hint = start if "model" in kind.model_fields else meanings(takes)
        else:
            continue
        raise ValueError(f"argument {text!r}: {fault}; {hint}")


def _no_value(key: str) -> str:
    return f"argument {key!r}: must be KEY=VALUE, as in {key}=..."


def _keys(kind: type[Section]) -> set[str]:
    from sscl.config import keys

    return {*keys(kind), *kind.model_fields}


def _one_meaning(word: str, takes: Sequence[Word]) -> None:
    """Refuse a name that may be a config or a folder, and the config of a run where the run is meant."""
    from sscl.config import shipped

    beside = Path(word).parent
    if any(one.name == "RUN" for one in takes) and (beside / "checkpoints").is_dir():
        raise ValueError(f"{word}: is a file of a run; name the folder of the run, {beside}")
    other = next((one for one in takes if one is not CONFIG), None)
    if other is not None and word in shipped.names() and Path(word).is_dir():
        raise ValueError(
            f"{word}: is a shipped config and a folder here; write --config {word} for the config, or ./{word} for "
            "the folder"
        )


def _too_many(text: str, takes: Sequence[Word]) -> str:
    hint = _nearest_config(text) if CONFIG in takes else ""
    return f"argument {text!r}: one word too many, or not KEY=VALUE, as in train.epochs=10; {hint or meanings(takes)}"


def _nearest_config(text: str) -> str:
    from sscl.config import shipped
    from sscl.words import closest

    near = closest(text, shipped.names(), cutoff=0.8)
    return "" if near is None else f"did you mean the config {near}?"
