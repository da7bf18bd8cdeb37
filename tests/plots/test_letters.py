"""Letters that matplotlib's font lacks: in a font of the system that has them, else as escapes, and never as boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sscl import fonts
from sscl.plots import base, svg

SERIF = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"
OF_SERIF = "\u1d15"  # which DejaVu Sans lacks


def test_letters_of_no_font_are_escapes_of_which_none_is_cut_from_its_name(tmp_path: Path) -> None:
    assert fonts.lettering("腺/b") == (r"\u817a/b", None)
    assert base.plain("腺$b", 5) == r"\u…\$b"
    assert max(map(len, base.wrapped("腺" * 9).split("\n"))) <= 18
    letters: dict[str, str] = {}

    def draw(path: Path) -> None:
        letters["page"] = base.plain("腺")
        figure = Figure()
        figure.suptitle(letters["page"])
        base.save_figure(figure, path)

    assert "腺" in svg.inline(draw, prefix="a")  # the browser has a font
    assert letters["page"] == "腺"


def test_a_font_of_the_system_is_taken_where_it_has_all_letters(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(fonts, "OF_SYSTEMS", ("not there.ttf", str(SERIF)))
    fonts._of_this_system.cache_clear()
    try:
        assert fonts.lettering(f"a {OF_SERIF}") == (f"a {OF_SERIF}", str(SERIF))
        assert fonts.lettering(f"腺{OF_SERIF}") == (rf"\u817a\u{ord(OF_SERIF):x}", None)
        figure = Figure()
        axes = figure.subplots()
        axes.set_xticks([0, 1], [base.plain(OF_SERIF), "b"])
        base.save_figure(figure, tmp_path / "a.png")
        files = [text.get_fontproperties().get_file() for text in axes.get_xticklabels()]
        assert files == [str(SERIF), None]
    finally:
        fonts._of_this_system.cache_clear()
