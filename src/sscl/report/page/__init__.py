"""The page: one HTML file that opens from disk, shows the report and lets a reader review its tiles.

Everything is in the file, and its content security policy allows only the hashes of its own script and style: the page
sends no request, and a script in a file name, a class name or a note stays text.
"""

from __future__ import annotations

from markupsafe import Markup

from sscl.report.page import parts
from sscl.report.page.content import Content

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
MARK = '<meta name="generator" content="sscl report">'  # marks a page written by sscl report; text cannot contain it


def render(content: Content) -> str:
    """Return the page as HTML; written as UTF-8, it needs nothing beside it.

    Text may contain anything and stays text. Only `svg` enters unescaped: it comes from `sscl.plots.svg`. Ids of the
    page's own parts begin with "page-" or "gallery"; those of sections must not.
    """
    gallery = content["gallery"]
    style = parts.style(*STYLES)
    script = parts.script(*(() if gallery is None else SCRIPTS), *SECTIONS)
    return parts.page(
        "page.html.jinja",
        **{**content, "gallery": None},
        tiles=None if gallery is None else len(gallery["tiles"]),
        gallery_classes=None if gallery is None else list(gallery["classes"]),
        mark=Markup(MARK),
        policy=parts.policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=parts.data({"id": content["id"], "title": content["title"], "gallery": gallery}),
    )
