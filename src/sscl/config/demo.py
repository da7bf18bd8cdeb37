"""The configurations of `sscl demo` and `sscl configs`."""

from __future__ import annotations

from sscl.config.sections import Section, setting


class DemoConfig(Section):
    """sscl demo: the whole method on synthetic polyps."""

    run: str = setting("demo-run", "folder to write", min_length=1)
    configs: str = setting("demo", "folder of its YAML files, or of shipped configs", min_length=1)


class ConfigsConfig(Section):
    """sscl configs: list the YAML files that come with sscl, or print one; the first word may be the name."""

    name: str | None = setting(None, "the config to print, such as demo/pretrain; null = list them all", min_length=1)
