"""What lies in a folder: which files can be read, and what they say without times and dates."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from sscl.config import read_yaml
from sscl.metrics_log import read_metrics
from sscl.models.torch_files import read_torch_file

# What is never the same twice, by key of JSON and as text.
_TIMES = re.compile("seconds|per_second|busy|date|command|memory|_gb|threads|made|bytes|sha256")
_DATES = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?(\+\d\d:\d\d)?( UTC)?)?")


def files_of(place: Path) -> dict[str, Path]:
    """Return all files below a folder, or the file itself, by their names in it; a link is not followed."""
    if place.is_file():
        return {place.name: place}
    return {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}


def is_temporary(name: str) -> bool:
    """Return whether a name in a folder is of something that a command had not finished, or of its lock."""
    return any(part.startswith(".") or part.endswith((".part", ".tmp", ".lock")) for part in Path(name).parts)


def digest(place: Path) -> dict[str, str]:
    """Return what each file says, as a short text; files that cannot be read are "unreadable: why"."""
    return {name: _said(path) for name, path in files_of(place).items() if not is_temporary(name)}


def unreadable(place: Path) -> Iterator[str]:
    """Yield a line for each file, of those that are no temporary, that its own reader cannot read."""
    for name, said in digest(place).items():
        if said.startswith("unreadable"):
            yield f"{name} is {said}"


def temporaries(place: Path) -> list[str]:
    """Return the names of what was left behind below a folder: files, links and folders."""
    found = [str(path.relative_to(place)) for path in sorted(place.rglob("*"))]
    return [name for name in found if is_temporary(name)]


def difference(now: dict[str, str], wanted: dict[str, str]) -> str:
    """Return in what two results differ, in words; empty if they are the same."""
    missing, more = sorted(wanted.keys() - now.keys()), sorted(now.keys() - wanted.keys())
    other = sorted(name for name in now.keys() & wanted.keys() if now[name] != wanted[name])
    said = (("lacks", missing), ("has also", more), ("has another", other))
    return "; ".join(f"{verb} {', '.join(names[:3])}" for verb, names in said if names)


def _said(path: Path) -> str:
    try:
        content = (_READERS.get(path.suffix) or Path.read_bytes)(path)
    except Exception as error:  # whatever it is, the file cannot be read
        return f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return hashlib.sha256(content).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a value as JSON can say it, without times."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items() if not _TIMES.search(str(key))}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.reshape(-1).clone().view(torch.uint8).numpy().tobytes()).hexdigest()
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _packed(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True).encode()


def _json(path: Path) -> bytes:
    return _packed(json.loads(path.read_text(encoding="utf-8")))


def _csv(path: Path) -> bytes:
    text = path.read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(text)))
    if not text.endswith("\n") or len({len(row) for row in rows}) != 1:
        raise ValueError("rows are not whole")
    return text.encode()


def _image(path: Path) -> bytes:
    with Image.open(path) as image:
        image.load()
        return bytes(image.tobytes())


def _text(path: Path) -> bytes:
    text = path.read_text(encoding="utf-8")
    if not text.rstrip().endswith("</html>") if path.suffix == ".html" else not text.endswith("\n"):
        raise ValueError("ends in the middle")
    return _DATES.sub("", text).replace(" --overwrite`", "`").encode()  # the command that made it is said in it


def _arrays(path: Path) -> bytes:
    with np.load(path, allow_pickle=False) as found:
        return b"".join(name.encode() + found[name].tobytes() for name in found)


def _yaml(path: Path) -> bytes:
    return _packed(read_yaml(path))


_READERS: dict[str, Callable[[Path], bytes]] = {
    ".json": _json,
    ".csv": _csv,
    ".png": _image,
    ".jpg": _image,
    ".md": _text,
    ".html": _text,
    ".yaml": _yaml,
    ".npz": _arrays,
    ".npy": lambda path: np.load(path, allow_pickle=False).tobytes(),
    ".pt": lambda path: _packed(read_torch_file(path)),
    ".safetensors": lambda path: _packed(load_file(path)),
    ".jsonl": lambda path: _packed(read_metrics(path)),
}
