"""The CUDA kernels give the views of `augment`: in Triton's interpreter, and on a GPU as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
from sscl import augment

pytest.importorskip("triton")


PROGRAM = Path(__file__).with_name("interpreted_views.py")


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    return result(forked.run(PROGRAM, env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}))


def check(found: dict[str, Any]) -> None:
    assert len(found["largest difference"]) == 12
    assert max(found["largest difference"].values()) < 2e-5, found["largest difference"]
    assert found["still"] < 1e-6  # without operations it is the tile
    assert found["channels last"]
    assert found["again"]  # bit for bit
    assert found["rounding"]["torch.float16"] < 2**-10
    assert found["rounding"]["torch.bfloat16"] < 2**-7


def test_views_are_those_of_the_reference(interpreted):
    check(interpreted)


def test_other_tiles_are_refused(interpreted):
    shape, kind, count = interpreted["refusals"]
    assert "(2, 8, 9, 3)" in shape
    assert "torch.float32" in kind
    assert "4 views" in count


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_views_of_the_reference():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    check(result(subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True)))


def test_no_kernel_spills_registers_on_a_card_that_is_not_here():
    script = Path(__file__).resolve().parents[1] / "scripts" / "compile_views"
    done = forked.run(script, "--quick")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "sm_80" in line]
    assert [row[0] for row in rows] == ["warp", "blur_rows", "blur_columns", "colours"]
    assert all(int(row[-1]) == 0 < int(row[-2]) <= 255 for row in rows)


@pytest.mark.parametrize(
    ("capability", "compiler", "headers", "lack"),
    [
        ((8, 0), "/opt/cc", True, None),
        ((8, 0), "", True, "C compiler"),
        ((8, 0), "/opt/cc", False, "python3-dev"),
        ((6, 1), "/opt/cc", True, "capability"),
    ],
)
def test_kernels_are_used_where_triton_can_work(capability, compiler, headers, lack, monkeypatch, with_cards, tmp_path):
    with_cards(capability)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    if headers:
        (tmp_path / "Python.h").touch()
    device = torch.device("cuda")
    assert augment.uses_kernels(device) == (lack is None)
    assert not augment.uses_kernels(torch.device("cpu"))
    assert lack is None or lack in str(augment.kernels_lack(device))
