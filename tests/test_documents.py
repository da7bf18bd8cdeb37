"""The documents: what they show runs, or says what it needs; the site can be built, and asks nothing of the network."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import yaml

import forked
from sscl import cli, config
from sscl.cli.table import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Commands that run as they stand, made small; those of quickstart.md run in tests/test_notebooks.py.
TINY = {"configs": [], "data synth": ["count=24", "size_px=32", "progress=false"]}
_TRAIN = ("train.epochs=1", "train.batch_size=8", "device=cpu", "progress=false")
TINY_SLIDES = {
    "slides synth": ["size_px=256", "mpp=2", "progress=false"],
    "slides tile": ["size_px=32", "progress=false"],
    "slides inspect": ["progress=false"],
    "pretrain": ["model.name=timm:test_resnet", "health.tiles=8", "data.tiles_per_slide=4", *_TRAIN],
    "finetune": ["train.label_fraction=0.2", *_TRAIN],
    "eval": ["device=cpu", "progress=false"],
    "predict": ["device=cpu", "progress=false"],
    "report": ["progress=false"],
}


SITE = f"""
import gc, os, sys
gc.disable()  # there is none worth the search
os.chdir({str(ROOT)!r})
from mkdocs.__main__ import cli
cli(["build", "--strict", "--quiet", "--site-dir", sys.argv[1]])
"""


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Return the info strings and texts of a page's blocks in these languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(info.strip(), text) for language, info, text in found if language in languages]


def shown(page: Path) -> list[list[str]]:
    """Return the commands of a page's blocks that do not say what they need."""
    lines = [line for info, text in blocks(page, "sh") if not info for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", [page for page in TEXTS if shown(page)], ids=lambda page: page.stem)
def test_what_needs_nothing_runs(
    page: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[..., None],
    blank_pictures: None,
    estimated_once: Callable[[], AbstractContextManager[None]],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    wrap(drawing_cores=lambda real: 1)  # tests/data/test_drawn_slide.py has more
    for program, *words in shown(page):
        assert program == "sscl", f"{page.name}: a block with {program} says in its title what it needs"
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        tiny = TINY_SLIDES if page.stem == "slides" else TINY
        if name in tiny:
            with estimated_once():
                assert cli.main([*words, *tiny[name]]) == 0, words


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_configurations_are_accepted(page: Path, tmp_path: Path) -> None:
    for number, (_, text) in enumerate(blocks(page, "yaml")):
        first, _, rest = text.partition("\n")
        assert first.startswith("# sscl "), f"{page.name}: begin the block with the command that it is for"
        kind = getattr(config, COMMANDS[first.removeprefix("# sscl ")].config)
        file = tmp_path / f"{number}.yaml"
        file.write_text(rest, encoding="utf-8")
        assert isinstance(config.load_config(kind, file), kind)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_python_runs_in_a_test_or_says_what_it_needs(page: Path) -> None:
    for info, text in blocks(page, "python"):
        compile(text, page.name, "exec")
        assert page.name == "api.md" or info.startswith("title="), f"{page.name}: {text}"


def named_pages(entry: object) -> list[str]:
    """Return the files below an entry of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
    return [name for part in parts for name in named_pages(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named_pages(site["nav"])) == sorted(page.relative_to(ROOT / "docs").as_posix() for page in PAGES)
    assert site["theme"]["font"] is False


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs the dev extra: mkdocs-material")
def test_the_site_is_built_without_warnings_and_fetches_nothing(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = forked.run(SITE, tmp_path, env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert len(pages) == len(PAGES) + 1  # and that of what is not found
    for path, text in pages.items():
        fetched = re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)=\"?(?:https?:)?//[^ >]+", text)
        assert not [tag for tag in fetched if 'rel="canonical"' not in tag], path.name
    reference = next(text for path, text in pages.items() if path.name == "reference.html")
    assert all(name in reference for name in ("sscl.losses.nt_xent", "temperature", "arXiv:2002.05709"))
