from __future__ import annotations

import dataclasses

from sscl import config
from sscl.augment import Augmentation
from sscl.config import PretrainConfig, load_config, training

NEEDED = ("run=r", "data.root=d")


def test_augmentation_has_the_same_fields_and_defaults():
    theirs = {field.name: field.default for field in dataclasses.fields(Augmentation)}
    assert {name: field.default for name, field in config.AugmentConfig.model_fields.items()} == theirs
    # Training with labels has other defaults, but no other keys.
    assert list(config.FinetuneAugmentConfig.model_fields) == list(config.AugmentConfig.model_fields)
    assert Augmentation(**load_config(PretrainConfig, overrides=NEEDED).augment.model_dump()) == Augmentation()


def test_names_of_encoders_are_those_that_can_be_built():
    from sscl.models import encoders

    assert set(training.ENCODERS) == set(encoders.ENCODERS)
