"""How often a loop measures, how much of its time is training, and what is written meanwhile."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from sscl.config import PretrainConfig
from sscl.models.checkpoint import build_checkpoint, load_checkpoint, save_checkpoint
from sscl.train import optim, pace
from sscl.train.pace import Pace, Writer, on_host


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that stands still; the function moves it on."""
    now = 100.0
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now)

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    return wait


def test_due_after_the_interval_and_after_the_last_epoch(clock: Callable[[float], None]) -> None:
    given = Pace(30)
    clock(29)
    assert not given.due(last=False)
    assert given.due(last=True)
    clock(1)
    assert given.due(last=False)
    clock(20)  # measuring took as long
    given.measured()
    clock(29)
    assert not given.due(last=False)
    assert Pace(0).due(last=False)


def test_busy_is_the_fraction_of_training_since_the_row_before(clock: Callable[[float], None]) -> None:
    given = Pace(30)
    clock(8)
    assert given.busy(6) == pytest.approx(6 / 8)
    clock(2)
    assert given.busy(2) == pytest.approx(1)
    clock(10)
    assert "40% of 20.0 s" in given.line()  # 8 of 20


def test_a_writer_works_beside_the_loop_and_keeps_the_newest_of_what_waits() -> None:
    begun, go = threading.Event(), threading.Event()
    taken, written = [], []

    def take(number: int) -> int:
        taken.append(number)
        return number

    def write(number: int) -> None:
        begun.set()
        assert go.wait(10)
        written.append((number, threading.current_thread() is threading.main_thread()))

    with Writer() as writer:
        for number in range(4):
            writer.put(partial(take, number), write)
            assert begun.wait(10)  # the first is being written, the others come meanwhile
        assert written == []
        go.set()
    assert taken == [0, 1, 2, 3]
    assert written == [(0, False), (3, False)]


@pytest.mark.parametrize("again", [True, False], ids=["at the next put", "at the end"])
def test_an_error_of_the_thread_ends_the_loop(again: bool) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    writer = Writer()

    def loop() -> None:
        with writer:
            writer.put(lambda: 1, fail)
            if again:
                writer._tasks[0].future.exception(timeout=10)
                writer.put(lambda: pytest.fail("a copy was taken after all"), fail)

    with pytest.raises(OSError, match="No space left"):
        loop()


def test_an_error_of_the_loop_waits_for_what_is_being_written() -> None:
    go, written = threading.Event(), []

    def write(number: int) -> None:
        assert go.wait(10)
        written.append(number)

    def loop() -> None:
        with Writer() as writer:
            writer.put(lambda: 1, write)
            threading.Timer(0.05, go.set).start()
            raise ValueError("the loss became nan; last.pt holds epoch 1")

    with pytest.raises(ValueError, match="holds epoch 1"):
        loop()
    assert written == [1]


def test_a_copy_on_the_host_stays_as_it_was_and_is_written_as_the_original_would_be(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    optimizer = optim.build_optimizer("sgd", optim.parameter_groups(model, learning_rate=0.1, weight_decay=0.1))

    def step() -> None:
        model(torch.ones(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    def checkpoint() -> Any:
        config = PretrainConfig(run="run", data={"root": "nowhere"})
        facts = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "pooling": "mean", "classes": (), "lineage": ()}
        blank = build_checkpoint(config, fingerprint="f", precision="fp32", **facts)
        encoder = model[0].state_dict()  # the same values as in the model
        state = {"encoder": encoder, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        return dataclasses.replace(blank, **state)

    step()
    save_checkpoint(tmp_path / "direct.pt", checkpoint())
    copied = on_host(checkpoint())
    step()
    save_checkpoint(tmp_path / "copied.pt", copied)

    direct, later = (load_checkpoint(tmp_path / name) for name in ("direct.pt", "copied.pt"))
    assert (tmp_path / "direct.pt").stat().st_size == pytest.approx((tmp_path / "copied.pt").stat().st_size, rel=0.05)
    assert later.encoder["weight"].untyped_storage()._cdata == later.model["0.weight"].untyped_storage()._cdata
    assert later.model["0.weight"].is_contiguous(memory_format=torch.channels_last)
    for key, value in direct.model.items():
        assert torch.equal(later.model[key], value), key
    states: Any = (direct.optimizer["state"], later.optimizer["state"])
    assert states[0]
    for key, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][key]["momentum_buffer"])
    assert not torch.equal(model[0].weight, later.model["0.weight"])
