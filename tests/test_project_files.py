"""What stands around the code: citation, changelog, issue forms, the container, the release."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from sscl import __version__

ROOT = Path(__file__).resolve().parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_written_once():
    project = read("pyproject.toml").partition("[project.optional-dependencies]")[0]
    assert 'dynamic = ["version"]' in project
    holders = [path.name for path in ROOT.iterdir() if path.is_file() and f'"{__version__}"' in path.read_text("utf-8")]
    assert holders == []


def test_the_citation_names_software_and_three_works_which_the_documents_know_too():
    cited = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(cited)
    assert cited["authors"] == [{"name": "sscl contributors"}]
    works = [work.get("doi") or work.get("url") or work["repository-code"] for work in cited["references"]]
    assert len(works) == 3
    documents = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")) + read("README.md")
    for work in works:
        assert work.rpartition("/")[2] in documents, work
    assert all({"type", "title", "authors"} <= set(work) for work in cited["references"])


def test_the_changelog_begins_with_what_is_unreleased_or_with_this_version():
    first = re.findall(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)[0]
    assert first == "Unreleased" or first.startswith(f"{__version__}, ")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_what_github_asks_for(path: Path):
    form: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in asked}) == len(asked) >= 2
    assert all(part["attributes"]["label"] for part in asked)
    assert any(part.get("validations", {}).get("required") for part in asked)


def test_the_container_copies_what_there_is_and_starts_sscl():
    lines = [line for line in read("Dockerfile").replace("\\\n", " ").splitlines() if line and line[0] != "#"]
    copied = [name for line in lines if line.startswith("COPY ") for name in shlex.split(line)[1:-1]]
    assert {"pyproject.toml", "README.md", "LICENSE", "src", "constraints.txt"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = {line.strip() for line in read(".dockerignore").splitlines()}
    assert not ignored & set(copied)
    assert 'ENTRYPOINT ["sscl"]' in lines
    assert any(line.startswith("RUN case") and "cpu)" in line and "cuda)" in line for line in lines)


@pytest.fixture
def commit(tmp_path: Path) -> Path:
    """A repository with one commit, which may be released."""
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3, 2026-01-02\n")
    for words in ("init -q", "add -A", "-c user.name=a -c user.email=a@b commit -q -m first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    return tmp_path


def test_a_release_needs_a_heading_a_clean_tree_and_a_new_tag(commit: Path, release: ModuleType):
    assert release.obstacles("1.2.3", root=commit) == []
    (one,) = release.obstacles("1.2.4", root=commit)
    assert "CHANGELOG.md" in one
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "tag", "v1.2.3"], cwd=commit, check=True)
    (commit / "more").touch()
    tree, tag = release.obstacles("1.2.3", root=commit)
    assert "working tree" in tree
    assert "v1.2.3" in tag
