"""What both kinds of pages are made of: their template, style, scripts, data and policy."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

# Characters that change the direction of all text after them; the marks that Hebrew and Arabic names need do not.
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069]")


@functools.cache
def read(name: str) -> str:
    """Return a file of this folder."""
    return (files("sscl.report.page") / name).read_text("utf-8")


def page(template: str, **values: Any) -> str:
    """Return a template, filled in. Text stays text, whatever is in it; `Markup` alone is taken as it is."""
    html = _environment().get_template(template).render(**values)
    # A file name that is no UTF-8 has lone surrogates: they are shown as escapes.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    """Return where templates come from, which keeps those that it has compiled."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )


def style(*names: str) -> str:
    """Return style sheets as one."""
    return "".join(map(read, names))


def script(*names: str) -> str:
    """Return scripts as one function, so that their names do not become properties of `window`."""
    return "\n".join(['"use strict";', "(() => {", *map(read, names), "})();", ""])


def _visible(value: Any) -> Any:
    """Return text with the characters that would reverse what follows them, numbers too, shown as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _TURNING.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def policy(style: str, *scripts: str, images: str = "data: blob:", types: str = "'none'") -> str:
    """Return the content security policy: this style, these scripts, images in the page, nothing else.

    Args:
        images: where they may come from. types: names of the trusted types that the scripts may make.
    """
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(f"'{_digest(text)}'" for text in scripts),
            f"style-src '{_digest(style)}'",
            f"img-src {images}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            f"trusted-types {types}",
        )
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def data(shown: Any) -> Markup:
    """Return the data of the scripts as JSON: without `<`, nothing in it can end the script element.

    Raises:
        ValueError: there is NaN or infinity in it.
    """
    text = json.dumps(shown, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))
