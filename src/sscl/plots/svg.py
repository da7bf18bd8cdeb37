"""Charts as SVG that fit into any page: in its colours, under the strictest content security policy.

matplotlib's SVG has style attributes, a style sheet, fixed black on white, and ids that clash with those of the next
figure. Here it is rebuilt from known elements and attributes only, with values of known form. Greys become the page's
text colour, the lighter the more transparent: on white that is the same grey, on a dark page its counterpart. Other
colours stay.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib

_LEFT_OUT = {"metadata", "style", "title"}  # the style sheet's one rule becomes attributes of the root
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_NUMBERS = rf"{_NUMBER}(?:[\s,]+{_NUMBER})*"
_PAINT = r"none|currentColor|#[0-9a-f]{6}"
_HERE = r"#[\w-]+"
_FORM = {
    "clip-path": rf"url\({_HERE}\)",
    "clip-rule": "evenodd|nonzero",
    "d": r"[MmLlHhVvCcSsQqTtAaZz\d\s.,e+-]*",
    "fill": _PAINT,
    "fill-opacity": _NUMBER,
    "fill-rule": "evenodd|nonzero",
    "font-size": rf"{_NUMBER}(?:px)?",
    "font-style": "italic|oblique|normal",
    "font-weight": r"bold|normal|\d+",
    "height": _NUMBER,
    "href": _HERE,
    "id": r"[\w-]+",
    "opacity": _NUMBER,
    "stroke": _PAINT,
    "stroke-dasharray": rf"none|{_NUMBERS}",
    "stroke-dashoffset": _NUMBER,
    "stroke-linecap": "butt|round|square",
    "stroke-linejoin": "miter|round|bevel",
    "stroke-miterlimit": _NUMBER,
    "stroke-opacity": _NUMBER,
    "stroke-width": _NUMBER,
    "text-anchor": "start|middle|end",
    "transform": rf"(?:(?:translate|rotate|scale|matrix)\({_NUMBERS}\)\s*)+",
    "viewBox": _NUMBERS,
    "width": _NUMBER,
    "x": _NUMBERS,
    "y": _NUMBERS,
}
_ALLOWED = {name: re.compile(form) for name, form in _FORM.items()}
_ELEMENTS = {"svg", "g", "defs", "path", "use", "clipPath", "rect", "text", "tspan"}
_ROUNDED = ("d", "x", "y", "width", "height", "viewBox")
_WHITE = 0.985  # from this grey on it is the background
_PIXELS_A_POINT = 4 / 3


def inline(draw: Callable[[Path], None], *, prefix: str) -> str:
    """Return what `draw` draws as an <svg> element for an HTML page.

    Args:
        draw: writes a figure to the path given, which ends in .svg, as the functions of `plots` do.
        prefix: of every id in it; must be unique within the page.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sscl-") as folder,
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sscl"}),  # letters stay letters
    ):
        path = Path(folder) / "figure.svg"
        draw(path)
        return clean(path.read_text(encoding="utf-8"), prefix=prefix)


def clean(text: str, *, prefix: str) -> str:
    """Return an SVG file of matplotlib as an element for an HTML page; see the top of this module.

    Raises:
        ValueError: it holds an unexpected element or value, such as a picture or an external link.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", prefix):
        raise ValueError(f"prefix: got {prefix!r}, must be a letter, then letters, digits, _ or -")
    source = ElementTree.fromstring(text)
    wanted = {_link(value) for element in source.iter() for value in element.attrib.values()} - {None}
    ids: dict[str, str] = {}
    for element in source.iter():
        name = element.get("id")
        if name is not None and name in wanted:
            ids[name] = f"{prefix}-{len(ids)}"
    root = _copied(source, ids)
    for name in ("width", "height"):
        root.attrib.pop(name, None)
        points = float(re.sub("[a-z]+$", "", source.get(name, "")))
        root.set(name, _short(points * _PIXELS_A_POINT))
    # What is drawn without a colour is black, and matplotlib's style sheet has these two for everything.
    for name, value in (("fill", "currentColor"), ("stroke-linejoin", "round"), ("stroke-linecap", "butt")):
        root.set(name, value)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _copied(source: ElementTree.Element, ids: dict[str, str]) -> ElementTree.Element:
    """Return a copy of an element with what is below it, of allowed parts only."""
    name = _local(source.tag)
    if name not in _ELEMENTS:
        raise ValueError(f"svg: holds an element {name!r}, allowed are {', '.join(sorted(_ELEMENTS))}")
    copy = ElementTree.Element(name)
    for key, value in _attributes(source, ids).items():
        form = _ALLOWED.get(key)
        if form is None or not form.fullmatch(value):
            raise ValueError(f"svg: {name} has {key}={value[:60]!r}, which is not expected")
        copy.set(key, re.sub(_NUMBER, _rounded, " ".join(value.split())) if key in _ROUNDED else value)
    if name in ("text", "tspan"):
        copy.text = source.text
    for child in source:
        if _local(child.tag) not in _LEFT_OUT:
            below = _copied(child, ids)
            below.tail = child.tail if name in ("text", "tspan") else None
            if len(below) or below.attrib or below.text or below.tag not in ("g", "defs"):  # empty groups draw nothing
                copy.append(below)
    return copy


def _attributes(element: ElementTree.Element, ids: dict[str, str]) -> dict[str, str]:
    """Return an element's attributes and those of its style, in which ids are new and greys the text colour."""
    given: dict[str, str] = {}
    for key, value in element.attrib.items():
        key = _local(key)
        if key in ("style", "version") or (key == "id" and value not in ids):
            continue
        if key in ("width", "height") and _local(element.tag) == "svg":
            continue  # in points; `clean` sets them
        given[key] = value
    for part in filter(str.strip, element.get("style", "").split(";")):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key == "font":
            given |= _font(value)
        elif key not in ("font-family", "white-space"):  # the page's own font
            given[key] = value
    for key in ("fill", "stroke"):
        if key in given:
            given[key], strength = _paint(given[key])
            if strength != 1:
                given[f"{key}-opacity"] = _short(strength * float(given.get(f"{key}-opacity", "1")), digits=3)
    if "id" in given:
        given["id"] = ids[given["id"]]
    for key in ("href", "clip-path"):
        name = _link(given.get(key, ""))
        if name is not None:
            given[key] = given[key].replace(f"#{name}", f"#{ids[name]}")
    return given


def _font(value: str) -> dict[str, str]:
    """Return weight, style and size of a font in one line, as older matplotlib writes it."""
    found = {}
    for word in value.partition("'")[0].split():
        if re.fullmatch(rf"{_NUMBER}px", word):
            found["font-size"] = word
        elif word in ("italic", "oblique"):
            found["font-style"] = word
        elif word == "bold" or word.isdigit():
            found["font-weight"] = word
    return found


def _paint(value: str) -> tuple[str, float]:
    """Return a colour as the page draws it, and its opacity: greys in the text colour, white not at all."""
    if not re.fullmatch("#[0-9a-f]{6}", value):
        return value, 1.0
    red, green, blue = (int(value[at : at + 2], 16) for at in (1, 3, 5))
    if not red == green == blue:
        return value, 1.0
    grey = red / 255
    return ("none", 1.0) if grey >= _WHITE else ("currentColor", 1 - grey)


def _link(value: str) -> str | None:
    """Return the id that `#id` or `url(#id)` points to."""
    found = re.fullmatch(r"#([\w.-]+)|url\(#([\w.-]+)\)", value)
    return None if found is None else found[1] or found[2]


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _rounded(number: re.Match[str]) -> str:
    return _short(float(number[0]))


def _short(value: float, *, digits: int = 2) -> str:
    text = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
