from __future__ import annotations

import pytest

from sscl.evaluate.tables import as_markdown, as_text, code, code_block, escaped


def test_tables_are_aligned() -> None:
    lines = [["row", "loss"], ["a", "1.25"], ["longer", ""]]
    assert as_text(lines) == "row     loss\na       1.25\nlonger"
    assert as_markdown(lines) == "| row | loss |\n| --- | ---: |\n| a | 1.25 |\n| longer |  |"


def test_columns_of_text_are_flush_left() -> None:
    lines = [["row", "metric", "p"], ["a", "F1", "0.5"]]
    assert as_text(lines, texts=2) == "row  metric    p\na    F1      0.5"
    assert as_markdown(lines, texts=3).splitlines()[1] == "| --- | --- | --- |"


def test_a_bar_in_a_cell_does_not_divide_it() -> None:
    assert as_markdown([["a|b", "c"]]).splitlines()[0] == r"| a\|b | c |"


@pytest.mark.parametrize(
    ("name", "shown"), [("HP", "`HP`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a\nb", "`a b`"), ("", "`  `")]
)
def test_a_name_is_a_code_span_whatever_is_in_it(name: str, shown: str) -> None:
    assert code(name) == shown


def test_markup_is_escaped_and_fences_are_longer_than_what_they_hold() -> None:
    assert escaped("*a* <b>\n|") == r"\*a\* \<b\> \|"
    assert code_block("sh", ["```"]) == ["````sh", "```", "````"]
