"""The configuration of `sscl doctor`."""

from __future__ import annotations

from sscl.config.sections import Section, setting


class DoctorConfig(Section):
    """Say what is installed, what this machine has, and what would fail; exit with code 1 if training would."""

    cache_dir: str | None = setting(
        None, "the cache folder to look at; null = $SSCL_CACHE or ~/.cache/sscl", path=True, min_length=1
    )
