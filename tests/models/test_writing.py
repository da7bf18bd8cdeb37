"""Files that cannot be written: one line with the file's name, and nothing half written."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest
import torch

from sscl import writing
from sscl.models.checkpoint import load_checkpoint, save_checkpoint
from sscl.models.encoders import build_encoder
from sscl.train.pace import Writer


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 64 KiB, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 2**10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_stays(tmp_path, checkpoint_of, request):
    path = tmp_path / "checkpoints" / "last.pt"
    save_checkpoint(path, checkpoint_of(build_encoder("timm:test_resnet")))
    before = path.read_bytes()
    request.getfixturevalue("small_files")
    for kept in (True, False):
        with pytest.raises(OSError, match=r"cannot be written .*; free some space") as caught, Writer() as writer:
            writer.put(
                lambda: checkpoint_of(build_encoder("timm:test_resnet")), lambda found: save_checkpoint(path, found)
            )
        assert caught.value.filename == str(path)
        assert ("is kept" in str(caught.value)) == kept
        assert [file.name for file in path.parent.iterdir()] == (["last.pt"] if kept else [])
        if kept:
            assert path.read_bytes() == before
            load_checkpoint(path)
            path.unlink()


def test_other_files_that_do_not_fit_are_named(tmp_path, small_files):
    text = "x" * 10**6
    for write in (
        lambda: writing.write_text(tmp_path / "a.txt", text),
        lambda: writing.write_json(tmp_path / "a.txt", text),
        lambda: writing.write_csv(tmp_path / "a.txt", ["x"], [[text]] * 3),
    ):
        with pytest.raises(OSError, match=r"cannot be written .file too large.; free some space") as caught:
            write()
        assert (caught.value.filename, caught.value.errno) == (str(tmp_path / "a.txt"), errno.EFBIG)
        assert list(tmp_path.iterdir()) == []


def test_only_errors_of_writing_are_renamed(tmp_path):
    for error in (ValueError("a"), RuntimeError("b"), FileNotFoundError("c"), BrokenPipeError(errno.EPIPE, "d")):
        with pytest.raises(type(error)) as caught, writing.naming(tmp_path / "x"):
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError) as missing, writing.naming(tmp_path / "x"):
        os.stat(tmp_path / "other")
    assert missing.value.filename == str(tmp_path / "other")
    with pytest.raises(OSError, match="cannot be written"), writing.naming(tmp_path / "x"):
        raise RuntimeError("[enforce fail at inline_container.cc:863] . PytorchStreamWriter failed writing file data/3")


def test_torch_still_says_so_in_these_words(tmp_path, small_files):
    with pytest.raises(RuntimeError) as caught:
        torch.save({"a": torch.zeros(10**5)}, tmp_path / "a.pt")
    assert writing.TORCH_WRITE_FAILED.search(str(caught.value))
