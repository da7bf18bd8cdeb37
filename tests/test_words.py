"""Words that many messages share."""

from __future__ import annotations

import doctest

from sscl import words


def test_the_examples_run():
    assert doctest.testmod(words).attempted == 6
    assert doctest.testmod(words).failed == 0


def test_the_nearest_name_is_suggested_and_all_are_named_where_none_is_near():
    assert words.nearest("epoch", ["epochs", "batch_size"]) == "did you mean epochs?"
    assert words.nearest("zzz", ["epochs", "batch_size"]) == "allowed are epochs, batch_size"
