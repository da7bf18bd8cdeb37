"""Records come back as they were written; anything else in the file is one line."""

from __future__ import annotations

import json

import pytest

from sscl.records import Record, read_record, write_record


class Score(Record):
    name: str
    value: float | None
    interval: tuple[float, float] | None = None


def test_a_record_comes_back(tmp_path):
    score = Score(name="accuracy", value=0.5, interval=(0.25, 0.75))
    write_record(tmp_path / "score.json", score)
    assert read_record(Score, tmp_path / "score.json", made_by="sscl eval") == score


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"name": "accuracy"}', "value: "),
        ('{"name": "accuracy", "value": "much"}', "value: "),
        ('{"name": "accuracy", "value": 1, "other": 2}', "other: "),
        ("{", "not JSON"),
        (json.dumps([1]), "the file: "),
    ],
)
def test_a_damaged_file_is_one_line(text, said, tmp_path):
    file = tmp_path / "score.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        read_record(Score, file, made_by="sscl eval")
    line = str(error.value)
    assert line.startswith(f"{file}: {said}")
    assert line.endswith("sscl eval")
    assert "\n" not in line


def test_no_number_is_refused():
    with pytest.raises(ValueError, match="value"):
        Score(name="accuracy", value=float("nan"))
