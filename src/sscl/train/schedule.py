"""The learning rate over a run: its peak, and the factor on it at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sscl.config.training import FinetuneTrainConfig, PretrainTrainConfig


def peak_of(train: PretrainTrainConfig) -> float:
    """Return the peak learning rate of pretraining, scaled to its batch size.

    `linear`: learning_rate * batch_size / 256 (Goyal et al., arXiv:1706.02677); `sqrt`: learning_rate *
    sqrt(batch_size) (SimCLR, App. B.1); `none`: as it is.
    """
    factors = {"linear": train.batch_size / 256, "sqrt": math.sqrt(train.batch_size), "none": 1.0}
    return train.learning_rate * factors[train.learning_rate_scaling]


@dataclass(frozen=True)
class Schedule:
    """The factor on the peak learning rate, at each step of a run.

    Attributes:
        settings: the `train` section: schedule, epochs, and warmup_epochs (cosine) or milestones and gamma (multistep).
        steps_per_epoch: at least 1.
    """

    settings: PretrainTrainConfig | FinetuneTrainConfig
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Return the factor at a step, counted from 0 over the whole run.

        `cosine` rises linearly over `warmup_epochs`, then falls to 0 at the end of `epochs`. `multistep` has no
        warm-up; it is level between its drops at `milestones`.
        """
        train = self.settings
        if train.schedule == "multistep":
            return multistep(step // self.steps_per_epoch, milestones=train.milestones, gamma=train.gamma)
        warmup_steps = round(train.warmup_epochs * self.steps_per_epoch)
        return warmup_cosine(step, warmup_steps=warmup_steps, total_steps=train.epochs * self.steps_per_epoch)

    def warms_up(self, epoch: int) -> bool:
        """Return whether an epoch, counted from 0, ends within the warm-up."""
        return self.settings.schedule == "cosine" and epoch + 1 <= self.settings.warmup_epochs

    def warning(self) -> str | None:
        """Return a line where the warm-up leaves no room for the peak learning rate, else None."""
        train = self.settings
        if train.schedule != "cosine" or train.warmup_epochs < train.epochs:
            return None
        return (
            f"warning: train.warmup_epochs={train.warmup_epochs:g} of train.epochs={train.epochs}: "
            "the learning rate only rises"
        )


def multistep(epoch: int, *, milestones: tuple[int, ...], gamma: float) -> float:
    """Return gamma to the power of the milestones reached: [2, 6] drops after 2 epochs and again after 6.

    Args:
        epoch: epochs that are complete, 0 in the first; as in `torch.optim.lr_scheduler.MultiStepLR`.
    """
    return float(gamma ** sum(milestone <= epoch for milestone in milestones))


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the peak learning rate at a step (from 0): a linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
