"""Files of others: an error names the file that it is of, and no other that is open."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sscl.reading import opened


def read_and_fail(path: Path) -> None:
    with opened(path) as file:
        assert file.read(4) == b"0123"
        raise OSError(errno.ENOSPC, "full")  # of what is written meanwhile


def read_a_folder(path: Path) -> None:
    with opened(path) as file:
        os.dup2(os.open(path.parent, os.O_RDONLY), file.fileno())
        file.read()


def test_errors_name_the_file_that_is_read_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with pytest.raises(OSError, match="full") as other:
        read_and_fail(tmp_path / "a")
    with pytest.raises(OSError, match="a'") as own:
        read_a_folder(tmp_path / "a")
    assert (other.value.filename, own.value.filename) == (None, str(tmp_path / "a"))
    with opened(tmp_path / "a") as file:
        assert (file.read(), file.seek(2), file.read(1)) == (b"0123456789", 2, b"2")
