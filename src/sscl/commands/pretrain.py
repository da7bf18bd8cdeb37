"""sscl pretrain: contrastive pretraining (SimCLR with NT-Xent)."""

from __future__ import annotations

from sscl import ranks, run
from sscl.config import PretrainConfig
from sscl.device import pick_device
from sscl.train.pretrain import pretrain


def main(config: PretrainConfig, *, overwrite: bool = False, resume: bool = False) -> None:
    """Pretrain an encoder and write a run folder; under torchrun as one of its ranks."""
    device = pick_device(config.device, local_rank=ranks.local_rank())
    with ranks.group(device, timeout_minutes=config.train.timeout_minutes), run.holding(config.run):
        pretrain(config, device=device, overwrite=overwrite, resume=resume)
