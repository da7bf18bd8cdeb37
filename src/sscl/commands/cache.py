"""sscl cache: what the cache folder holds, whether that is still what was written, and how it is emptied."""

from __future__ import annotations

from collections.abc import Sequence

from sscl.config import CacheConfig
from sscl.data.cache import CachedFile, Kind, Unusable, cache_folder, cached_files, delete, differing
from sscl.places import missing
from sscl.words import count, readable

LISTED = 20  # sets of tiles


def main(config: CacheConfig, *, empty: bool = False, verify: bool = False) -> int:
    """List the files of the cache, delete them, or compare them with their digests; what is being written stays.

    Returns:
        1 if a file is damaged, else 0.

    Raises:
        ValueError: there is no cache folder to name; both flags are given.
        FileNotFoundError: there is no such folder.
        OSError: a file cannot be deleted.
    """
    if empty and verify:
        raise ValueError("--empty and --verify exclude each other")
    folder = cache_folder(config.cache_dir)
    if config.cache_dir is not None and not folder.is_dir():
        raise FileNotFoundError(f"cache_dir: {missing(folder, 'folder')}")
    files = cached_files(folder)
    if config.older_than_days is not None:
        files = [file for file in files if file.age >= 86400 * config.older_than_days]
    unused = "" if config.older_than_days is None else f", not used for {count_days(config.older_than_days)}"
    if empty:
        files = [file for file in files if file.kind is not Kind.WRITTEN]
        delete(files)
    done = "deleted " if empty else ""
    print(f"{folder}: {done}{count(len(files), 'file')}, {readable(total(files))}{unused}")
    for line in summary(files):
        print(line)
    if empty or not files:
        return 0
    if verify:
        return compare(files)
    for line in sets(files):
        print(line)
    print("sscl cache --empty deletes them, with older_than_days=30 the unused ones")
    return 0


def compare(files: Sequence[CachedFile]) -> int:
    """Read every tile and feature, print which files are damaged, and return the exit code."""
    whole, damaged = 0, []
    for file in files:
        if file.kind in (Kind.TILES, Kind.FEATURES):
            try:
                wrong, rows = differing(file)
                what = f"{wrong:,} of {rows:,} {'tiles' if file.kind is Kind.TILES else 'rows'} differ" if wrong else ""
            except Unusable as error:
                what = str(error)
            whole += not what
            damaged += [file] if what else []
            if what:
                print(f"{file.path}: {what}", flush=True)
    print(f"{count(whole, 'file')} as written, {len(damaged)} damaged")
    if damaged:
        print("delete the damaged ones: they are decoded or computed again")
    return 1 if damaged else 0


def total(files: Sequence[CachedFile]) -> int:
    return sum(file.size for file in files)


def summary(files: Sequence[CachedFile]) -> list[str]:
    """Return a line for each kind of file."""
    lines = []
    for kind in Kind:
        some = [file for file in files if file.kind is kind]
        if some:
            ages = sorted({ago(file.age): file.age for file in some}.items(), key=lambda item: item[1])
            when = ages[0][0] if len(ages) == 1 else f"{ages[0][0]} to {ages[-1][0]}"
            lines.append(f"  {kind.value:<28} {len(some):>6,}  {readable(total(some)):>10}  last used {when}")
    return lines


def sets(files: Sequence[CachedFile]) -> list[str]:
    """Return a line for each set of decoded tiles, the largest first, and how many more there are."""
    tiles = sorted((file for file in files if file.kind is Kind.TILES), key=lambda file: -file.size)
    lines = []
    for file in tiles[:LISTED]:
        what = f"{count(file.shape[0], 'tile')} of {file.shape[1]} px" if len(file.shape) == 4 else "damaged"
        lines.append(f"  {file.path.name[:14]}...  {readable(file.size):>10}  {what}, last used {ago(file.age)}")
    return lines + ([f"  and {count(len(tiles) - LISTED, 'smaller set')}"] if len(tiles) > LISTED else [])


def ago(seconds: float) -> str:
    """Return an age in words."""
    days = int(seconds // 86400)
    return f"{count(days, 'day')} ago" if days else "today"


def count_days(days: float) -> str:
    """Return a number of days, as in "1 day", "0.5 days"."""
    return "1 day" if days == 1 else f"{days:g} days"
