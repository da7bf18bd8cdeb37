"""A checkpoint without a run behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sscl.config import PretrainConfig
from sscl.models.checkpoint import Checkpoint, build_checkpoint
from sscl.models.encoders import Encoder


@pytest.fixture(scope="session")
def checkpoint_of() -> Callable[[Encoder], Checkpoint]:
    """Return a function that gives the checkpoint of a pretrain run with this encoder."""

    def made(encoder: Encoder) -> Checkpoint:
        model = {"name": encoder.name, "stem": encoder.stem, "output_stride": encoder.output_stride}
        blank = build_checkpoint(
            PretrainConfig.model_validate({"run": "r", "data": {"root": "d", "size_px": 28}, "model": model}),
            mean=(0.1,) * 3,
            std=(0.2,) * 3,
            pooling=encoder.pooling,
            classes=("HP", "SSA"),
            lineage=(),
            fingerprint="f",
            precision="fp32",
        )
        return replace(blank, encoder=encoder.state_dict())

    return made
