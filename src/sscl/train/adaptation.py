"""How an encoder is trained on, see `config.adaptation`: LoRA, gradient checkpointing, statistics that are kept."""

from __future__ import annotations

from torch import nn

from sscl.config import FinetuneConfig, PretrainConfig
from sscl.config.encoders import RANDOM
from sscl.models.batch_norm import keep_batch_statistics
from sscl.models.blocks import checkpoint_blocks
from sscl.models.encoders import Encoder
from sscl.models.lora import add_lora, described
from sscl.words import wrapped


def adapt_encoder(encoder: Encoder, config: PretrainConfig | FinetuneConfig, *, size_px: int) -> None:
    """Freeze an encoder but for its LoRA, and let it keep less for the backward pass, as the settings say; in place.

    Raises:
        ValueError: the encoder has no layers of such names, or its blocks are not known.
    """
    train, lora = config.train, config.train.lora
    if lora.rank is not None:
        add_lora(encoder, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, size_px=size_px)
        print(wrapped(described(encoder, lora.targets)))
        if config.model.weights in RANDOM:
            print("warning: train.lora keeps the encoder's weights, and these are random; give model.weights")
    if train.gradient_checkpointing:
        checkpoint_blocks(encoder)


def hold_statistics(encoder: nn.Module, config: PretrainConfig | FinetuneConfig) -> None:
    """Have batch norms of an encoder in training keep the statistics of its weights, where the settings say so."""
    if config.train.freeze_batch_norm or config.train.lora.rank is not None:
        keep_batch_statistics(encoder)
