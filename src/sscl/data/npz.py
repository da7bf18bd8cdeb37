"""Arrays in .npz files of others: their headers first, every size checked before memory is asked for it.

Nothing is unpickled. An array's size follows from its header and must be what the archive says that it holds; what it
holds cannot be more than deflate makes of the file.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from sscl.file_kinds import binary_kind, text_kind
from sscl.places import missing
from sscl.reading import opened, why_unreadable
from sscl.words import count, first_twice, readable, short

AGAIN = "download or write it again"
_MOST_HEADER = 10_000  # bytes, as numpy itself allows
_MOST_MEMBERS = 10_000
_MOST_RATIO = 1100  # of deflate: 1032 at best
_BOMB_BYTES, _BOMB_RATIO = 2**30, 200  # tiles get smaller by a tenth, or a half; white ones by more
_MOST_SMALL = 2**28  # bytes of an array that is read whole


class UnusableError(ValueError):
    """An .npz file that cannot be used; one line with the file and the array."""


@dataclass(frozen=True)
class Header:
    """What is said of an array: its shape and dtype; offset: bytes before its data in the member."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran_order: bool
    offset: int


def keys_in(path: Path) -> list[str]:
    """Return the names of the arrays in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no .npz file, or has two arrays of one name.
    """
    with _archive(path) as archive:
        names = archive.namelist()
    if len(names) > _MOST_MEMBERS:
        raise UnusableError(f"{path}: has {count(len(names), 'member')}; expected some arrays (MedMNIST layout)")
    twice = first_twice(names)
    if twice is not None:
        raise UnusableError(f"{path}: has two arrays {short(twice)!r}; {AGAIN}")
    return [name.removesuffix(".npy") for name in names]


def header_of(path: Path, key: str) -> Header:
    """Return the header of an array, checked against what the archive holds.

    Raises:
        ValueError: it is damaged or lies; one line with the file and the array.
    """
    with _archive(path, key) as archive, archive.open(f"{key}.npy") as member:
        header = _header(member)
        info = archive.getinfo(f"{key}.npy")
        length = os.fstat(archive.fp.fileno()).st_size if archive.fp else 0
    if header.dtype.hasobject:
        raise UnusableError(f"{path}: {key}: has pickled Python objects, which are never loaded; save numbers or text")
    held = info.file_size - header.offset
    size = math.prod(header.shape) * header.dtype.itemsize
    damaged = None
    if size != held:
        damaged = f"{held:,} bytes for shape {header.shape} of {short(str(header.dtype))}"
    elif info.header_offset + info.compress_size > length:
        damaged = f"{info.compress_size:,} bytes of a file of {length:,}"
    elif info.file_size > _MOST_RATIO * info.compress_size + _MOST_HEADER:
        damaged = f"{readable(info.file_size)} in {count(info.compress_size, 'byte')}"
    if damaged is not None:
        raise UnusableError(f"{path}: {key} is damaged ({short(damaged, most=200)}); {AGAIN}")
    if held > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
        raise UnusableError(
            f"{path}: {key}: would unpack {readable(info.compress_size)} to {readable(held)}, as no tiles do; {AGAIN}"
        )
    return header


def small_array(path: Path, key: str) -> NDArray[np.generic]:
    """Return an array that is read whole, such as the labels.

    Raises:
        ValueError: it is damaged, or too large for that; one line with the file and the array.
    """
    header = header_of(path, key)
    size = math.prod(header.shape) * header.dtype.itemsize
    if size > _MOST_SMALL:
        raise UnusableError(f"{path}: {key}: has {readable(size)}; at most {readable(_MOST_SMALL)} are read; {AGAIN}")
    with _archive(path, key) as archive, archive.open(f"{key}.npy") as member:
        data = member.read()[header.offset :]
        if header.dtype.kind == "U":
            codes = np.frombuffer(data, dtype=np.dtype("u4").newbyteorder(header.dtype.byteorder))
            if ((codes >= 0xD800) & (codes < 0xE000) | (codes > 0x10FFFF)).any():  # numpy takes any number for a letter
                raise ValueError("text of what are no characters")
        order: Literal["C", "F"] = "F" if header.fortran_order else "C"
        return np.frombuffer(data, dtype=header.dtype).reshape(header.shape, order=order)


def pieces(path: Path, key: str, *, rows: int) -> Iterator[NDArray[np.generic]]:
    """Yield an array in C order piece by piece, `rows` of its first dimension at a time.

    Raises:
        ValueError: it is damaged; one line with the file and the array.
    """
    header = header_of(path, key)
    length, *rest = header.shape
    row_bytes = math.prod(rest) * header.dtype.itemsize
    with _archive(path, key) as archive, archive.open(f"{key}.npy") as member:
        member.read(header.offset)
        for start in range(0, length, rows):
            number = min(rows, length - start)
            yield np.frombuffer(member.read(number * row_bytes), dtype=header.dtype).reshape(number, *rest)


def _header(member: IO[bytes]) -> Header:
    """Return the header at the beginning of an .npy member; raises whatever numpy does."""
    start = io.BytesIO(member.read(_MOST_HEADER + 100))  # a header that claims to be longer ends with this
    version = np.lib.format.read_magic(start)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError("an .npy header of another version than 1.0 and 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Python 2 wrote
        shape, fortran_order, dtype = read(start)
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError(f"shape {shape}")
    return Header(shape, dtype, bool(fortran_order), start.tell())


@contextlib.contextmanager
def _archive(path: Path, key: str | None = None) -> Iterator[zipfile.ZipFile]:
    """Give the opened archive; whatever goes wrong in it is an error of the file, and of the array `key`."""
    try:
        with opened(path, expected="an .npz file") as file:
            start = file.read(200) or b""
            file.seek(0)
            if key is None and (fault := _no_archive(start)):
                raise UnusableError(f"{path}: is not an .npz file, or is truncated{fault}; {AGAIN}")
            with zipfile.ZipFile(file) as archive:
                if key is not None:
                    _check_packing(path, key, archive.getinfo(f"{key}.npy"))
                yield archive
    except UnusableError:
        raise
    except FileNotFoundError as error:
        raise FileNotFoundError(missing(path, "file")) from error
    except OSError as error:
        if error.errno is None:  # of zipfile
            raise UnusableError(f"{path}: {key or 'the archive'} is damaged ({error}); {AGAIN}") from error
        raise UnusableError(f"{path}: {why_unreadable(path, error)}") from error
    except Exception as error:  # zipfile, zlib and numpy raise whatever they meet, so it is an error of the file
        text = str(error) or type(error).__name__
        if text.startswith(f"{path}: "):
            raise
        reason = short(" ".join(text.split()), most=200)
        what = f"{key} is damaged" if key else "is not an .npz file, or is truncated"
        raise UnusableError(f"{path}: {what} ({reason}); {AGAIN}") from error


def _no_archive(start: bytes) -> str:
    """Return what a file is that is no archive, from its first bytes; empty if it may be one."""
    if start.startswith(b"\x93NUMPY"):
        return " (one array alone, .npy; np.savez writes several into an .npz file)"
    if start.startswith(b"PK"):
        return ""
    found = text_kind(start) or binary_kind(start[:8])
    return f" ({found[0]})" if found else ""


def _check_packing(path: Path, key: str, info: zipfile.ZipInfo) -> None:
    """Raise UnusableError where a member is encrypted, or packed as numpy does not pack."""
    if info.flag_bits & 0x1:
        raise UnusableError(f"{path}: {key}: is encrypted; save it without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnusableError(
            f"{path}: {key}: is packed by method {info.compress_type}; np.savez_compressed writes what is read here"
        )
