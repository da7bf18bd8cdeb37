"""sscl encoders: the table, and all facts of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sscl.config.encoders import ENCODERS, OWN
from sscl.config.published import PUBLISHED
from sscl.models.encoders import build_encoder


def test_the_table_has_every_encoder_within_80_columns(cli: Any) -> None:
    result = cli("encoders")
    assert result.code == 0
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    rows = {line.split()[0]: line.split() for line in lines if line.split()}
    for name, one in PUBLISHED.items():
        assert str(one.features) in rows[name]
        assert ("*" in " ".join(rows[name])) == one.gated
        assert rows[name][-1] in ("yes", "no")
    for name in ENCODERS:
        assert str(OWN[name].features) in rows[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet14_small", "resnet18_pathmnist", "efficientnet_lite0"])
def test_own_encoders_are_as_the_table_says(name: str) -> None:
    encoder = build_encoder(name)
    found = sum(value.numel() for value in encoder.parameters())
    assert (found, encoder.num_features) == OWN[name][:2]
    assert tuple(OWN) == ENCODERS


@pytest.mark.parametrize("name", ["uni2_h", "resnet18", "timm:hf-hub:MahmoodLab/uni", "timm:test_vit"])
def test_one_is_told_about_within_80_columns(cli: Any, name: str) -> None:
    result = cli("encoders", name)
    assert result.code == 0
    *lines, following = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "mean" in result.out
    assert following.startswith("next: sscl finetune TILES model.name=")


def test_of_a_model_of_timm_its_settings_are_told(cli: Any) -> None:
    said = " ".join(cli("encoders", "timm:test_vit").out.split())
    encoder = build_encoder("timm:test_vit")
    assert f"feature {encoder.pooling}, {encoder.num_features} numbers" in said
    assert "tiles 160 px " in said


def test_a_folder_is_told_about(cli: Any, tmp_path: Path) -> None:
    said = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "input_size": [3, 64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    result = cli("encoders", f"timm:local-dir:{tmp_path}")
    assert result.code == 0
    assert "0.1, 0.2, 0.3" in result.out
    assert "64 px" in result.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uni2", "did you mean uni2_h?"),
        ("virchow3", "one of `sscl encoders`"),
        ("timm:local-dir:/nowhere", "no such folder"),
        ("timm:hf-hub:a/b", "not in the hub's cache on this disk"),
        ("timm:MahmoodLab/UNI", "timm:hf-hub:USER/MODEL"),
    ],
)
def test_names_that_are_none_are_one_line(cli: Any, name: str, message: str) -> None:
    result = cli("encoders", name)
    assert result.code == 2
    assert message in result.err
    assert len(result.err.splitlines()) == 1
