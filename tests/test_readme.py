"""The README says what is true: its commands are accepted, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sscl import cli

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|text)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    found = []
    for text in TEXTS:
        for block in BLOCK.findall(text.read_text(encoding="utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [line.removeprefix("$ ") for line in lines if line.startswith(("sscl ", "$ sscl ", "scripts/"))]
    return sorted(set(found))


def test_there_are_commands_to_check():
    assert sum(command.startswith("sscl pretrain") for command in commands()) >= 2


@pytest.mark.parametrize("command", commands())
def test_commands_are_accepted(command, monkeypatch):
    words = shlex.split(command, comments=True)
    if words[0].startswith("scripts/"):
        assert (ROOT / words[0]).stat().st_mode & 0o100, f"{words[0]} is not executable"
        return
    monkeypatch.chdir(ROOT)
    name = " ".join(words[1:3]) if " ".join(words[1:3]) in cli.COMMANDS else words[1]
    given = words[1 + len(name.split()) :]
    parsed = cli.parse(name, given)
    if not parsed.help:
        assert isinstance(parsed.load(), parsed.kind)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_and_named_files_exist(text):
    content = text.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", content):
        assert (text.parent / target).exists(), target
    for target in re.findall(r"`((?:src|configs|scripts|docs|tests)/[\w./-]+)`", content):
        assert (ROOT / target).exists(), target
