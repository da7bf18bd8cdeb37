"""What this machine has: graphics cards, cores, memory, disk, and where files may be written and locked."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from sscl import locks
from sscl.compilers import c_compiler, has_headers
from sscl.cores import cpu_cores
from sscl.doctor.findings import Finding, State
from sscl.memory import least_free
from sscl.places import expanded
from sscl.words import count, readable, short

LEAST_MEMORY = 1.5 * 2**30  # bytes; fine-tuning a ResNet18 on a few tiles takes 1.2 GiB of address space
LEAST_DISK = 2**30  # bytes; a run of ResNet50 keeps two checkpoints of 300 MB
LITTLE_SHARED = 2**28
DRIVER = Path("/proc/driver/nvidia/version")
SHARED = Path("/dev/shm")


def computer(*, torch_works: bool) -> list[Finding]:
    """Return what computes: the cards, the cores and the memory.

    Args:
        torch_works: whether torch can be imported, without which nothing is known of the cards.
    """
    return [*(_cards() if torch_works else []), *_cores(torch_works), _memory(), *_shared_memory(), _compiler()]


def files(cache: Path | str | None = None) -> list[Finding]:
    """Return where files may be written: the working folder, and the cache of decoded tiles.

    Args:
        cache: its folder; None = $SSCL_CACHE or ~/.cache/sscl.
    """
    return [_folder("working folder", Path.cwd(), "change to a folder of yours"), *_cache(cache)]


# --- what computes ---


def _cards() -> list[Finding]:
    """Return a finding for each graphics card that torch sees, or why it sees none."""
    import torch

    from sscl.device import half_precision, missing_kernels

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        there = torch.cuda.is_available()
    if not there:
        return [_no_card(short(str(said[0].message), most=300) if said else "")]
    found = []
    for number in range(torch.cuda.device_count()):
        device, name = torch.device("cuda", number), f"GPU {number}"
        try:
            major, minor = torch.cuda.get_device_capability(device)
            text = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
            if (missing := missing_kernels(device)) is not None:
                found.append(Finding(name, f"{text}: torch has no kernels for it", State.NOTE, missing))
                continue
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:  # of CUDA: a card that is lost, exclusive, or full
            why = short(str(error).strip().splitlines()[0], most=200)
            to_do = "nvidia-smi shows its state; device=cpu works without it"
            found.append(Finding(name, f"cannot be used ({why})", State.FAULT, to_do))
            continue
        text += f", {readable(free)} of {readable(total)} free, precision {half_precision(device) or 'fp32'}"
        little = free < LEAST_MEMORY
        to_do = "nvidia-smi lists who has its memory; device=cpu works without it" if little else ""
        found.append(Finding(name, text, State.NOTE if little else State.FINE, to_do, gpu=True))
    if len(found) > 1:
        found.append(Finding("several GPUs", f"torchrun --nproc-per-node={len(found)} -m sscl pretrain ... uses all"))
    return found


def _no_card(warning: str) -> Finding:
    """Return why torch sees no graphics card; training then runs on the processor."""
    import torch

    if torch.backends.mps.is_available():
        return Finding("GPU", "Apple's; auto takes the processor, device=mps this")
    if torch.version.cuda is None and torch.version.hip is None:
        kind = f"torch {torch.__version__} is built for processors only"
    else:
        kind = f"torch sees none (it is built for CUDA {torch.version.cuda or torch.version.hip})"
    if not (DRIVER.exists() or shutil.which("nvidia-smi")):
        return Finding("GPU", f"none: no NVIDIA driver is installed here; {kind}")
    advice = (
        "install torch with CUDA (pytorch.org/get-started)"
        if torch.version.cuda is None
        else "a newer driver or an older torch (pytorch.org/get-started); in a container, --gpus all"
    )
    why = f" ({warning})" if warning else ""
    return Finding("GPU", f"an NVIDIA driver is here, but {kind}{why}", State.NOTE, advice)


def _cores(torch_works: bool) -> list[Finding]:
    """Return the cores that this process may use, and the threads that torch takes."""
    there, usable = os.cpu_count() or 1, cpu_cores()
    text = f"{usable}{f' of {there}' if usable < there else ''} ({platform.machine()})"
    if not torch_works:
        return [Finding("processor cores", text)]
    import torch

    threads = torch.get_num_threads()
    text += f", torch takes {count(threads, 'thread')}"
    if threads < usable and (given := os.environ.get("OMP_NUM_THREADS")):
        to_do = f"OMP_NUM_THREADS={given} keeps torch from using all cores; unset it for faster training"
        return [Finding("processor cores", text, State.NOTE, to_do)]
    return [Finding("processor cores", text)]


def _memory() -> Finding:
    free = least_free()
    if free is None:
        return Finding("memory", f"not known on {platform.system()}")
    text = f"{readable(free.size)} free {free.limit}"
    if free.size >= LEAST_MEMORY:
        return Finding("memory", text)
    to_do = free.raised_by or "end other programs"
    return Finding("memory", text, State.FAULT, f"{to_do}: small trainings take {readable(int(LEAST_MEMORY))}")


def _shared_memory() -> list[Finding]:
    """Return the size of what processes share; NCCL needs it where several GPUs train together."""
    if not SHARED.is_dir():
        return []
    usage = shutil.disk_usage(SHARED)
    text = f"{readable(usage.free)} of {readable(usage.total)} free in {SHARED}"
    if usage.free >= LITTLE_SHARED:
        return [Finding("shared memory", text)]
    return [Finding("shared memory", f"{text}: enough for one GPU; for several, docker run --shm-size=1g")]


def _compiler() -> Finding:
    found, users = c_compiler(), "train.compile=true, and by the CUDA kernels of the views"
    if found is None:
        return Finding("C compiler", f"none: needed by {users}")
    if not has_headers():
        return Finding("C compiler", f"{found}, without Python.h (python3-dev): needed by {users}")
    return Finding("C compiler", found)


# --- where files are written ---


def _cache(given: Path | str | None) -> Iterator[Finding]:
    """Yield what the cache folder holds, whether it can be written, and who writes there just now."""
    chosen = given or os.environ.get("SSCL_CACHE")
    to_do = "set SSCL_CACHE to a folder that you may write"
    try:
        folder = Path(expanded(str(chosen))) if chosen else Path.home() / ".cache" / "sscl"
    except (RuntimeError, ValueError) as error:  # no home folder, an unknown variable
        yield Finding("cache", f"has no folder ({short(str(error))})", State.FAULT, to_do)
        return
    yield _folder("cache", folder, to_do)
    if not os.path.isdir(folder):
        return
    with contextlib.suppress(OSError):
        held, left, size = [], 0, 0
        for path in folder.iterdir():
            if path.name.endswith(".lock"):
                of = path.with_name(path.name.removesuffix(".lock"))
                busy = locks.in_use(of)
                held += [of.name] if busy else []
                left += not busy
            elif path.is_file():
                size += path.stat().st_size
        text = f"{readable(size)}; "
        text += f"{count(len(held), 'file')} being written now" if held else "nothing is being written now"
        text += f", {count(left, 'lock')} of processes that died (no harm, removed when next written)" if left else ""
        yield Finding("cache, its files", text)


def _folder(name: str, folder: Path, to_do: str) -> Finding:
    """Return whether files can be written and locked in a folder, or in the one in which it would be made."""
    # os.path.exists: also of a folder in one that may not be read, where Path.exists raises
    there = next((path for path in (folder, *folder.parents) if os.path.exists(path)), Path(folder.anchor or "."))
    made = "" if there == folder else ", not there yet"
    if not there.is_dir():
        return Finding(name, f"{folder}: {there} is a file", State.FAULT, to_do)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".sscl-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            with locks.held(Path(file.name)) as locked:
                pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, f"{folder}: cannot be written ({error.strerror})", State.FAULT, to_do)
    text = f"{folder}{made}: can be written, {readable(free)} free"
    if free < LEAST_DISK:
        return Finding(name, text, State.FAULT, f"free some space (sscl cache --empty empties the cache), or {to_do}")
    if not locked and sys.platform != "win32":
        return Finding(
            name, f"{text}, but files cannot be locked there", State.NOTE, "start no two commands that write one folder"
        )
    return Finding(name, text)
