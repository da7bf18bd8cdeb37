"""Whether Triton can build its launcher here, an extension of Python in C. Without torch."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def c_compiler() -> str | None:
    """Return the C compiler that Triton takes; None if there is none."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def has_headers() -> bool:
    """Return whether Python.h is here, which Debian and Ubuntu have in a package of its own (python3-dev)."""
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # Debian's, whose folder is that of pip alone
    return Path(sysconfig.get_path("include", scheme), "Python.h").is_file()
