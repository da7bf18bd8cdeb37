"""Files that are whole or absent, never half written: text, JSON, CSV, YAML."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text such as 1e-4, which sscl's loader would read as a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def to_yaml(content: Mapping[str, object]) -> str:
    """Return plain containers as YAML that loads as the same."""
    text: str = yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


# What torch's writer of zip files says where a write fails; it has no number of an error.
TORCH_WRITE_FAILED = re.compile("PytorchStreamWriter failed|file write failed|unexpected pos")
_SPARE_BYTES = 64 * 2**20
_NOT_WRITTEN = "cannot be written"


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
        if error.errno is None or not ours:
            raise
        raise _not_written(path, error.errno, error.strerror or type(error).__name__, kept) from error


def _not_written(path: Path, number: int, reason: str, kept: str) -> OSError:
    """Return the error of a file that cannot be written; a reason that says so already stays as it is."""
    if reason.startswith(_NOT_WRITTEN):
        return OSError(number, reason, str(path))
    to_do = "check its permissions" if number in (errno.EACCES, errno.EPERM, errno.EROFS) else "free some space"
    parts = (f"{_NOT_WRITTEN} ({reason[:1].lower()}{reason[1:]})", kept, to_do)
    return OSError(number, "; ".join(part for part in parts if part), str(path))


@contextlib.contextmanager
def replacing(path: Path, *, kept: str = "") -> Iterator[Path]:
    """Give a temporary path to write; on success it is fsynced and takes `path`'s place in one step.

    Args:
        kept: see `naming`.
    """
    temporary = _beside(path)
    try:
        with naming(path, temporary=temporary, kept=kept):
            yield temporary
            put(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; on success it takes the place of `path`, which must be absent or an empty folder.

    The folder above `path` is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put(finished: Path, path: Path) -> None:
    """Bring a finished file to the disk, then move it to `path` in one step."""
    with finished.open("rb+") as handle:
        os.fsync(handle.fileno())
    os.replace(finished, path)


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
        content = json.loads((folder / "env.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "sscl" in content
