"""Who writes a file or folder just now: the kernel's lock on a file beside it, which ends with the process.

The lock of `runs/x` is `runs/.x.lock`. What the file says is for people; whether its process lives, the kernel knows.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sscl.reading import parse_json
from sscl.words import short

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_START = b'{"host": '
_ATTEMPTS = 100  # more than enough; some network file systems give a file another number each time
_HELD: set[Path] = set()  # by this process


class InUse(ValueError):
    """Another process writes there."""


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file or folder, which need not exist yet; yields False where there can be none.

    That is on a file system without locks, and in a folder where this user may write nothing.

    Args:
        wait: for the process that holds it.

    Raises:
        InUse: another process, or another thread of this one, holds it.
        OSError: nothing can be written there; named after `path`.
    """
    real = _real(path)
    if not real.name:
        raise ValueError(f"{path}: is the root of a file system; name a folder in it")
    try:
        file, locked = _take(lock_of(real), path, wait=wait)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    _HELD.add(real)
    try:
        yield locked
    finally:
        _HELD.discard(real)
        if file is not None:
            with contextlib.suppress(OSError):
                lock_of(real).unlink()
            file.close()


def holds(path: Path) -> bool:
    """Return whether this process holds the lock of a path."""
    return _real(path) in _HELD


def in_use(path: Path) -> bool:
    """Return whether a process holds the lock of a path, or may do so."""
    try:
        with lock_of(_real(path)).open("r+b") as file:
            return _lock(file) is not True
    except FileNotFoundError:
        return False
    except OSError:
        return True


def lock_of(path: Path) -> Path:
    """Return the lock file of a path."""
    return path.with_name(f"{'' if path.name.startswith('.') else '.'}{path.name}.lock")


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock file of sscl, by its name and what it says; it may still be empty."""
    if not (path.name.startswith(".") and path.name.endswith(".lock") and path.is_file()):
        return False
    with contextlib.suppress(OSError):
        start = path.read_bytes()[:16]
        return start.startswith(_START) or not start
    return False


def _real(path: Path) -> Path:
    """Return a path without links, so that a folder has one lock under all its names."""
    return Path(os.path.realpath(path))


def _take(lock: Path, path: Path, *, wait: bool) -> tuple[IO[bytes] | None, bool]:
    """Return the open lock file, if there can be one, and whether it is locked."""
    file, locked = None, None
    for left in reversed(range(_ATTEMPTS)):
        file = _open(lock)
        locked = None if file is None else _lock(file, wait=wait)
        if file is None or _is_at(lock, file) or not left:
            break
        file.close()  # the one before has removed it between our opening and our locking it
    if file is not None and locked is False:
        with file:
            raise InUse(f"{path}: {_said_by(file)}; wait until it has ended, or write elsewhere")
    if file is not None:
        with contextlib.suppress(OSError):  # a full disk: nobody needs this text to be there
            file.truncate(0)
            file.write(json.dumps(_here()).encode())
    return file, locked is True


def _open(lock: Path) -> IO[bytes] | None:
    """Return the lock file, open, with what another process wrote; None where this user may not make or read it."""
    try:
        return lock.open("a+b", buffering=0)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        return lock.open("rb", buffering=0)  # another user's
    except OSError:
        return None


def _is_at(lock: Path, file: IO[bytes]) -> bool:
    """Return whether an open lock file is still the one of its name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), lock.stat())
    return False


def _lock(file: IO[bytes], *, wait: bool = False) -> bool | None:
    """Lock an open file. False: another one has; None: this file system, or this system, has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _here() -> dict[str, str | int]:
    """Return what a lock file says of this process."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": datetime.datetime.now(datetime.timezone.utc).isoformat(" ", timespec="seconds"),
        "command": " ".join(["sscl", *sys.argv[1:]]),
    }


def _said_by(file: IO[bytes]) -> str:
    """Return who holds a lock, in words."""
    try:
        file.seek(0)
        found = parse_json(file.read(2**16))
        process, host, since, command = (short(str(found[key])) for key in ("process", "host", "since", "command"))
        return f"process {process} on {host} writes there since {since} ({command})"
    except (OSError, ValueError, TypeError, KeyError):  # it is just being written
        return "another process writes there"
