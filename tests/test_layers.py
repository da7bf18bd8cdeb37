"""Imports point down only: a module may import what lies in the layers below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sscl"
LAYERS = (
    {"dist", "metrics", "device", "weights", "colours", "map_similarity"},
    {
        "data",
        "augment",
        "models",
        "losses",
        "optim",
        "cam",
        "run",
        "comparison",
        "probe_report",
        "memory",
        "calibration",
    },
    {"features", "step", "profiling", "evaluation", "box_checks", "cam_checks", "model_card", "classifier", "plots"},
    {"api", "report"},
    {"config"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
PACKAGE_MAY = {"api"}  # when it is asked for
CONFIG_MAY = {"models"}  # constants for the documentation of defaults
# What commands, pictures and sections share; not commands, pictures and sections.
SHARED = {
    "plots.base",
    "plots.sheets",
    "report.blocks",
    "commands.inputs",
    "commands.planning",
    "commands.report_folders",
    "commands.report_tiles",
    "commands.sources",
    "commands.health",
    "commands.folds",
    "commands.heatmap_checks",
}


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(text: str, *, module: str, names: set[str]) -> set[str]:
    """Modules of sscl that a module imports anywhere, at its top or inside a function, without the leading `sscl.`."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            # `from sscl import run` imports a module, `from sscl.run import save` a name in one.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("sscl.") in names else str(node.module))
    return {name.removeprefix("sscl.") for name in found if name.startswith("sscl.")}


def faults(sources: dict[str, str]) -> list[str]:
    found = []
    for module, text in sources.items():
        part = module.split(".")[0]
        if not part:  # the package itself
            others = imports(text, module=module, names=set(sources)) - PACKAGE_MAY
            found += [f"sscl imports {other}" for other in others]
            continue
        for other in sorted(imports(text, module=module, names=set(sources))):
            target = other.split(".")[0]
            if part == target and part in ("data", "config"):
                fine = True
            elif part == target and part in ("plots", "report"):
                fine = other in SHARED and module not in SHARED - {"plots.sheets"}
            elif part == target == "commands":
                fine = other in SHARED and (module not in SHARED or module != other == "commands.inputs")
            elif part == "config":
                fine = target in CONFIG_MAY  # not even the layers below
            else:
                fine = LAYER[target] < LAYER[part]
            if not fine:
                found.append(f"{module} imports {other}")
    return found


def shipped() -> dict[str, str]:
    return {name_of(path, SOURCE): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}


def test_imports_point_down_only():
    assert faults(shipped()) == []


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in shipped()} - {""} == set(LAYER)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses", "from sscl.config import PretrainConfig"),
        ("features", "from sscl import config"),
        ("data.tiles", "from sscl import features"),
        ("dist", "import sscl.losses"),
        ("losses", "def f():\n    from sscl import optim"),
        ("optim", "from sscl.models import Encoder"),
        ("config", "from sscl.run import MetricsLog"),
        ("commands.pretrain", "from sscl.commands import finetune"),
        ("commands.evaluate", "from sscl.train.finetune import main"),
        ("commands.inputs", "from sscl.train.pretrain import main"),
        ("commands.demo", "from sscl.cli import main"),
        ("plots.base", "from sscl.plots import sheets"),
        ("plots.calibration", "from sscl.plots import cam"),
        ("report.blocks", "from sscl.report import studies"),
        ("report.studies", "from sscl.report.classifier import Subject"),
        ("", "from sscl.run import MetricsLog"),
    ],
)
def test_an_import_upwards_is_found(module, line):
    sources = shipped()
    sources[module] += f"\n{line}\n"
    assert len(faults(sources)) == 1


def test_the_command_line_imports_nothing_of_ours_before_a_command_is_chosen():
    tree = ast.parse((SOURCE / "cli.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name if isinstance(node, ast.Import) else node.module for node in top for alias in node.names}
    assert not [name for name in names if str(name).startswith("sscl")]
    assert len(names) > 3
