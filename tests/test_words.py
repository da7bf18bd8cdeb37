"""Words that many messages share."""

from __future__ import annotations

import doctest

from sscl import words


def test_the_examples_run():
    assert doctest.testmod(words).attempted >= 7
    assert doctest.testmod(words).failed == 0


def test_long_names_stay_apart_and_a_table_knows_wide_letters():
    names = [f"{'a' * 100}{i}{'b' * 100}" for i in range(3)] + ["c"]
    short = words.short_names(names, 20)
    assert len(set(short)) == 4
    assert short[3] == "c"
    assert max(map(len, short)) == 24
    assert [words.width_of(text) for text in ("腺腫", "A\u0308rzte", "c")] == [4, 5, 1]
    assert words.right("腺腫", 5) == " 腺腫"
    assert words.left("c", 3) == "c  "


def test_the_nearest_name_is_suggested_and_all_are_named_where_none_is_near():
    assert words.nearest("epoch", ["epochs", "batch_size"]) == "did you mean epochs?"
    assert words.nearest("zzz", ["epochs", "batch_size"]) == "allowed are epochs, batch_size"
