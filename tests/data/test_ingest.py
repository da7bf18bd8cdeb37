"""Tables as spreadsheets write them, and the cache of decoded tiles when files change."""

from __future__ import annotations

import codecs
import gzip
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from sscl.data.csv_files import read_table
from sscl.data.folder import load_folder
from sscl.data.ingest import group_ids, read_groups


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
        ("path;group\na;b\n\nc\n", "line 4: 1 values, expected 2 as in the header"),
        ("sep=,\nfile,label\na,b\n", "line 2: column 'path' is missing, found file, label"),
        ("path,label,Label\na,b,c\n", "line 1: column 'label' comes 2 times; keep one"),
        ("file,label\na,b\n", "line 1: column 'path' is missing, found file, label"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_table(file, columns=("path",), optional=("label",))


TABLE = "path,group\na.png,s1\nb.png,s2\n"


@pytest.mark.parametrize("content", [TABLE.encode("utf-16"), codecs.BOM_UTF16_BE + TABLE.encode("utf-16-be")])
def test_a_table_in_utf_16_with_its_mark_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    rows = read_table(tmp_path / "t.csv", columns=("path", "group"))
    assert rows == [(2, ["a.png", "s1"]), (3, ["b.png", "s2"])]


def test_ends_of_lines_may_be_mixed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,group\ra.png,s1\r\nb.png,s2\nc.png,s3")
    assert [values[0] for _, values in read_table(tmp_path / "t.csv", columns=("path",))] == ["a.png", "b.png", "c.png"]


NO_TABLES: dict[str, tuple[bytes, str]] = {
    "a long value": (b"path,group\na.png," + b"x" * 200_000 + b"\n", "line 2: a value has more than 131,072"),
    "a long line": (b"path,group\n" + b"," * 2**21, "line 2: has more than 1,048,576 characters"),
    "many columns": (b"p," * 100_000, "line 1: column 'path' is missing"),
    "a NUL": (b"path,group\na.png\0,s1\n", "line 2: has a NUL"),
    "UTF-16 without its mark": (TABLE.encode("utf-16-le"), "line 1: has a NUL"),
    "half of UTF-16": (TABLE.encode("utf-16")[:-1], "is not a CSV file in UTF-8"),
    "Latin 1": ("path,group\n\xe4.png,s1\n".encode("latin-1"), "is not a CSV file in UTF-8"),
    "an open quote": (b'path,group\na.png,"s1\nb.png,s2\n', "line 3: a quote is not closed"),
    "two quotes": (b'path,group\na.png,"s1\nb.png,s2"\n', "line 3: column 'group' has a line break"),
    "zeros": (bytes(5000), "line 1: has a NUL"),
    "Excel": (b"PK\3\4" + bytes(26) + b"[Content_Types].xml" + bytes(90), "is an Excel workbook"),
    "old Excel": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an Excel workbook"),
    "gzip": (gzip.compress(TABLE.encode()), "is a gzip file"),
    "nothing": (b"", "is empty"),
    "a mark": (codecs.BOM_UTF8, "is empty"),
    "blank lines": (b"\n\n\n", "is empty"),
}


@pytest.mark.parametrize("what", NO_TABLES)
def test_what_is_no_table_is_said_in_one_short_line(tmp_path: Path, what: str) -> None:
    content, words = NO_TABLES[what]
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_table(file, columns=("path", "group"))
    assert str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_table_is_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    for name in ("pipe.csv", "folder.csv", "loop.csv", "x" * 300, "/dev/zero", "a\0b.csv"):
        with pytest.raises(ValueError, match=r"named pipe|folder|symbolic links|too long|device|NUL"):
            read_table(tmp_path / name, columns=("path",))
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such file"):
        read_table(tmp_path / "none.csv", columns=("path",))


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
