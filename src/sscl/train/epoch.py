"""What an epoch gives: means over the steps of pretraining, losses that must be finite, and the summary at the end.

S sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sscl.config import PretrainConfig
from sscl.metrics_log import MetricsRow
from sscl.models.calibration import KeptCalibration
from sscl.train.health import knn_verdict
from sscl.train.objectives import OBJECTIVES
from sscl.train.pace import Pace
from sscl.words import next_command, say_next, wrapped

STOPPED = "stopped early (train.stop_after_epoch); continue with --resume"


@dataclass(frozen=True)
class EpochMeans:
    """Means over the steps and ranks of an epoch.

    Attributes:
        loss: of all tiles. by_source: of each source that had tiles in the epoch; empty for one source.
        positive, negative: cosine similarity of the pairs, and of all other views.
        learning_rate: of the last step. seconds: that the epoch took. tiles: that were trained on.
    """

    loss: float
    by_source: dict[str, float]
    positive: float
    negative: float
    learning_rate: float
    seconds: float
    tiles: int


def losses_by_source(per_source: torch.Tensor, config: PretrainConfig) -> dict[str, float]:
    """Return the mean loss of each source's tiles from sums of loss and tiles, (2, S); empty for one source."""
    if len(config.data) == 1:
        return {}
    sums, tiles = per_source.tolist()
    return {
        f"loss_{i}_{Path(source.root).resolve().stem}": sums[i] / tiles[i]
        for i, source in enumerate(config.data)
        if tiles[i]
    }


def check_finite(loss: float, *, epoch: int, step: int, folder: Path) -> float:
    """Return the loss; raise ValueError, saying what to try, if it is not a finite number."""
    if np.isfinite(loss):
        return loss
    kept = folder / "checkpoints" / "last.pt"
    left = f"{kept} holds epoch {epoch}" if epoch else "no checkpoint yet"
    raise ValueError(
        f"the loss became {loss} in epoch {epoch + 1}, step {step + 1}; lower train.learning_rate, lengthen "
        f"train.warmup_epochs, or set precision=fp32 ({left})"
    )


@dataclass(frozen=True)
class Best:
    """The best epoch of a fine-tuning so far.

    Attributes:
        row: of metrics.jsonl.
        calibration: fitted to its validation logits; on rank 0 alone, which writes it.
    """

    row: MetricsRow
    calibration: KeptCalibration | None

    @property
    def fitted(self) -> KeptCalibration:
        """The calibration, on rank 0."""
        assert self.calibration is not None
        return self.calibration


def check_finite_mean(loss: float, *, epoch: int, best: Best | None, folder: Path, what: str = "") -> None:
    """Raise ValueError, saying what to try, if the mean loss of an epoch of fine-tuning is not a finite number.

    best: the best epoch so far, whose checkpoint is kept; None = no epoch yet.
    """
    if np.isfinite(loss):
        return
    left = f"{folder}/checkpoints/best.pt holds epoch {best.row['epoch']}" if best else "no checkpoint yet"
    raise ValueError(
        f"the {what}loss became {loss} in epoch {epoch + 1}; lower train.learning_rate and train.head_learning_rate, "
        f"or set precision=fp32 ({left})"
    )


def print_summary(rows: list[MetricsRow], folder: Path, *, config: PretrainConfig, pace: Pace, finished: bool) -> None:
    """Print the last epoch's metrics, how the time was spent and what was written."""
    if rows:
        last = rows[-1]
        # A resumed run whose last epoch was trained earlier may not have measured them there.
        rank = f", effective rank {last['effective_rank']:.1f}" if "effective_rank" in last else ""
        knn = f", k-NN balanced accuracy {last['knn_balanced_accuracy']:.3f}" if "knn_balanced_accuracy" in last else ""
        print(
            f"epoch {last['epoch']}: loss {last['loss']:.4f} ({last['loss_relative']:.3f} of "
            f"{OBJECTIVES[config.train.loss].formula}), cosine similarity {last['positive_similarity']:.3f} within "
            f"pairs, {last['negative_similarity']:.3f} between tiles{rank}{knn}"
        )
        said = knn_verdict(last)
        if said is not None:
            print(wrapped(said[1]))
        print(pace.line())
    print(f"wrote {folder}/checkpoints/last.pt, encoder.pt, metrics.jsonl, curves.png")
    if finished:
        say_next("finetune", "LABELLED_TILES", f"from={folder}", f"run={folder}-classifier")
    else:
        print(STOPPED)
        print(next_command("pretrain", folder, "--resume"))
