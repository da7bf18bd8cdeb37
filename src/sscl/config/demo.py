"""The configurations of `sscl demo` and `sscl configs`."""

from __future__ import annotations

from sscl.config.sections import Section, setting


class DemoConfig(Section):
    """Run the whole method on synthetic polyps: audit, pretrain, finetune, eval, gradcam, a slide, report."""

    run: str = setting("demo-run", "folder to write", path=True, min_length=1)
    configs: str = setting(
        "demo", "folder of its YAML files, or the name of a folder of shipped configs", path=True, min_length=1
    )


class ConfigsConfig(Section):
    """List the configs that come with sscl, or print one."""

    name: str | None = setting(
        None, "config to print, as in demo/pretrain; null = list them all; also NAME", min_length=1
    )
