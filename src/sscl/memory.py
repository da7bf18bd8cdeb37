"""Memory that this process may still take, the errors that mean it ran out, and what to lower then.

Without torch: it may be torch that does not fit.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sscl.words import readable

# Commands with a key batch_size, tiles forwarded at a time.
BATCHED = ("data audit", "eval", "gradcam", "predict", "probe", "embed", "report")
# What torch, numpy, OpenCV, Python, the C++ library and the loader of libraries say.
_SAID = re.compile(
    "can(?:'|no)t allocate memory|unable to allocate|tried to allocate|bad_alloc|insufficient memory|"
    "failed to map segment|cannot create shared object|start new thread|thread creation failed|pthread_create|"
    "resource temporarily unavailable",
    re.IGNORECASE,
)
# Of oneDNN and of Python, which do not say why: a shortage where little is free under a limit of the process.
_UNCLEAR = re.compile("could not create a primitive|without (?:setting an )?exception|out of memory")
_LITTLE = 256 * 2**20
_ASKED = re.compile(r"(?:tried|failed) to allocate ([\d.]+) (bytes)|unable to allocate ([\d.]+) ([KMGT]iB|bytes)", re.I)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


class Free(NamedTuple):
    """Bytes that may still be taken, and what limits them, in words.

    Attributes:
        raised_by: how that limit is raised; None = not at all.
        needed: with torch loaded, what small work takes besides: eval of a few tiles on a CPU took 720 MiB of address
            space, fine-tuning 1.2 GiB, and both 330 MiB of data (torch 2.15, Python 3.11). 0 = not known.
    """

    size: int
    limit: str
    raised_by: str | None
    needed: int = 0


def free_ram(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may still take, on Linux; None elsewhere.

    That is what the machine has available, or what a limit leaves, where that is less: of a control group (a
    container's, Slurm's), of the process's address space or of its data. Files in the cache of the kernel count as
    free.

    Args:
        root: where /proc and /sys are.
    """
    found = least_free(root)
    return None if found is None else found.size


def least_free(root: Path = Path("/")) -> Free | None:
    """Return `free_ram` with the limit that it comes from."""
    return min(_limits(root), key=lambda found: found.size, default=None)


def is_short(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, means that memory (not that of a GPU) or threads ran out."""
    for found in _led_to(error):
        if isinstance(found, MemoryError) or (isinstance(found, OSError) and found.errno == errno.ENOMEM):
            return True
        said = str(found)
        if "cuda" not in said.lower() and (_SAID.search(said) or (_UNCLEAR.search(said) and _is_little_free())):
            return True
    return False


def _led_to(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, each once: libraries raise some in a circle."""
    passed: set[int] = set()
    while error is not None and id(error) not in passed:
        passed.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_little_free() -> bool:
    free = least_free()
    return free is not None and free.raised_by is not None and free.size < _LITTLE


def check_room(root: Path = Path("/")) -> None:
    """Raise MemoryError where a limit of this process leaves less than small work takes.

    Libraries in C and C++ end the process where they get no memory, and then nothing says why.
    """
    for free in _limits(root):
        if free.size < free.needed:
            raise MemoryError(f"small work takes {readable(free.needed)}")


def raise_if_short(error: BaseException) -> None:
    """Raise MemoryError where an error means that memory ran out: it is none of the file that was being read."""
    if is_short(error):
        raise MemoryError(str(error)) from error


def shortage(error: BaseException, command: str) -> str:
    """Return the line for an error of `is_short`: what was asked for, what is free, what to do."""
    asked = _asked(error)
    parts = [] if asked is None else [f"{readable(asked)} more were needed"]
    parts += [str(error)] if str(error).startswith("small work takes") else []
    free, what_to_do = least_free(), advice(command, on_gpu=False)
    if free is not None:
        parts.append(f"{readable(free.size)} are free {free.limit}")
        what_to_do = what_to_do if free.raised_by is None else f"{free.raised_by}, or {what_to_do}"
    if isinstance(error, ImportError):  # nothing of the command's own is there yet
        parts.insert(0, "torch and the other libraries do not fit (a build of torch with CUDA takes 3.5 GiB)")
        what_to_do = "free some memory" if free is None or free.raised_by is None else free.raised_by
    elif "thread" in str(error) or "temporarily" in str(error):
        parts.insert(0, "no thread could be started")
    return f"out of memory: {', '.join(parts)}{'; ' if parts else ''}{what_to_do}"


def advice(command: str, *, half: str | None = "bf16", on_gpu: bool = True) -> str:
    """Return what to do when memory runs out in a command: keys that it accepts, the one that costs least first.

    Args:
        half: the 16-bit precision to recommend; None = none, as the device does not compute in one.
        on_gpu: whether the tiles may be taking memory of a GPU.
    """
    precision = "" if half is None else f"precision={half}, "
    keys = "data.device_budget_gb or data.size_px" if on_gpu else "data.size_px"
    saving = "train.gradient_checkpointing=true, for transformers train.lora.rank=8"
    also = f"{saving}, {precision}a lower {keys}, and a smaller model.name also help"
    if command == "pretrain":
        return (
            "set train.microbatch to a divisor of train.batch_size (the same loss in less memory, about 4/3 of the "
            f"time; batch norm then uses the statistics of each microbatch), or lower train.batch_size; {also}"
        )
    if command == "finetune":
        return f"lower train.batch_size; {also}"
    if command in BATCHED:
        return "lower batch_size"
    return "free some memory, or use a machine that has more"


def _asked(error: BaseException | None) -> int | None:
    """Return the bytes that could not be had, where an error or one that led to it says so."""
    for one in _led_to(error):
        found = _ASKED.search(str(one))
        if found is not None:
            value, unit = [group for group in found.groups() if group is not None]
            return int(float(value) * _UNITS[unit.lower()])
    return None


def _limits(root: Path) -> Iterator[Free]:
    for size in _numbers(root / "proc/meminfo", "MemAvailable:"):
        yield Free(1024 * size, "in the machine", None)
    for folder, limit, usage, inactive in _memory_groups(root):
        for most, used in zip(_numbers(folder / limit), _numbers(folder / usage), strict=False):
            cached = next(iter(_numbers(folder / "memory.stat", inactive)), 0)
            words = f"under the limit of this container or job ({readable(most)})"
            yield Free(max(0, most - used + cached), words, "raise that limit")
    for option, name, what, used_by, needed in (
        ("-v", "Max address space", "the address space", "VmSize:", 720 * 2**20),
        ("-d", "Max data size", "data", "VmData:", 320 * 2**20),
    ):
        for most in _numbers(root / "proc/self/limits", name):
            for used in _numbers(root / "proc/self/status", used_by):
                words = f"under the limit of {what} (ulimit {option}, {readable(most)})"
                yield Free(max(0, most - 1024 * used), words, "raise that limit", needed)


def _memory_groups(root: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Yield each control group that may limit the memory of this process, and what its files are called."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents):  # in a container some are not to be seen
            yield top / group, *names


def _numbers(file: Path, name: str = "") -> list[int]:
    """Return the number in a file of the system, or the first after `name`; none where there is no file or number."""
    try:
        rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return []
    wanted = name.split()
    found = [row[len(wanted) :] for row in rows if row[: len(wanted)] == wanted]
    return [int(row[0]) for row in found if row and row[0].isdigit()]  # "max" and "unlimited" are no limit
