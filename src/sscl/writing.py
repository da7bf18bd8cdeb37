"""Files that are whole or absent, never half written: text, JSON, CSV, YAML."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import glob
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from sscl import locks, reading


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text such as 1e-4, which sscl's loader would read as a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def to_yaml(content: Mapping[str, object]) -> str:
    """Return plain containers as YAML that loads as the same."""
    text: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def in_line(key: str, value: object) -> str:
    """Return a key with its value as one line of YAML that loads as the same.

    Examples:
        >>> in_line("root", "a: b #1"), in_line("size_px", 96), in_line("runs", ["~/a", "1e-4"])
        ("root: 'a: b #1'", 'size_px: 96', "runs: [~/a, '1e-4']")
    """
    text: str = yaml.dump(value, Dumper=_Dumper, allow_unicode=True, default_flow_style=True, width=float("inf"))
    return f"{key}: {text.removesuffix(chr(10)).removesuffix('...').rstrip()}"


# What torch's writer of zip files says where a write fails; it has no number of an error.
TORCH_WRITE_FAILED = re.compile("PytorchStreamWriter failed|file write failed|unexpected pos")
_SPARE_BYTES = 64 * 2**20
_NOT_WRITTEN = "cannot be written"
_ADVICE = {
    "free some space": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "check its permissions": (errno.EACCES, errno.EPERM, errno.EROFS),
    "give it a shorter name": (errno.ENAMETOOLONG,),
}


@contextlib.contextmanager
def naming(path: Path, *, temporary: Path | None = None, kept: str = "") -> Iterator[None]:
    """Give an error of writing the file's name, where the system or torch leaves it out, and say what to do.

    Args:
        temporary: the path that is written in its place. kept: what is still there, as in "epoch 3 is kept".

    Raises:
        OSError: with the path as `filename` and the rest of the line as `strerror`.
    """
    try:
        yield
    except RuntimeError as error:
        if not TORCH_WRITE_FAILED.search(str(error)):
            raise
        full = shutil.disk_usage(path.parent).free < _SPARE_BYTES
        reason = (
            os.strerror(errno.ENOSPC) if full else "the disk is full, or a quota or a limit on file size is reached"
        )
        raise _not_written(path, errno.ENOSPC, reason, kept) from error
    except OSError as error:
        # One without a number is a sentence of sscl; a broken pipe, or another file's error, is none of this file.
        ours = error.filename in (None, str(path), str(temporary)) and not isinstance(error, BrokenPipeError)
        if error.errno in (None, errno.ENOMEM) or not ours:
            raise
        raise _not_written(path, error.errno, error.strerror or type(error).__name__, kept) from error


def _not_written(path: Path, number: int, reason: str, kept: str) -> OSError:
    """Return the error of a file that cannot be written; a reason that says so already stays as it is."""
    if reason.startswith(_NOT_WRITTEN):
        return OSError(number, reason, str(path))
    to_do = next((advice for advice, numbers in _ADVICE.items() if number in numbers), "write elsewhere")
    parts = (f"{_NOT_WRITTEN} ({reason[:1].lower()}{reason[1:]})", kept, to_do)
    return OSError(number, "; ".join(part for part in parts if part), str(path))


# --- files and folders, whole or absent ---

# `.NAME.RANDOM.tmp` is being written; with .lock behind it, its lock.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{12}\.tmp")
_LOCK, _ASIDE = ".lock", ".old"


@contextlib.contextmanager
def replacing(path: Path, *, kept: str = "") -> Iterator[Path]:
    """Give a temporary path to write; on success it is fsynced and takes `path`'s place in one step.

    Args:
        kept: see `naming`.
    """
    temporary = _beside(path)
    with naming(path, temporary=temporary, kept=kept), locks.held(temporary, wait=True):
        try:
            yield temporary
            put(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes the place of `path`, whose old content is then deleted.

    The old content stays whole until then, whatever happens. The folder above `path` is made where it is missing.

    Raises:
        locks.InUse: another process writes there.
    """
    real = Path(os.path.realpath(path))  # beside the folder itself, not beside a link to it
    if real.exists() and not real.is_dir():
        raise ValueError(f"{path}: is no folder, so it is not replaced; name a folder to write")
    if os.path.ismount(real):
        raise ValueError(f"{path}: something is mounted there, so it cannot be replaced; name a folder in it")
    if real.is_symlink():
        raise ValueError(f"{path}: is a link that leads to itself; name another folder")
    temporary = _beside(real)
    with holding(path), contextlib.ExitStack() as stack:
        with naming(path, temporary=temporary):
            stack.enter_context(locks.held(temporary, wait=True))
            temporary.mkdir()
        try:
            yield temporary
            with naming(path, temporary=temporary):
                _take_place(temporary, real)
        except OSError as error:
            name = str(error.filename)
            if name.startswith(f"{temporary}/"):
                error.filename = f"{path}{name.removeprefix(str(temporary))}"
            raise
        finally:
            _delete(temporary)


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder to write, and first clear away what a killed process left beside it.

    Where this process holds it already, nothing happens.

    Raises:
        locks.InUse: another process writes there.
    """
    reading.check_name(path)
    if locks.holds(path):
        yield
        return
    real = Path(os.path.realpath(path))
    with contextlib.ExitStack() as stack:
        with naming(path):
            stack.enter_context(_folder(real.parent, what=path))
            locked = stack.enter_context(locks.held(path))
            _put_back(real)
        if not locked:
            print(f"note: no file can be locked in {real.parent}: let no other command write {path} meanwhile")
        remove_dead(real.parent, real.name)
        yield


@contextlib.contextmanager
def _folder(folder: Path, *, what: Path) -> Iterator[None]:
    """Make a folder, for `what`, and those above it; remove again what was made and stays empty."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(what)) from error
        yield
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # absent, or in use now
                path.rmdir()


def remove_dead(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished in a folder: of the file or folder `name`, or all."""
    if not folder.is_dir():
        return
    found = [_TEMPORARY.fullmatch(entry.removesuffix(_LOCK)) for entry in os.listdir(folder)]
    for temporary in {folder / match[0] for match in found if match is not None and name in (None, match[1])}:
        with contextlib.suppress(locks.InUse, OSError), locks.held(temporary) as locked:
            if locked:
                _delete(temporary)


def is_bare(folder: Path) -> bool:
    """Return whether a folder holds nothing but, perhaps, what killed processes of sscl left unfinished there."""
    return all(_is_left(path) for path in folder.iterdir())


def is_passing(path: Path) -> bool:
    """Return whether a file or folder is only there while a command of sscl writes: an unfinished one, or a lock."""
    return _TEMPORARY.fullmatch(path.name.removesuffix(_LOCK)) is not None or locks.is_lock(path)


def _is_left(path: Path) -> bool:
    """Return whether a file or folder is an unfinished one, or a lock, of a process that is gone."""
    name = path.name.removesuffix(_LOCK)
    of = name if _TEMPORARY.fullmatch(name) is not None else name[1:]
    return is_passing(path) and not locks.in_use(path.with_name(of))


def _delete(path: Path) -> None:
    """Delete a file or folder that may be absent; what cannot be deleted is said."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        if path.exists():
            print(f"note: {path} cannot be deleted; nothing needs it")
    else:
        path.unlink(missing_ok=True)


def _take_place(finished: Path, path: Path) -> None:
    """Put a finished folder in the place of another, which then has its name; in one step where the system can."""
    if not path.exists():
        finished.rename(path)
    elif not _exchange(finished, path):
        try:
            path.rename(finished.with_suffix(_ASIDE))
            finished.rename(path)
        finally:
            _put_back(path)


def _put_back(path: Path) -> None:
    """Bring back a folder whose successor never took its place; one whose successor did is a dead temporary now."""
    for aside in path.parent.glob(f".{glob.escape(path.name)}.*{_ASIDE}"):
        temporary = aside.with_suffix(".tmp")
        if _TEMPORARY.fullmatch(temporary.name) is not None:
            aside.rename(temporary if path.exists() else path)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step; return whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fs.h
    if rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # an older kernel, or a file system that cannot
        return False
    raise OSError(number, os.strerror(number), str(b))


def put(finished: Path, path: Path) -> None:
    """Bring a finished file to the disk, then move it to `path` in one step."""
    sync(finished)
    os.replace(finished, path)


def sync(path: Path) -> None:
    """Bring a file to the disk."""
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _beside(path: Path) -> Path:
    """Return a name in the same folder, so on the same file system, that no other process or machine uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step; NaN is refused, undefined numbers are None."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in one step; None is an empty field."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def is_ours(folder: Path) -> bool:
    """Return whether a command of sscl made the folder; a file named env.json alone may be anybody's."""
    try:
        content = reading.parse_json(reading.read_bytes(folder / "env.json", at_most=2**20))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "sscl" in content
