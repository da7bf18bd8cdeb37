"""The page: one HTML file that opens from disk, shows the report and lets a reader review its tiles.

Everything is in the file, and its content security policy allows only the hashes of its own script and style: the page
sends no request, and a script in a file name, a class name or a note stays text.
"""

from __future__ import annotations

import base64
import re

from markupsafe import Markup

from sscl.report.page import parts
from sscl.report.page.content import Block, Content, Gallery

BLOCKS = ("text", "lead", "facts", "list", "table", "figure", "verdict", "confusion", "code")
# In this order: a rule replaces earlier ones, a script's constants must exist before they are used.
STYLES = ("base.css", "review.css", "sections.css", "gallery.css", "large_view.css", "screens.css")
SECTIONS = ("sections.js", "tables.js")  # of every page; SCRIPTS only of one with a gallery
SCRIPTS = (
    "basics.js",
    "state.js",
    "csv.js",
    "worksheet.js",
    "blind.js",
    "zip.js",
    "geojson.js",
    "heatmaps.js",
    "filters.js",
    "gallery.js",
    "large_view.js",
    "keys.js",
    "start.js",
)
_SLUG = re.compile(r"[a-z][a-z0-9-]*")
MARK = '<meta name="generator" content="sscl report">'  # marks a page written by sscl report; text cannot contain it
# Ids of the page's own parts begin so; those of sections must not.
_OWN = ("page-", "gallery")


def render(content: Content) -> str:
    """Return the page as HTML; written as UTF-8, it needs nothing beside it.

    Text may contain anything and stays text. Only `svg` enters unescaped: it comes from `sscl.plots.svg`.

    Raises:
        ValueError: what cannot be shown, by its key.
    """
    _check(content)
    style = parts.style(*STYLES)
    script = parts.script(*(() if content["gallery"] is None else SCRIPTS), *SECTIONS)
    return parts.page(
        "page.html.jinja",
        **{**content, "gallery": None},
        tiles=None if content["gallery"] is None else len(content["gallery"]["tiles"]),
        gallery_classes=None if content["gallery"] is None else list(content["gallery"]["classes"]),
        mark=Markup(MARK),
        policy=parts.policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=_data(content),
    )


def _data(content: Content) -> Markup:
    """Return the data of the script as JSON: without `<`, nothing in it can end the script element."""
    try:
        shown = {"id": content["id"], "title": content["title"], "gallery": content["gallery"]}
        return parts.data(shown)
    except ValueError as error:
        raise ValueError(f"page: gallery holds NaN or infinity, which JSON lacks; give None ({error})") from None


def _check(content: Content) -> None:
    """Raise ValueError for content that would make a broken page."""
    if not re.fullmatch(r"[0-9a-f]{16}", content["id"]):
        raise ValueError(f"page: id is {content['id']!r}, must be 16 hexadecimal digits")
    names = [section["id"] for section in content["sections"]]
    for name in names:
        if not _SLUG.fullmatch(name) or name.startswith(_OWN) or names.count(name) > 1:
            raise ValueError(
                f"page: section id {name!r}, must be lower-case letters, digits and hyphens, unique, "
                f"and not begin with {', '.join(_OWN)}"
            )
    for section in content["sections"]:
        for block in section["blocks"]:
            _check_block(block, f"page: section {section['id']!r}")
    if content["gallery"] is not None:
        _check_gallery(content["gallery"])


def _check_block(block: Block, where: str) -> None:
    if block["kind"] not in BLOCKS:
        raise ValueError(f"{where}: a block of kind {block['kind']!r}, allowed are {', '.join(BLOCKS)}")
    if block["kind"] == "table":
        widths = {len(row) for row in block["rows"]} - {len(block["header"])}
        if widths:
            raise ValueError(
                f"{where}: table {block['caption']!r} has {len(block['header'])} columns, but a row of {min(widths)}"
            )
        if block["links"] and len(block["links"]) != len(block["rows"]):
            raise ValueError(f"{where}: table {block['caption']!r}: {len(block['links'])} links, a row each")
        if any(link and not link.startswith("./") for link in block["links"]):
            raise ValueError(f"{where}: table {block['caption']!r}: links must be relative paths, ./...")
        if any(picture and not _is_picture(picture) for picture in block["pictures"]):
            raise ValueError(f"{where}: table {block['caption']!r}: pictures must be data URIs")
    if block["kind"] == "figure" and (block["svg"] is None) == (block["png"] is None):
        raise ValueError(f"{where}: figure {block['caption']!r}, must have either svg or png")
    if block["kind"] == "figure" and block["png"] is not None and not _is_picture(block["png"]):
        raise ValueError(f"{where}: figure {block['caption']!r}: png must be a data URI of a picture")
    if block["kind"] == "confusion":
        size = len(block["classes"])
        if [len(row) for row in block["matrix"]] != [size] * size:
            raise ValueError(f"{where}: the confusion matrix must be {size} x {size}, for {size} classes")


def _check_gallery(gallery: Gallery) -> None:
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
        if tile["prediction"] not in tile["probabilities"] or not set(tile["probabilities"]) <= set(range(classes)):
            raise ValueError(f"{where}: probabilities lack the predicted class, or have one beyond the {classes}")
        if not _is_picture(tile["image"]):
            raise ValueError(f"{where}: image must be a data URI of a picture")
        cells = len(base64.b64decode(tile["map"]))
        if cells not in (0, side * side):
            raise ValueError(f"{where}: its map has {cells} cells, must be {side * side} ({side} x {side}) or none")


def _is_picture(uri: str) -> bool:
    return re.match(r"data:image/(?:png|jpeg|webp);base64,", uri) is not None
