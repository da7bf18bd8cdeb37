from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sscl import cli
from sscl.config import plain
from sscl.config.loader import main_name

CONFIGS = Path(__file__).parents[2] / "configs"
# What a shipped file is for, by its name.
COMMAND_OF = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "scratch": "finetune",
    "baseline": "finetune",
    "finetuned": "finetune",
    "finetune_nuclei": "finetune",
    "labels_nuclei": "compare",
    "ssl_joint": "finetune",
    "ssl": "pretrain",
    "eval": "eval",
    "gradcam": "gradcam",
    "audit": "data audit",
    "report": "report",
    "probe": "probe",
    "probe_nuclei": "probe",
    "pretrain_imagenet": "pretrain",
    "pretrain_nuclei": "pretrain",
    "synth": "data synth",
    "slide": "slides synth",
    "predict": "predict",
    "inspect": "data inspect",
    "compare": "compare",
    "labels": "compare",
    "few": "finetune",
    "tenth": "compare",
    "tiles": "probe",
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_shipped_configs_parse_with_the_command_in_their_header(path):
    header = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    words = shlex.split(next(line for line in header if line.startswith("sscl ")))[1:]
    name = COMMAND_OF[path.stem]
    assert words[: len(name.split())] == name.split()
    given = cli.parse(name, words[len(name.split()) :])
    assert given.found.config == path.relative_to(CONFIGS).with_suffix("").as_posix()
    loaded = given.load()
    for override in given.found.overrides:  # each says something: it lands where it should
        typed, value = override.split("=", 1) if isinstance(override, str) else override
        dotted, found = main_name(given.kind, typed), plain(loaded)
        if isinstance(value, list):  # of words
            value = str([str(one) for one in value])
        if dotted.split(".")[0] in ("set", "set_pretrain", "set_finetune"):  # keys of other commands' configurations
            key, _, rest = dotted.partition(".")
            assert f"{rest}={value}" in found[key]
            continue
        for part in dotted.split("."):
            if isinstance(found, list) and not part.isdigit():  # one section where a list may stand
                (found,) = found
            found = found[int(part) if isinstance(found, list) else part]
        assert str(found) == value


def test_every_shipped_folder_was_looked_at():
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(COMMAND_OF)
