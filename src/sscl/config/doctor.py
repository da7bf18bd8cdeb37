"""The configurations of `sscl doctor` and `sscl completion`."""

from __future__ import annotations

from typing import Literal

from sscl.config.sections import Section, setting


class DoctorConfig(Section):
    """Say what is installed, what this machine has, and what would fail; exit with code 1 if training would."""

    cache_dir: str | None = setting(
        None, "the cache folder to look at; null = $SSCL_CACHE or ~/.cache/sscl", path=True, min_length=1
    )


class CompletionConfig(Section):
    """Print a script that completes commands, keys, values, configs and files in a shell.

    How it is installed stands at the top of the script.
    """

    shell: Literal["bash", "zsh", "fish"] = setting(..., "the shell; also SHELL")
