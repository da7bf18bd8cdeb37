"""What commands import when they need it, imported once: a forked process starts with it."""

from __future__ import annotations

import importlib
import pkgutil

import sscl

_OTHERS = (
    *("timm", "matplotlib.pyplot", "PIL.ImageCms", "safetensors.torch", "torchvision.models", "umap"),
    *("sklearn.linear_model", "sklearn.cluster", "sklearn.manifold", "sklearn.metrics", "scipy.stats", "jinja2"),
)


def import_all() -> None:
    """Import every module of sscl and what they import later."""
    for module in pkgutil.walk_packages(sscl.__path__, "sscl."):
        if module.name not in ("sscl.__main__", "sscl.augment_triton"):
            importlib.import_module(module.name)
    for name in _OTHERS:
        try:
            importlib.import_module(name)
        except ImportError:  # an extra that is not installed
            continue
