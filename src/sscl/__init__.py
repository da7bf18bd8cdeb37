"""Self-supervised contrastive learning on H&E colon tiles.

`sscl.load(run)` gives a finetuned classifier for new tiles (docs/api.md); everything else is in the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sscl.api import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch and the rest only when they are needed: `sscl --help` is quick without."""
    if name == "load":
        from sscl.api import load

        return load
    raise AttributeError(f"module 'sscl' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what a notebook offers after `sscl.`: also what is imported only when it is asked for."""
    return sorted({*globals(), "load"})
