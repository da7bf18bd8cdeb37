from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from sscl import cli, config
from sscl.config import load_config, plain

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
    "inspect": "data inspect",
    "compare": "compare",
    "labels": "compare",
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_shipped_configs_parse_with_the_command_in_their_header(path):
    header = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    words = shlex.split(next(line for line in header if line.startswith("sscl ")))[1:]
    at = words.index("--config")
    name, file, overrides = " ".join(words[:at]), words[at + 1], words[at + 2 :]
    assert name == COMMAND_OF[path.stem]
    assert file == path.relative_to(CONFIGS).with_suffix("").as_posix()
    loaded = load_config(getattr(config, cli.COMMANDS[name].config), path, overrides=overrides)
    for override in overrides:  # each says something: it lands where it should
        dotted, _, value = override.partition("=")
        found = plain(loaded)
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
