"""The packages that read slides, which not everybody has."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def library(package: str) -> Any:
    """Return a package of the extra `slides`.

    Raises:
        ValueError: it is not installed, or cannot be loaded.
    """
    try:
        return import_module(package)
    except (ImportError, OSError) as error:  # OSError: openslide-python without the library itself
        raise ValueError(f"slides: need the package {package.split('.')[0]}; pip install 'sscl[slides]'") from error


def openslide() -> Any:
    """Return openslide-python with its low-level calls (see `library`)."""
    library("openslide.lowlevel")
    return library("openslide")
