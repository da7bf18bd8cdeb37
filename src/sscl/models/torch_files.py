"""Files of `torch.save` and safetensors, read without running anything in them."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sscl.file_kinds import binary_kind, text_kind
from sscl.memory import free_ram, raise_if_short
from sscl.models.tensors import leaves
from sscl.places import missing
from sscl.words import readable

_CODE_BYTES = 2**24


class _Inert:
    """Replaces whatever a file names that is neither a tensor nor a plain container: accepts anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """Replaces a subclass of dict, which torch fills only if its type is exactly one of three."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read_torch_file(path: str | Path, *, mapped: bool = False) -> Any:
    """Return what a file of `torch.save` or safetensors holds, on the CPU; nothing in it is imported or run.

    It is loaded with `weights_only=True`. Whatever else it names, such as the callbacks and hyperparameters in a
    checkpoint of Lightning, is replaced by empty objects; what torch refuses even then (os, sys) is an error.

    Args:
        mapped: leave tensors on disk until somebody looks at their numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: empty, truncated, not such a file, one that unfolds to more than its size, or that torch refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(missing(path, "checkpoint file"))
    with path.open("rb") as handle:
        start = handle.read(200)
    packed = path.suffix == ".safetensors" or start[8:9] == b"{"  # by whatever name: a length, then JSON
    if what := text_kind(start) or (binary_kind(start) if start[:2] != b"PK" else None):
        raise ValueError(f"{path}: not a readable checkpoint ({what[0]}); {what[1]}")
    try:
        if not start:
            raise ValueError("empty")
        if packed:
            return safetensors.torch.load_file(path)
        whole = zipfile.is_zipfile(path)
        if whole:
            _check_sizes(path)
        with warnings.catch_warnings(), safe_globals([_stand_in(name) for name in _foreign_names(path)]):
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused later
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and whole)
        for _ in leaves(content):  # none goes on for ever
            pass
        return content
    except PermissionError:
        raise
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, ... for a broken file
        free = free_ram()
        if free is None or free < 3 * path.stat().st_size:  # otherwise it asked for more than it holds
            raise_if_short(error)
        raise ValueError(
            f"{path}: not a readable checkpoint ({_reason(error)}); "
            "it is truncated, or was not written by torch.save or safetensors"
        ) from error


def _check_sizes(path: Path) -> None:
    """Raise ValueError where a zip file's parts, unpacked, need more memory than the file: torch packs code alone."""
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > path.stat().st_size + _CODE_BYTES:
        raise ValueError(f"its parts unpack to {readable(unpacked)}")


def _reason(error: Exception) -> str:
    """Return the part of an error of torch or safetensors that tells something; torch explains itself at length."""
    lines = str(error).splitlines() or [type(error).__name__]
    named = next((line for line in lines if "GLOBAL" in line), None)
    if named is None and lines[0].startswith("Weights only load failed"):
        return "no pickle of tensors"
    return (named or lines[0].split(". ")[0]).strip()[:120]


def _stand_in(dotted: str) -> Any:
    """Return an empty class under a dotted name, by which torch finds it."""
    module, _, name = dotted.rpartition(".")
    base = _InertDict if name.lower().endswith("dict") else _Inert
    return type(name, (base,), {"__module__": module, "__qualname__": name})


def _foreign_names(path: Path) -> list[str]:
    """Return the dotted names of what a file of torch.save wants imported beyond what torch allows; imports nothing."""
    if zipfile.is_zipfile(path):
        return sorted(get_unsafe_globals_in_checkpoint(path))
    names: set[str] = set()
    # Before torch 1.6: pickles of a number, the format's version, the system, the content.
    with path.open("rb") as handle:
        for _ in range(4 if handle.peek(1)[:1] == b"\x80" else 0):
            for opcode, argument, _position in pickletools.genops(handle):
                if opcode.name == "GLOBAL":
                    module, name = str(argument).split(" ", 1)
                    names.add(f"{ {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module) }.{name}")
    return sorted(names)
