"""Records come back as they were written; anything else in the file is one line."""

from __future__ import annotations

import json
import os

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
        ("[" * 100_000, "not JSON"),
        ('{"name": "\\ud800", "value": 1}', "not JSON"),
        ('{"name": "a", "value": NaN}', "not JSON"),
        ('{"name": "a", "value": 1e999}', "not JSON"),
        ('{"name": "a", "value": 99999999999999999999999}', "not JSON"),
        ('{"name": "a", "value": ' + "9" * 5000 + "}", "not JSON"),
        ('{"name": "a", "value": 1}\0', "not JSON"),
        ('{"name": "a", "value": "' + "x" * 5000 + '"}', "value: "),
        ('{"a\\nb": 1, "name": "a", "value": 1}', r"a\nb: "),
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
    assert len(line) < 1000


def test_what_is_no_file_of_text_is_one_line(tmp_path):
    file = tmp_path / "score.json"
    with pytest.raises(FileNotFoundError, match=r"score\.json.*sscl eval"):
        read_record(Score, file, made_by="sscl eval")
    file.mkdir()
    with pytest.raises(ValueError, match=r"score\.json: "):
        read_record(Score, file, made_by="sscl eval")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"pipe: "):  # nobody waits for its writer
            read_record(Score, tmp_path / "pipe", made_by="sscl eval")


def test_other_forms_of_text_are_read(tmp_path):
    file = tmp_path / "score.json"
    file.write_bytes(b"\xef\xbb\xbf" + rb'{"name": "\ud83d\ude00", "value": 1}')
    assert read_record(Score, file, made_by="sscl eval").name == "\N{GRINNING FACE}"


def test_no_number_is_refused():
    with pytest.raises(ValueError, match="value"):
        Score(name="accuracy", value=float("nan"))
