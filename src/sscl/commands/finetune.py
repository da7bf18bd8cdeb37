"""sscl finetune: train a classifier with labels, or cross-validate it."""

from __future__ import annotations

from sscl import run
from sscl.config import FinetuneConfig
from sscl.train.finetune import train_classifier


def main(config: FinetuneConfig, *, overwrite: bool = False, resume: bool = False) -> None:
    """Train a classifier and write a run folder with its best checkpoint, chosen on validation; or one a fold.

    Under torchrun this process is one of its ranks.
    """
    if config.train.folds is not None:
        from sscl.train import folds  # with matplotlib, which would delay the first step of a run without folds

        with run.holding(config.run):
            folds.cross_validate(config, overwrite=overwrite, resume=resume)
    else:
        train_classifier(config, overwrite=overwrite, resume=resume)
