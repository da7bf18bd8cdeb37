"""Imports point down only: a module may import its own folder and those below it; commands never import each other."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "sscl"
# From the ground up. A folder or a module of the top level each; docs/architecture.md says what is in them.
FLOORS = (
    "file_kinds",
    "fonts",
    "cores",
    "compilers",
    "progress",
    "forks",
    "children",
    "places",
    "words",
    "memory",
    "reading",
    "locks",
    "writing",
    "records",
    "config",
    "device",
    "ranks",
    "colours",
    "draws",
    "augment_triton",
    "augment",
    "losses",
    "slides",
    "data",
    "metrics_log",
    "run",
    "models",
    "evaluate",
    "explain",
    "plots",
    "train",
    "project",
    "report",
    "answers",
    "api",
    "predict",
    "doctor",
    "commands",
    "cli",
    "__main__",
)
PACKAGE_MAY = {"api"}  # `sscl.load`, when it is asked for


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
Statement = ast.Import | ast.ImportFrom


def statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement, in blocks of any depth: expressions, which hold none, are most of a tree."""
    left: list[ast.AST] = [tree]
    while left:
        node = left.pop()
        yield node
        left += [one for block in BLOCKS for one in getattr(node, block, ())]


@functools.cache  # not the trees: the search for garbage in so many objects takes longer than parsing
def parsed(text: str) -> tuple[list[Statement], list[Statement]]:
    """The statements of a module that import: those at its top, and those anywhere in it."""
    tree = ast.parse(text)
    return tuple([one for one in some if isinstance(one, Statement)] for some in (tree.body, statements(tree)))


@functools.cache
def imports(text: str, *, module: str, names: frozenset[str]) -> frozenset[str]:
    """Modules of sscl that a module imports anywhere, at its top or inside a function, without the leading `sscl.`."""
    found = set()
    for node in parsed(text)[1]:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{module}: relative import"
            # `from sscl import run` imports a module, `from sscl.run import save` a name in one.
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole.removeprefix("sscl.") in names else str(node.module))
    return frozenset(name.removeprefix("sscl.") for name in found if name.startswith("sscl."))


def faults(sources: dict[str, str]) -> list[str]:
    found, names = [], frozenset(sources)
    for module, text in sources.items():
        place = module.split(".")[0]
        for other in sorted(imports(text, module=module, names=names)):
            target = other.split(".")[0]
            if not place:
                fine = other in PACKAGE_MAY
            elif place == target:
                fine = place != "commands"
            else:
                fine = FLOORS.index(target) < FLOORS.index(place)
            if not fine:
                found.append(f"{module or 'sscl'} imports {other}")
    return found


def shipped() -> dict[str, str]:
    return {name_of(path, SOURCE): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}


def test_imports_point_down_only():
    assert faults(shipped()) == []


@pytest.mark.parametrize("command", ["cache", "configs", "draw_slides", "slides", "view_slides"])
def test_what_needs_no_torch_starts_without(command: str):
    """torch takes seconds, and 500 MB."""
    sources = shipped()
    left, seen = [f"commands.{command}", "cli"], set()
    while left:
        name = left.pop()
        parts = name.split(".")
        for module in {".".join(parts[:i]) for i in range(len(parts) + 1)} & sources.keys() - seen:
            seen.add(module)
            for node in parsed(sources[module])[0]:
                names = [alias.name for alias in node.names]
                found = names if isinstance(node, ast.Import) else [f"{node.module}.{one}" for one in names]
                assert not any(one.split(".")[0] == "torch" for one in found), (module, found)
                left += [one.removeprefix("sscl.") for one in found if one.startswith("sscl.")]
    assert len(seen) > 10


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in shipped()} - {""} == set(FLOORS)


def described() -> dict[str, str]:
    """The paragraphs of docs/architecture.md by floor, in its order."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, floors = page.partition("## The floors")
    floors, _, _ = floors.partition("## One tile")
    parts = re.split(r"\*\*`(\w+)/?`\*\*", floors)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_page_on_the_architecture_has_the_floors_in_order_and_every_module():
    page = described()
    assert tuple(reversed(page)) == FLOORS
    missing = [
        name
        for name in shipped()
        if "." in name and f"`{name.split('.', 1)[1]}`" not in page[name.split(".")[0]] and name != "report.page"
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses", "from sscl.models import build_encoder"),
        ("config.data", "from sscl import run"),
        ("data.tiles", "from sscl.models import features"),
        ("ranks", "import sscl.losses"),
        ("losses", "def f():\n    from sscl.train import optim"),
        ("evaluate.metrics", "from sscl.plots import charts"),
        ("train.step", "from sscl.commands.pretrain import main"),
        ("commands.pretrain", "from sscl.commands import finetune"),
        ("commands.evaluate", "from sscl.commands.finetune import main"),
        ("commands.demo", "from sscl.cli import main"),
        ("", "from sscl.run import MetricsLog"),
    ],
)
def test_an_import_upwards_is_found(module, line):
    sources = shipped()
    sources[module] += f"\n{line}\n"
    assert len(faults(sources)) == 1


def test_the_command_line_imports_nothing_of_ours_before_a_command_is_chosen():
    """But for its own folder, which imports nothing else of ours at its top either."""
    for module in ("__init__", "table", "arguments", "terminal"):
        tree = ast.parse((SOURCE / "cli" / f"{module}.py").read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {
            alias.name if isinstance(node, ast.Import) else str(node.module) for node in top for alias in node.names
        }
        ours = {name for name in names if str(name).startswith("sscl")}
        assert ours <= {"sscl.cli.table", "sscl.cli.arguments", "sscl.cli.terminal", "sscl.memory"}
        assert len(names) > 3
