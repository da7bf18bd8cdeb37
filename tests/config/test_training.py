from __future__ import annotations

import torch

from sscl.config import AugmentConfig, FinetuneAugmentConfig
from sscl.config.encoders import ENCODERS
from sscl.draws import Augmentation
from sscl.models import build_encoder


def test_fine_tuning_has_the_same_augmentations_as_pretraining():
    assert list(FinetuneAugmentConfig.model_fields) == list(AugmentConfig.model_fields)
    mild = FinetuneAugmentConfig()
    assert Augmentation(**mild.model_dump()).hue == mild.hue


def test_the_defaults_of_the_views_are_those_of_pretraining():
    assert Augmentation(**AugmentConfig().model_dump()) == Augmentation()


def test_every_name_of_an_encoder_can_be_built():
    with torch.device("meta"):
        assert all(build_encoder(name).num_features > 0 for name in ENCODERS)
