"""The GPU rows at toy size on the CPU, and what is made of kernels and waits, which only a GPU has."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gpu_inference
import gpu_measure
import gpu_plan
import gpu_rows
import gpu_training
from gpu_measure import Bench, Found, Observed

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def blank(blank_pictures: None) -> None:
    """Charts are drawn elsewhere."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(CPU, True, tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out"))


def test_the_plan_names_every_row():
    assert list(gpu_plan.EXPECTED_S) == list(gpu_rows.ALL)
    assert {*gpu_plan.FIRST, *gpu_plan.ROWS} == set(gpu_rows.ALL)
    assert {*gpu_plan.QUICK} < {*gpu_plan.ROWS}
    assert gpu_plan.ROWS[-1].startswith("compiled")
    assert sum(gpu_plan.EXPECTED_S[name] for name in gpu_plan.EXPECTED_S if "compiled" not in name) < 500


@pytest.mark.parametrize("name", ["ceilings", *gpu_plan.QUICK, "grad-cam", "mhist's size", "lightly 28 px"])
def test_rows_at_toy_size(name, bench):
    line = gpu_rows.measured(name, bench)
    assert (line["state"], line["note"]) == ("measured", ""), line.get("trace")
    assert line["rows"]
    for row in line["rows"]:
        assert row["ours"] is not None or row["note"], row
    json.dumps(line)
    if name == "resnet50 bf16":
        assert (bench.out / "trace.json.gz").stat().st_size > 1000
        assert line["rows"][0]["ratio"] == pytest.approx(line["rows"][0]["ours"] / line["rows"][0]["theirs"])


def measure(instead: Callable[..., None], tmp_path: Path, rows: dict, *words: str) -> tuple[int, list[dict]]:
    instead(gpu_rows, ALL=rows)
    instead(gpu_rows, EXPECTED_S=dict.fromkeys(rows, 5.0))
    file = tmp_path / "rows.jsonl"
    given = [";".join(rows), str(file), "--work", str(tmp_path), "--out", str(tmp_path), "--device", "cpu", *words]
    status = gpu_rows.main(given)
    return status, [json.loads(line) for line in file.read_text().splitlines()]


def broken(bench: Bench) -> Found:
    raise RuntimeError("expected a\nletter")


def lost(bench: Bench) -> Found:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def well(bench: Bench) -> Found:
    return Found([{"what": "x", "ours": 2.0, "target": ">= 1"}])


def test_a_row_that_fails_says_why_and_the_next_is_measured(instead, tmp_path):
    status, lines = measure(instead, tmp_path, {"a": broken, "b": well})
    assert status == 0
    assert [(line["name"], line["state"]) for line in lines] == [
        ("a", "begun"),
        ("a", "failed"),
        ("b", "begun"),
        ("b", "measured"),
    ]
    assert lines[1]["note"] == "RuntimeError: expected a"
    assert "in broken" in lines[1]["trace"]
    assert lines[3]["rows"][0]["verdict"] == "reached"


def test_after_an_error_that_cuda_does_not_survive_the_process_ends(instead, tmp_path):
    status, lines = measure(instead, tmp_path, {"a": lost, "b": well})
    assert status == gpu_plan.LOST
    assert lines[-1]["name"] == "a"


def test_a_row_for_which_too_little_time_is_left_is_named(instead, tmp_path):
    status, lines = measure(instead, tmp_path, {"a": well}, "--seconds", "3")
    assert (status, lines[0]["state"]) == (0, "not reached")
    assert "needs about 5 s" in lines[0]["note"]


def test_a_command_that_ends_badly_fails_its_row():
    with pytest.raises(RuntimeError, match=r"sscl eval ended with 2: .*checkpoint"):
        gpu_measure.command("eval", "checkpoint=/nowhere")


def test_busy_is_the_union_of_kernels_on_all_streams():
    seen = Observed()
    spans = [("a", 0.0, 10.0), ("b", 5.0, 12.0), ("a", 20.0, 24.0), ("Memcpy HtoD (Pinned -> Device)", 12.0, 40.0)]
    gpu_measure.summarise(seen, spans)
    assert seen.span == pytest.approx(24e-6)
    assert seen.busy == pytest.approx(16 / 24)
    assert seen.kernels == 3
    assert [(name, count) for name, count, _ in seen.largest] == [(spans[3][0], 1), ("a", 2), ("b", 1)]
    gpu_measure.summarise(empty := Observed(), [])
    assert empty.busy is None


def test_waits_are_counted_by_line_and_those_of_every_step_are_a_fault():
    places = [("/x/sscl/train/pretrain.py", 205)] * 16 + [("/x/sscl/train/health.py", 74)]
    waits = gpu_measure.wait_lines(places)
    assert waits == {"train/pretrain.py:205": 16, "train/health.py:74": 1}
    seen = Observed(wall=2.0, span=1.5, busy=0.9, kernels=1600, waits=waits)
    longer = replace(seen, waits={"train/pretrain.py:205": 32, "train/pretrain.py:100": 318})
    seen.waits["train/pretrain.py:100"] = 318  # the weights, once a run
    rows = gpu_training.observed_rows(seen, longer, [{"seconds": 1.2}], at="x", steps=16)
    busy, lines = gpu_rows.judged(rows, quick=False)
    assert (busy["ours"], lines["ours"], lines["verdict"]) == (0.9, 1.0, "missed")
    assert lines["note"] == "train/pretrain.py:205 (16)"
    assert "100 kernels a step" in busy["note"]


def test_tiles_a_second_are_those_between_the_first_kernel_and_the_last():
    rows = gpu_inference.inference_rows("eval", Observed(span=2.0, busy=0.7), tiles=100, wall_s=8.0)
    speed, busy = gpu_rows.judged(rows, quick=False)
    assert (speed["ours"], busy["ours"], busy["verdict"]) == (50.0, 0.7, "missed")


def test_a_way_to_train_that_fails_is_named(bench, instead):
    def fails(bench, *, precision="fp32", **_):
        if precision == "bf16":
            raise RuntimeError("no")
        return 1.0, 0.1

    instead(gpu_training, three_steps=fails)
    (row,) = gpu_rows.judged(gpu_training.ways(bench).rows, quick=False)
    assert (row["ours"], row["verdict"]) == (1.0, "missed")
    assert "not: bf16 adamw" in row["note"]


def test_the_fraction_that_is_training_is_of_the_whole_time(bench, instead):
    log = [{"seconds": 3.0, "busy": 0.5}, {"seconds": 3.0, "busy": 1.0}]
    instead(gpu_training, pretrain=lambda *_, **__: (log, ""))
    (row,) = gpu_rows.judged(gpu_training.between_epochs(bench).rows, quick=False)
    assert row["ours"] == pytest.approx(6 / 9)
    assert row["verdict"] == "missed"
