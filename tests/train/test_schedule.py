from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from sscl.config import FinetuneTrainConfig, PretrainTrainConfig
from sscl.train.schedule import Schedule, multistep, peak_of, warmup_cosine


@pytest.mark.parametrize(
    ("scaling", "batch_size", "expected"),
    [("linear", 256, 0.06), ("linear", 128, 0.03), ("linear", 1024, 0.24), ("sqrt", 64, 0.48), ("none", 64, 0.06)],
)
def test_the_peak_is_scaled_to_the_batch(scaling, batch_size, expected):
    train = PretrainTrainConfig(learning_rate=0.06, batch_size=batch_size, learning_rate_scaling=scaling)
    assert peak_of(train) == pytest.approx(expected, rel=1e-12)


def test_warmup_cosine_endpoints():
    factors = [warmup_cosine(step, warmup_steps=10, total_steps=110) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1
    assert factors[60] == pytest.approx(0.5)
    assert 0 < factors[-1] < 0.001
    assert warmup_cosine(110, warmup_steps=10, total_steps=110) == 0
    assert warmup_cosine(999, warmup_steps=10, total_steps=110) == 0
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))


def test_warmup_cosine_is_torchs_annealing():
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for step in range(8):
        expected = schedule.get_last_lr()[0]
        assert warmup_cosine(step, warmup_steps=0, total_steps=7) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        schedule.step()


def test_all_warmup_and_no_warmup_are_defined():
    assert [warmup_cosine(s, warmup_steps=3, total_steps=3) for s in range(3)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert warmup_cosine(0, warmup_steps=0, total_steps=1) == 1


@pytest.mark.parametrize("milestones", [(2, 6), (1,), (), (3, 3)])
def test_multistep_is_torchs(milestones):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=list(milestones), gamma=0.3)
    for epoch in range(9):
        expected = schedule.get_last_lr()[0]
        assert multistep(epoch, milestones=milestones, gamma=0.3) == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        schedule.step()


def test_a_schedule_by_its_name():
    given = {"epochs": 4, "warmup_epochs": 1.0, "milestones": (1, 3), "gamma": 0.1}
    cosine = Schedule(FinetuneTrainConfig(schedule="cosine", **given), 5)
    drops = Schedule(PretrainTrainConfig(schedule="multistep", **given), 5)
    assert [cosine.at(step) for step in range(20)] == [
        warmup_cosine(step, warmup_steps=5, total_steps=20) for step in range(20)
    ]
    # By whole epochs, and no warm-up.
    assert [drops.at(step) for step in range(20)] == pytest.approx([1.0] * 5 + [0.1] * 10 + [0.01] * 5)
    assert [cosine.warms_up(epoch) for epoch in range(3)] == [True, False, False]
    assert not drops.warms_up(0)


@pytest.mark.parametrize(("warmup", "epochs", "warned"), [(3.0, 4, False), (4.0, 4, True), (10.0, 4, True)])
def test_a_warm_up_without_room_for_the_peak_is_warned_of(warmup, epochs, warned):
    settings = {"warmup_epochs": warmup, "epochs": epochs}
    text = Schedule(PretrainTrainConfig(**settings), 5).warning() or ""
    assert ("train.warmup_epochs" in text and f"={warmup:g} " in text and f"={epochs}:" in text) == warned
    assert Schedule(PretrainTrainConfig(schedule="multistep", **settings), 5).warning() is None
