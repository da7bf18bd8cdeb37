"""The configuration of `sscl cache`."""

from __future__ import annotations

from sscl.config.sections import Section, setting


class CacheConfig(Section):
    """List the cache of decoded tiles and features, empty it with --empty, or verify it with --verify.

    What is deleted is decoded or computed again when it is needed.
    """

    cache_dir: str | None = setting(
        None, "the cache folder; null = $SSCL_CACHE or ~/.cache/sscl; also DIR", path=True, min_length=1
    )
    older_than_days: float | None = setting(
        None, "only what was not used for so many days; null = all", ge=0, le=100_000
    )
