"""The page: one HTML file that opens from disk, shows what a report says and lets its tiles be reviewed.

Everything is in the file, and a content policy of hashes lets nothing else in: no request leaves it, and a script in a
file name, a class name or a note stays text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

BLOCKS = ("text", "facts", "list", "table", "figure", "verdict", "confusion", "code")
# In this order: a rule replaces earlier ones, a script's constants must exist before they are used.
STYLES = ("base.css", "sections.css", "gallery.css", "large_view.css", "screens.css")
SCRIPTS = (
    "state.js",
    "csv.js",
    "worksheet.js",
    "geojson.js",
    "heatmaps.js",
    "filters.js",
    "gallery.js",
    "large_view.js",
    "keys.js",
    "start.js",
)
_SLUG = re.compile(r"[a-z][a-z0-9-]*")
MARK = '<meta name="generator" content="sscl report">'  # a page of ours is known by it; text cannot hold it
# What turns the direction of all text after it; marks of a single place, which Hebrew and Arabic names need, do not.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Ids of the page's own parts begin so; sections may not.
_OWN = ("page-", "gallery")


def render(content: Mapping[str, Any]) -> str:
    """Return the page as HTML; written as UTF-8, it needs nothing beside it.

    Text may hold anything and stays text. Only `svg` is taken as it is: it comes from `sscl.plots.svg`.

    Args:
        content: plain containers, as JSON has them:

            {"title", "subtitle", "made": text, "id": 16 hexadecimal digits, the key of the worksheet in the browser,
             "sections": [{"id": "lower-case-words", "title": text, "blocks": [BLOCK, ...]}, ...],
             "gallery": GALLERY or None}

            A BLOCK is one of
            {"kind": "text", "text"}: paragraphs, an empty line between them;
            {"kind": "facts", "rows": [[name, value], ...]};
            {"kind": "list", "items": [text, ...]};
            {"kind": "table", "caption", "header": [text, ...], "rows": [[text, ...], ...], "numeric_from": column};
            {"kind": "figure", "svg" or "png" (a data URI), "alt", "caption"};
            {"kind": "verdict", "passed": True, False or None (not measured), "title", "text"};
            {"kind": "confusion", "classes", "matrix": [[count, ...], ...], rows = truth, "note"}: its cells filter the
            gallery where that has the same classes;
            {"kind": "code", "title", "text"}: folded away until asked for.

            GALLERY: {"classes": [text, ...], "size_px": side of the tiles, "map_side": cells of a map's side,
            "colours": base64 of 256 x 3 bytes, "alpha": opacity at a map's peak, "target": what the maps explain,
            "threshold": of the boxes, "note", "tiles": [TILE, ...]}

            TILE: {"id": text, no other tile's, "label": class or -1, "prediction": class, "probabilities": [K],
            "loss", "agreement" ("6/7"), "votes", "group", "decided": each or None, "image": data URI,
            "map": base64 of map_side x map_side bytes, maximum 255, or "" without evidence, "maximum": before scaling,
            "box": [x0, y0, x1, y1] in pixels of the tile, half open, or None, "source_px": side of the file, or None}

    Raises:
        ValueError: what cannot be shown, by its key.
    """
    _check(content)
    style = "".join(_read(name) for name in STYLES)
    script = "" if content["gallery"] is None else _script()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_visible
    )
    html = environment.from_string(_read("page.html.jinja")).render(
        **{**content, "gallery": None},
        tiles=None if content["gallery"] is None else len(content["gallery"]["tiles"]),
        gallery_classes=None if content["gallery"] is None else list(content["gallery"]["classes"]),
        mark=Markup(MARK),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=_data({"id": content["id"], "title": content["title"], "gallery": content["gallery"]}),
    )
    # A file name that is no UTF-8 has lone surrogates: they are shown as escapes.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def _read(name: str) -> str:
    return (files(__name__) / name).read_text("utf-8")


def _script() -> str:
    """Return the scripts as one function, so that their names do not become properties of `window`."""
    return "\n".join(['"use strict";', "(() => {", *map(_read, SCRIPTS), "})();", ""])


def _visible(value: Any) -> Any:
    """Return text in which the letters that would turn what follows them, figures too, are shown as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _TURNING.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _policy(style: str, script: str) -> str:
    """Return the content policy: this style, this script, pictures in the page, nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _data(content: Mapping[str, Any]) -> Markup:
    """Return JSON that may stand in a script element: without `<` nothing in it ends that element."""
    try:
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ValueError(f"page: gallery holds NaN or infinity, which JSON has not; give None ({error})") from None
    return Markup(text.replace("<", "\\u003c"))


def _check(content: Mapping[str, Any]) -> None:
    """Raise ValueError for what would make a page that does not work."""
    if not re.fullmatch(r"[0-9a-f]{16}", content["id"]):
        raise ValueError(f"page: id is {content['id']!r}, must be 16 hexadecimal digits")
    names = [section["id"] for section in content["sections"]]
    for name in names:
        if not _SLUG.fullmatch(name) or name.startswith(_OWN) or names.count(name) > 1:
            raise ValueError(
                f"page: section id {name!r}, must be lower-case letters, digits and hyphens, another for each section, "
                f"and not begin with {', '.join(_OWN)}"
            )
    for section in content["sections"]:
        for block in section["blocks"]:
            _check_block(block, f"page: section {section['id']!r}")
    if content["gallery"] is not None:
        _check_gallery(content["gallery"])


def _check_block(block: Mapping[str, Any], where: str) -> None:
    kind = block["kind"]
    if kind not in BLOCKS:
        raise ValueError(f"{where}: a block of kind {kind!r}, allowed are {', '.join(BLOCKS)}")
    if kind == "table":
        widths = {len(row) for row in block["rows"]} - {len(block["header"])}
        if widths:
            raise ValueError(
                f"{where}: table {block['caption']!r} has {len(block['header'])} columns, but a row of {min(widths)}"
            )
    if kind == "figure" and (block["svg"] is None) == (block["png"] is None):
        raise ValueError(f"{where}: figure {block['caption']!r}, must have either svg or png")
    if kind == "figure" and block["png"] is not None and not _is_picture(block["png"]):
        raise ValueError(f"{where}: figure {block['caption']!r}: png must be a data URI of a picture")
    if kind == "confusion":
        size = len(block["classes"])
        if [len(row) for row in block["matrix"]] != [size] * size:
            raise ValueError(f"{where}: the confusion matrix must be {size} x {size}, for {size} classes")


def _check_gallery(gallery: Mapping[str, Any]) -> None:
    classes, side, colours = len(gallery["classes"]), gallery["map_side"], base64.b64decode(gallery["colours"])
    if len(colours) != 256 * 3:
        raise ValueError(f"page: gallery.colours has {len(colours)} bytes, must be 768 (256 colours)")
    seen: set[str] = set()
    for tile in gallery["tiles"]:
        where = f"page: tile {tile['id']!r}"
        if tile["id"] in seen:
            raise ValueError(f"{where} comes twice; a review belongs to one tile")
        seen.add(tile["id"])
        if not -1 <= tile["label"] < classes or not 0 <= tile["prediction"] < classes:
            raise ValueError(f"{where}: label {tile['label']}, prediction {tile['prediction']}; {classes} classes")
        if len(tile["probabilities"]) != classes:
            raise ValueError(f"{where}: {len(tile['probabilities'])} probabilities for {classes} classes")
        if not _is_picture(tile["image"]):
            raise ValueError(f"{where}: image must be a data URI of a picture")
        cells = len(base64.b64decode(tile["map"]))
        if cells not in (0, side * side):
            raise ValueError(f"{where}: its map has {cells} cells, must be {side * side} ({side} x {side}) or none")


def _is_picture(uri: str) -> bool:
    return re.match(r"data:image/(?:png|jpeg|webp);base64,", uri) is not None
