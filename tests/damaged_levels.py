"""Levels of slides with a tile that is missing or damaged."""

from __future__ import annotations

from dataclasses import replace

from sscl.slides.write import EncodedLevel


def with_tile(level: EncodedLevel, column: int, row: int, tile: bytes) -> EncodedLevel:
    """Return a level with another JPEG in one place: b"" for one that was not scanned."""
    tiles = list(level.tiles)
    tiles[row * -(-level.width // level.tile_px) + column] = tile
    return replace(level, tiles=tiles)


def damaged(level: EncodedLevel, column: int, row: int) -> EncodedLevel:
    """Return a level with one tile whose middle is overwritten, as by a bad sector of a disk."""
    tile = bytearray(level.tiles[row * -(-level.width // level.tile_px) + column])
    tile[len(tile) // 3 : len(tile) // 3 * 2] = b"\x00\xff" * (len(tile) // 6) + b"\x00" * (len(tile) // 3 % 2)
    return with_tile(level, column, row, bytes(tile))
