"""Damaged JPEG files, which libjpeg decodes with warnings that Pillow hides.

Huffman codes have no checksum: after a hole the decoder goes on with wrong blocks, and at the end of the picture there
is data left over, or too little. Both show, without a second decoding, if the decoder gets the file in two parts.
"""

from __future__ import annotations

import io
import re

import numpy as np

_BEFORE_END = 24  # bytes in the last part: an intact picture needs some of them
_AFTER_END = 24  # zeros in place of what follows the picture: a decoder reads a few bytes ahead
_HOLE, _HOLE_IN_BITS = 48, 160  # zero bytes that are no data; in a scan that refines coefficients
# Of a progressive file: each scan, even if empty, takes the time of the whole picture. And pixels in all scans.
_MOST_SCANS, _MOST_SCANNED = 100, 2**32
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_END = b"\xff\xd9"
_RUNS_OF_ENDS = frozenset(range(0x10, 0xF0, 0x10))  # symbols that end several blocks at once


class JpegFile(io.BytesIO):
    """A JPEG file for Pillow; after its decoding `damage` says whether its data filled the picture exactly."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        begin, self._end, self.seen = _scan(data)  # what is seen to be wrong before it is decoded
        self._last = max(begin, len(data[: self._end].rstrip(b"\0\xff")) - _BEFORE_END)
        self._after = bytes(_AFTER_END)

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, but never some of the last part together with some before it."""
        at = self.tell()
        if not self._end or size is None or size < 0:
            return super().read(size)
        if at < self._end:
            return super().read(min(size, (self._last if at < self._last else self._end) - at))
        after, self._after = self._after, b""
        return after

    @property
    def damage(self) -> str:
        """What is wrong with the data; empty if nothing is known to be."""
        if self.seen or not self._end or self.tell() > self._last:
            return self.seen
        return "data is left over when the picture is full"


def damage_in(data: bytes) -> str:
    """Return what is seen to be wrong with a JPEG file without decoding it; empty if nothing."""
    return _scan(data)[2]


def _scan(data: bytes) -> tuple[int, int, str]:
    """Return where the picture's data begins and ends, and what is seen to be wrong in it; 0, 0 if that is not known.

    Known where the data lies in one piece up to the end marker, as in all but progressive files.
    """
    at, components, pixels, progressive, restarts, scans = 2, 0, 0, False, False, 0
    flat: dict[int, bool] = {}  # by number of the Huffman table: whether zero bits may be blocks of one colour
    while data[at : at + 1] == b"\xff" and at + 10 < len(data):
        marker, body = data[at + 1], at + 4
        if marker == 0xFF:  # a filling byte
            at += 1
            continue
        after = at + 2 + int.from_bytes(data[at + 2 : body], "big")
        if marker in (0xC0, 0xC1, 0xC2):
            components, progressive = data[body + 5], marker == 0xC2
            pixels = int.from_bytes(data[body + 1 : body + 3], "big") * int.from_bytes(data[body + 3 : body + 5], "big")
        elif marker == 0xC4:
            flat |= _zeros_end_blocks(data[body:after])
        elif marker == 0xD9:  # the end; what follows it is no part of the picture
            break
        elif marker == 0xDD:
            restarts = data[body : body + 2] != b"\0\0"
        elif marker == 0xDA:
            scans += 1
            if scans > min(_MOST_SCANS, _MOST_SCANNED // max(1, pixels)):
                return 0, 0, f"more than {scans - 1} scans"
            one_piece = not progressive and data[body] == components
            last = data.rfind(_END, after) if one_piece else -1
            stuffed = last >= 0 and _only_stuffed(data, after, last)
            end = last if stuffed else data.find(_END, after) if one_piece else _next_marker(data, after)
            if end < 0:
                return 0, 0, ""  # the decoder says that it is truncated
            first_coefficient, _, bits = data[body + 1 + 2 * data[body] :][:3]
            refines = bits > 0x0F  # a further bit of known coefficients, of which libjpeg writes up to 1,000 in a row
            zeros_are_data = not refines and flat.get(data[body + 2] & 0x0F, False)
            if one_piece:
                end = after + len(_without_padding(data[after:end], zeros=not zeros_are_data))
            hole = bytes(_HOLE_IN_BITS if refines else _HOLE)
            if (first_coefficient or one_piece) and not zeros_are_data and data.find(hole, after, end) >= 0:
                return 0, 0, f"{len(hole)} or more zero bytes within the data"
            if one_piece:
                return after, end, "" if stuffed else _marker_faults(data, after, end, restarts=restarts)
            after = end
        at = after
    return 0, 0, ""


def _without_padding(part: bytes, *, zeros: bool) -> bytes:
    """Return a picture's data without the FF, and the many zeros, that some cameras put between it and its end."""
    part = part.rstrip(b"\xff")
    short = part.rstrip(b"\0")
    return part[: len(short) + 1] if zeros and len(part) - len(short) >= _HOLE else part


def _next_marker(data: bytes, begin: int) -> int:
    found = _MARKER.search(data, begin)
    return found.end() - 2 if found else -1


def _only_stuffed(data: bytes, begin: int, end: int) -> bool:
    """Return whether each FF in the data is followed by 00, so that there is no marker; quick, and mostly true."""
    part = np.frombuffer(data, np.uint8, count=end + 1 - begin, offset=begin)
    return not part[1:][part[:-1] == 0xFF].any()


def _marker_faults(data: bytes, begin: int, end: int, *, restarts: bool) -> str:
    """Return what is wrong with the markers within the data of a file in one piece; empty if nothing."""
    if found := _MARKER.search(data, begin, end):
        return f"a marker FF{found[1].hex().upper()} within the data"
    numbers = [marker[1][0] & 7 for marker in _RESTART.finditer(data, begin, end)]
    if numbers != [i % 8 for i in range(len(numbers))] or (numbers and not restarts):
        return "restart markers are missing or out of order"
    return ""


def _zeros_end_blocks(tables: bytes) -> dict[int, bool]:
    """Return of each of these Huffman tables for coefficients, by number, whether zero bits may end block after block.

    They do where the first code, all zeros, ends a block, unless others end many at once, which would be used then.
    """
    at, found = 0, {}
    while at + 17 < len(tables):
        kind, number = divmod(tables[at], 16)
        after = at + 17 + sum(tables[at + 1 : at + 17])
        if kind == 1:
            ends_many = not _RUNS_OF_ENDS.isdisjoint(tables[at + 17 : after])
            found[number] = tables[at + 17] == 0 and not ends_many
        at = after
    return found
