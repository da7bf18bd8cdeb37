"""Letters of pictures: matplotlib's own font, one of the system for what that lacks, and escapes for all else."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

# Fonts with Chinese, Japanese and Korean letters that systems have, found by their names.
OF_SYSTEMS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "arialuni.ttf"),
    *("msyh.ttc", "YuGothM.ttc", "malgun.ttf", "unifont.ttf"),
)
_NO_LETTER = "\U0010fffe"  # drawn as a box, as any letter that a font lacks


@functools.cache
def font(size: int, file: str | None = None) -> ImageFont.FreeTypeFont:
    """Return a font; without a file matplotlib's own, which has Greek and Cyrillic too and is found without importing
    it."""
    if file is None:
        found = importlib.util.find_spec("matplotlib")
        folder = Path(str(found.origin)).parent if found is not None else Path()
        file = str(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
    return ImageFont.truetype(file, size)


def lettering(text: str) -> tuple[str, str | None]:
    r"""Return a text as it can be drawn, and the file of the font to draw it in; None = matplotlib's own.

    Examples:
        >>> lettering("µm of 3 slides"), lettering("\U0010fffd")
        (('µm of 3 slides', None), ('\\U0010fffd', None))
    """
    lacking = {letter for letter in text if not _has(letter, None)}
    if not lacking:
        return text, None
    for file in _of_this_system():
        if all(_has(letter, file) for letter in text):
            return text, file
    return "".join(ascii(letter)[1:-1] if letter in lacking else letter for letter in text), None


@functools.cache
def _of_this_system() -> tuple[str, ...]:
    """Return the files of OF_SYSTEMS that are installed; looking for all of them takes some milliseconds."""
    found = []
    for name in OF_SYSTEMS:
        try:
            found.append(str(ImageFont.truetype(name, 16).path))
        except OSError:
            continue
    return tuple(found)


@functools.cache
def _has(letter: str, file: str | None) -> bool:
    if letter.isspace():
        return True
    letters = font(16, file)
    return bytes(letters.getmask(letter)) != bytes(letters.getmask(_NO_LETTER))
