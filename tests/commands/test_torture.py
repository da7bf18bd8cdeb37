"""scripts/torture at toy size: some inputs of each kind, and a command that is killed at some of its steps."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SEED = 5
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def material(tmp_path_factory, cli, tiles, pretrained, finetuned):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        from torturing.trials import Material

        made = Material(tmp_path_factory.mktemp("torture") / "material")
        shutil.copytree(finetuned, made.folder / "runs" / "fine")
        (made.folder / "cache").mkdir()
        for name, there in {"data": tiles, "runs/pre": pretrained}.items():
            (made.folder / name).symlink_to(there)
        result = cli.evaluate(made.folder / "runs" / "fine")
        assert result.code == 0, result.err
        yield made


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Inputs change the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["Configs", "Tables", "Records", "Rows", "Arrays", "Images", "Checkpoints", "Cached"])
def test_a_poisoned_file_is_read_or_refused_in_a_line_that_names_it(name, material, tmp_path):
    from torturing import binaries, texts

    part = getattr(texts if hasattr(texts, name) else binaries, name)(material)
    part.prepare()
    faults = {index: part.try_one(index, SEED, tmp_path) for index in range(1, 31)}
    assert {index: wrong for index, wrong in faults.items() if wrong} == {}


def test_an_export_may_be_killed_at_any_step(material, tmp_path):
    from torturing.disturbed import Disturbed
    from torturing.trials import trials

    part = Disturbed("kill", material, [trial for trial in trials() if trial.name.startswith("export")])
    faults = {index: part.try_one(index, SEED, tmp_path) for index in range(4)}
    assert {index: wrong for index, wrong in faults.items() if wrong} == {}


def test_what_is_wrong_is_found(material, tmp_path):
    from torturing.fed import refused_well

    def fails(error):
        raise error

    assert refused_well(lambda: None, name="a.csv") is None
    assert refused_well(lambda: fails(ValueError("a.csv: no rows")), name="a.csv") is None
    assert refused_well(lambda: fails(OSError(2, "No such file", "a.csv")), name="a.csv") is None
    for error in (ValueError("no rows"), ValueError("a.csv:\nno rows"), KeyError("a.csv"), OSError(28, "full")):
        assert refused_well(lambda error=error: fails(error), name="a.csv") is not None
