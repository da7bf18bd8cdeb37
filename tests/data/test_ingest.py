"""Tables as spreadsheets write them, and the cache of decoded tiles when files change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sscl.data.folder import load_folder
from sscl.data.ingest import group_ids, read_groups, read_table


@pytest.mark.parametrize(
    "text",
    [
        "path,group\na/1.png,s1\nb.png,s2\n",
        "Path;GROUP;note\r\na/1.png;s1;x,y\r\nb.png;s2;\r\n;;\r\n",
        "sep=;\npath;group\na/1.png;s1\nb.png;s2\n",
        'group\tpath\n" s1 "\t"a/1.png"\n\ns2\t b.png\n',
        "\ufeffpath , group\na/1.png , s1\nb.png,s2",
    ],
)
def test_a_table_is_read_whatever_separates_its_values(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    rows = read_table(tmp_path / "t.csv", columns=("path", "group"), optional=("split",))
    assert [values for _, values in rows] == [["a/1.png", "s1", ""], ["b.png", "s2", ""]]
    lines = text.splitlines()
    assert all(values[0] in lines[line - 1] for line, values in rows)


def test_faults_of_a_table_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    for text, message in (
        ("path;group\na;b\n\nc\n", "line 4: 1 values, expected 2 as in line 1"),
        ("path,label,Label\na,b,c\n", "line 1: column 'label' comes 2 times; keep one"),
        ("file,label\na,b\n", "line 1: column 'path' is missing, found file, label"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_table(file, columns=("path",), optional=("label",))
    file.write_bytes("path,label\na,b\n".encode("utf-16"))
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_table(file, columns=("path",))


def test_groups_are_found_whatever_way_their_paths_are_written(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("path;group\n.\\A\\1.png;s1 \n./A/2.png; s1\nse\u0301.png;s2\n", encoding="utf-8")
    found = read_groups(tmp_path / "g.csv", ["A/1.png", "A/2.png", "s\u00e9.png"], columns=("path", "group"))
    assert found.tolist() == ["s1", "s1", "s2"]


@pytest.mark.parametrize("pair", [("s1", "S1"), ("1", "1.0"), ("a b", "ab"), ("7,0", "7")])
def test_ids_that_may_be_one_slide_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^g.csv: '.*' and '.*' differ only by case, blanks or '.0'"):
        group_ids([*pair, "other"], where="g.csv")
    assert group_ids(["1", " 1", "2\u00a0"], where="g.csv").tolist() == ["1", "1", "2"]


def test_a_file_of_equal_size_and_time_is_decoded_again(tmp_path: Path) -> None:
    """Case 26: rsync -t and cp -p keep the time of the file they copy."""
    file = tmp_path / "set" / "a.bmp"
    file.parent.mkdir()

    def pixel() -> list[int]:
        tiles = load_folder(file.parent, split="all", size_px=32, cache_dir=tmp_path / "cache")
        return [int(value) for value in tiles.images[0, 0, 0]]

    Image.new("RGB", (32, 32), (200, 0, 0)).save(file)
    kept = os.stat(file)
    assert pixel() == [200, 0, 0]
    Image.new("RGB", (32, 32), (0, 0, 200)).save(file)
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert os.stat(file).st_size == kept.st_size
    assert pixel() == [0, 0, 200]
