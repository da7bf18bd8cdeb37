"""How a pretrained encoder is trained on: LoRA, which other keys of `train` it excludes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from sscl.config.sections import Listed, Section, fault, setting

LAYER_DECAY = (
    "factor on the learning rate from each block of the encoder to the one before it, so that the first layers change "
    "least; 1 = one rate for all"
)
CHECKPOINTING = (
    "keep only the input of each block of the encoder and compute the rest again in the backward pass: the same "
    "gradients in far less memory, for the time of another forward pass"
)


class LoraConfig(Section):
    """LoRA, for transformers: the encoder is frozen, and a small matrix beside each of some layers is trained."""

    rank: int | None = setting(None, "rank of these matrices, as in 8; null = no LoRA", ge=1, le=4096)
    alpha: float = setting(16.0, "scale: their product is multiplied by alpha / rank", gt=0, le=1e6)
    targets: Annotated[tuple[str, ...], Field(min_length=1), Listed] = setting(
        ("qkv", "proj"),
        "layers that get one, by the end of their names; in timm's transformers: qkv, proj, fc1, fc2",
    )

    @model_validator(mode="after")
    def _has_a_rank(self) -> LoraConfig:
        given = [key for key in ("alpha", "targets") if key in self.model_fields_set]
        if "" in self.targets:
            raise fault("targets", "must be names of layers, as in qkv, got ''")
        if self.rank is None and given and self != LoraConfig():
            raise fault(given[0], "needs train.lora.rank, as in train.lora.rank=8; without it there is no LoRA")
        return self


Lora = Annotated[LoraConfig, BeforeValidator(lambda value: {} if value is None else value)]  # null: none


def check_adaptation(
    lora: LoraConfig,
    *,
    layer_decay: float,
    checkpointing: bool,
    optimizer: str,
    frozen: bool = False,
    compiled: bool = False,
) -> None:
    """Raise the fault of a key of `train` that does not go with the others."""
    if lora.rank is not None and optimizer == "lars":
        raise fault(
            "optimizer",
            "must be adamw or sgd with train.lora, got 'lars', which scales each step by the size of the weights: "
            "those of LoRA begin at 0",
        )
    if checkpointing and compiled:
        raise fault("compile", "must be false with train.gradient_checkpointing, got true; choose one of them")
    used = {"lora": lora.rank is not None, "layer_decay": layer_decay < 1, "gradient_checkpointing": checkpointing}
    for key, on in used.items():
        if frozen and on:
            raise fault(key, "must be left out with train.freeze_encoder=true, which trains nothing of the encoder")
