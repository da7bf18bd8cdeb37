"""Damage and malice for files, drawn by a seed: bytes, texts, JSON, tables, zip members, Python values."""

from __future__ import annotations

import copy
import csv
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

Random = np.random.Generator

TEXTS = (
    *("", " ", "~", "null", "true", "no", "-1", "0", "1", "1.5", "1e999", "-1e-999", "nan", ".nan", ".inf", "1_000"),
    *("9" * 5000, "0x" + "f" * 3000, "1:" * 900 + "1", "2026-11-26", "[]", "{}", "'", '"', "\\", "%", "&a", "*a"),
    *("<<", "a" * 140_000, "\0", "a\0b", "\ud800", "e\u0301", "../../etc/passwd", "/dev/zero", "/dev/null", "/"),
    *("pipe.png", "loop.png", "folder.png", "~nobody/x", "~", "$HOME", "$NO_SUCH", "${X", "a/" * 3000, "x" * 300),
    *("=1+1", "@x", "\u202egnp.exe", "\x1b[31mred", "\r", "\n", "\t", "\u2028", "\U0001f9a0", "--overwrite", "%s%n"),
    *("{{ 7 * 7 }}", "<script>alert(1)</script>", "a,b", "a;b", "key: value", "# x", "- x", "!!int ''", "\ufeff"),
)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 256, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, True, False),
    *(0.0, -0.0, 0.5, 1e-30, 1e-308, 1e30, 1e300, -1e300, float("inf"), float("-inf"), float("nan")),
)


T = TypeVar("T")


def pick(rng: Random, values: Sequence[T]) -> T:
    """Return one of some values."""
    return values[int(rng.integers(len(values)))]


def text(rng: Random) -> str:
    """Return a text that is hard to take."""
    if rng.random() < 0.8:
        return str(pick(rng, TEXTS))
    letters = "-?:,[]{}#&*!|>'\"%@`\n\t .0159eE+_~=<$;\\/aZ\u00e9\u4e2d\x07"
    return "".join(pick(rng, letters) for _ in range(int(10 ** rng.uniform(0, 2.5))))


# --- bytes ---


def damaged(rng: Random, data: bytes, *, other: bytes = b"") -> bytes:
    """Return bytes flipped, cut, doubled, moved, or joined with those of another file, once to four times."""
    for _ in range(int(rng.integers(1, 5))):
        data = pick(rng, _DAMAGES)(rng, data, other)
    return data


def _place(rng: Random, data: bytes) -> int:
    # headers are at the beginning, and what a zip file lists at its end
    if rng.random() < 0.5:
        return int(min(len(data), rng.exponential(40)))
    if rng.random() < 0.2:
        return int(max(0, len(data) - rng.exponential(60)))
    return int(rng.integers(len(data) + 1))


def _flipped(rng: Random, data: bytes, other: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if found:
            found[min(_place(rng, data), len(found) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(found)


def _overwritten(rng: Random, data: bytes, _: bytes) -> bytes:
    at, size = _place(rng, data), int(10 ** rng.uniform(0, 2.5))
    new = pick(rng, (b"\0" * size, b"\xff" * size, rng.bytes(size)))
    return data[:at] + new + data[at + size :]


def _number(rng: Random, data: bytes, _: bytes) -> bytes:
    form = pick(rng, ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    most = 256 ** struct.calcsize(form) - 1
    new = struct.pack(form, pick(rng, (0, 1, most, most // 2, most // 2 + 1, int(rng.integers(most // 2 + 1)))))
    at = _place(rng, data)
    return data[:at] + new + data[at + len(new) :]


def _cut(rng: Random, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] if rng.random() < 0.8 else data[at:]


def _removed(rng: Random, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + int(10 ** rng.uniform(0, 3)) :]


def _doubled(rng: Random, data: bytes, _: bytes) -> bytes:
    at, end = sorted((_place(rng, data), _place(rng, data)))
    return data[:end] + data[at:]


def _inserted(rng: Random, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    new = text(rng).encode("utf-8", "surrogatepass") if rng.random() < 0.5 else rng.bytes(int(rng.integers(1, 60)))
    return data[:at] + new + data[at:]


def _spliced(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


_DAMAGES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flipped, _flipped, _overwritten, _number, _number, _cut, _removed, _doubled, _inserted, _spliced
)  # fmt: skip


# --- values in containers ---


def value(rng: Random, *, tensors: bool = False) -> Any:
    """Return a value that is probably not the one that was expected."""
    kind = int(rng.integers(7 if tensors else 5))
    if kind == 0:
        return pick(rng, NUMBERS)
    if kind == 1:
        return text(rng)
    if kind == 2:
        return pick(rng, (None, [], {}, [[]], {"": None}, [None], {"a": {"b": []}}, [1, "a", None, {}]))
    if kind == 3:
        return [pick(rng, NUMBERS) for _ in range(int(rng.integers(1, 8)))]
    if kind == 4:
        return {text(rng)[:200]: pick(rng, NUMBERS) for _ in range(int(rng.integers(1, 4)))}
    return tensor(rng)


def tensor(rng: Random) -> torch.Tensor:
    """Return a tensor that is hard to take."""
    shape = pick(rng, ((), (0,), (1,), (3,), (2, 3), (1, 1, 1, 1), (64, 0, 3)))
    made = torch.zeros(shape, dtype=pick(rng, (torch.float32, torch.float16, torch.bool, torch.int64, torch.complex64)))
    kind = int(rng.integers(5))
    if kind == 0 and made.is_floating_point():
        return made + pick(rng, (float("nan"), float("inf"), -1e38))
    if kind == 1:
        return torch.zeros(1).expand(int(10 ** rng.uniform(1, 12)))  # a number on the disk, terabytes when copied
    if kind == 2:
        return torch.eye(3).to_sparse()
    return made


def changed(rng: Random, content: Any, *, tensors: bool = False) -> Any:
    """Return a copy of nested containers with one to three places changed, taken away or added."""
    top = {"": copy.deepcopy(content)}
    for _ in range(int(rng.integers(1, 4))):
        places = list(_places(top))
        holder, key = pick(rng, places)
        kind = rng.random()
        if kind < 0.15 and holder is not top:
            del holder[key]
        elif kind < 0.25 and isinstance(holder[key], dict):
            holder[key][text(rng)[:200]] = value(rng, tensors=tensors)
        elif kind < 0.35 and isinstance(holder[key], list) and holder[key]:
            holder[key] *= pick(rng, (0, 2, 50))
        elif kind < 0.45:
            other, name = pick(rng, places)
            holder[key] = copy.deepcopy(other[name])
        elif kind < 0.5 and isinstance(holder[key], (int, float)):
            old = holder[key]
            holder[key] = pick(rng, (str(old), bool(old), [old], -old, [old] * 1000))
        else:
            holder[key] = value(rng, tensors=tensors)
    return top[""]


def _places(content: Any) -> Any:
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from _places(content[key])


def json_text(rng: Random, content: Any) -> bytes:
    """Return a record as JSON with changes of values, of the text, or of bytes."""
    kind = rng.random()
    if kind < 0.75:
        content = changed(rng, content)
    written = json.dumps(content, ensure_ascii=bool(rng.random() < 0.5)).encode("utf-8", "surrogatepass")
    if kind < 0.65:
        return written
    deep = int(10 ** rng.uniform(1, 5))
    if kind > 0.95:
        return pick(rng, (b"[" * deep, b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep + b"]" * deep))
    return damaged(rng, written, other=written)


# --- tables ---


def table(rng: Random, rows: Sequence[Sequence[str]]) -> bytes:
    """Return a CSV file with fields replaced, columns and rows added or taken away, and other marks between them."""
    found = [list(row) for row in rows]
    for _ in range(int(rng.integers(1, 5))):
        row, column = int(rng.integers(len(found) or 1)), int(rng.integers(max(map(len, found), default=0) or 1))
        kind = rng.random()
        if row >= len(found) or column >= len(found[row]):
            continue
        if kind < 0.55:
            found[row][column] = text(rng) if rng.random() < 0.8 else str(pick(rng, NUMBERS))
        elif kind < 0.65:
            for line in found:
                del line[column : column + 1]
        elif kind < 0.75:
            for line in found:
                line.insert(column, line[-1] if line and rng.random() < 0.5 else text(rng)[:50])
        elif kind < 0.85:
            found[row:row] = [list(found[row])] * int(10 ** rng.uniform(0, 2))
        else:
            del found[row]
    out = io.StringIO()
    mark, end = pick(rng, (",", ",", ",", ";", "\t", "|")), pick(rng, ("\n", "\n", "\r\n", "\r"))
    if rng.random() < 0.8:
        csv.writer(out, delimiter=mark, lineterminator=end).writerows(found)
    else:
        out.write(end.join(mark.join(line) for line in found))
    how = pick(rng, ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    data = out.getvalue().encode(how, "surrogatepass" if how.startswith("utf") else "replace")
    return damaged(rng, data, other=data) if rng.random() < 0.15 else data


# --- zip files ---


def rezipped(rng: Random, members: Mapping[str, bytes], *, harm: Callable[[Random, str, bytes], bytes]) -> bytes:
    """Return a zip file of members with right checksums, some of them harmed, missing, renamed or there twice."""
    content = list(members.items())
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(content)))
        name, data = content[at]
        kind = rng.random()
        if kind < 0.6:
            content[at] = name, harm(rng, name, data)
        elif kind < 0.7 and len(content) > 1:
            del content[at]
        elif kind < 0.8:
            content[at] = pick(rng, (name.upper(), f"x/{name}", f"../{name}", name[:-1], "\u00e9.npy", "a/" * 99)), data
        elif kind < 0.9:
            content.append((name, pick(rng, content)[1]))
        else:
            content[at] = name, b"\0" * int(10 ** rng.uniform(0, 7.5))
    out = io.BytesIO()
    how = pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", how) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for place, (name, data) in enumerate(content):  # of a checkpoint's hundreds: LZMA takes seconds for all
            archive.writestr(name, data, how if place < 10 else zipfile.ZIP_STORED)
        archive.comment = pick(rng, (b"", b"", rng.bytes(20)))
    data = out.getvalue()
    return _in_directory(rng, data) if rng.random() < 0.25 else data


def _in_directory(rng: Random, data: bytes) -> bytes:
    """Change a number in the list of members: version, flags, method, times, checksum, sizes."""
    at = data.find(b"PK\1\2") if rng.random() < 0.7 else 0
    place = at + int(rng.integers(4, 42))
    return data[:place] + pick(rng, (b"\xff", b"\0", b"\1", b"\x63")) + data[place + 1 :]


def npy_header(rng: Random, data: bytes) -> bytes:
    """Return an .npy file that declares another shape, type or version than its bytes have."""
    if data[:6] != b"\x93NUMPY":
        return damaged(rng, data)
    size = struct.unpack("<H", data[8:10])[0]
    header, rest = data[10 : 10 + size].decode("latin-1"), data[10 + size :]
    shapes = (
        "()",
        "(0,)",
        "(1,)",
        f"({10**12}, 32, 32, 3)",
        f"({2**63}, 1)",
        "(-1, 32, 32, 3)",
        "(2, 3",
        "('a',)",
        "None",
    )
    types = ("|u1", "<f8", "|O", "<U99999999", "|V0", "|b1", ">i8", "<M8[s]", "x", "|S0", "[('a', '<i4')]")
    kind = int(rng.integers(4))
    if kind == 0:
        begin = header.find("'shape': ")
        header = header[:begin] + f"'shape': {pick(rng, shapes)}, }}" if begin >= 0 else header
    elif kind == 1:
        header = f"{{'descr': {pick(rng, types)!r}, 'fortran_order': False, 'shape': (4, 4), }}"
    elif kind == 2:
        header = pick(rng, ("", "{}", "[" * 3000, "{'descr': 1}", "1" * 9000, "\0" * 50, text(rng)[:3000]))
    encoded = header.encode("latin-1", "replace") + b"\n"
    version = pick(rng, (b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\x09\x09"))
    return b"\x93NUMPY" + version + struct.pack("<H", len(encoded) % 65536) + encoded + rest
