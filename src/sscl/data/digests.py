"""Digests of tiles, and what stands behind the array in a file of the cache.

A file is an array that numpy reads and behind it, where numpy does not look: a digest of each row (tile), 8 bytes; what
was noted when it was written, as JSON; the length of that; a checksum of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.cores import cpu_cores

Digests = NDArray[np.uint64]

_END = struct.Struct("<II")  # length of the JSON, checksum
_NOTES_BYTES = 2**28  # far more than is ever noted: 10⁸ tiles of slides have up to 10⁶ damaged ones
_BLOCK_BYTES = 2**23  # hashed at a time by a core


@dataclass(frozen=True)
class Footer:
    """What stands behind an array of N rows: the digest of each, (N,), and how often what was noted."""

    digests: Digests
    notes: Mapping[str, int]


def digests_of(rows: NDArray[Any]) -> Digests:
    """Return the first 8 bytes of the SHA-256 of each row, (B,). rows: (B, ...), such as uint8 tiles (B, H, W, 3).

    64 bits tell damage, not attackers.
    """
    flat = np.ascontiguousarray(rows).reshape(len(rows), int(np.prod(rows.shape[1:])))
    return np.frombuffer(b"".join(hashlib.sha256(row.data).digest()[:8] for row in flat), dtype="<u8")


def all_digests(read: Callable[[slice], NDArray[Any]], *, rows: int, row_bytes: int) -> Digests:
    """Return the digests of many rows, (N,), a block at a time and on all cores.

    Args:
        read: returns the rows of a slice. rows: N. row_bytes: the size of one.
    """
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    blocks = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    if len(blocks) <= 1:
        return digests_of(read(slice(0, rows)))
    with ThreadPoolExecutor(min(len(blocks), cpu_cores())) as pool:
        return np.concatenate(list(pool.map(lambda block: digests_of(read(block)), blocks)))


def write_footer(file: str | os.PathLike[str], footer: Footer) -> None:
    """Append the footer to the file of an array that has none yet."""
    notes = json.dumps(dict(footer.notes)).encode()
    content = footer.digests.astype("<u8").tobytes() + notes
    with open(file, "ab") as handle:
        handle.write(content + _END.pack(len(notes), zlib.crc32(content)))


def read_footer(file: int | str | os.PathLike[str], *, start: int, rows: int) -> Footer | None:
    """Return the footer of a file; None where there is none, or a damaged one.

    Args:
        file: its path, or its descriptor if it is open. start: where the array ends. rows: N.
    """
    with open(file, "rb", closefd=not isinstance(file, int)) as handle:
        size = os.fstat(handle.fileno()).st_size - start
        if not 8 * rows + _END.size <= size <= 8 * rows + _END.size + _NOTES_BYTES:
            return None
        handle.seek(start)
        whole = memoryview(handle.read(size))
    content, (length, checksum) = whole[: -_END.size], _END.unpack(whole[-_END.size :])
    if length != len(content) - 8 * rows or checksum != zlib.crc32(content):
        return None
    return Footer(np.frombuffer(content, dtype="<u8", count=rows), json.loads(bytes(content[8 * rows :])))
