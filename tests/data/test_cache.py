"""Numbers kept in the cache: computed once a key, and again when their file is damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sscl.data.cache import cached_outputs


def test_computes_once_for_a_key(tmp_path):
    calls = []

    def compute(value: float) -> torch.Tensor:
        calls.append(value)
        return torch.full((3, 2), value)

    for key, value, expected in ((("a", 1), 1.0, 1.0), (("a", 1), 2.0, 1.0), (("a", 2), 3.0, 3.0)):
        found = cached_outputs(lambda v=value: compute(v), key=key, rows=3, cache_dir=tmp_path / "new")
        assert torch.equal(found, torch.full((3, 2), expected))
    assert calls == [1.0, 3.0]
    assert len(list((tmp_path / "new").iterdir())) == 2  # no temporary file stays


@pytest.mark.parametrize("damage", ["shortened", "empty", "other rows"])
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    cached_outputs(lambda: torch.zeros(4, 2), key=["k"], rows=4, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    if damage == "other rows":
        np.save(file, np.zeros((3, 2), dtype=np.float32))
    else:
        file.write_bytes(file.read_bytes()[: 140 if damage == "shortened" else 0])
    found = cached_outputs(lambda: torch.ones(4, 2), key=["k"], rows=4, cache_dir=tmp_path)
    assert torch.equal(found, torch.ones(4, 2))
    assert np.load(file).shape == (4, 2)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "here"))
    cached_outputs(lambda: torch.zeros(1, 1), key=["k"], rows=1)
    assert len(list((tmp_path / "here").glob("features-*.npy"))) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file: .*features.*cache_dir"):
        cached_outputs(lambda: torch.zeros(1, 1), key=["k"], rows=1, cache_dir=tmp_path / "file")


def test_a_failed_computation_leaves_nothing(tmp_path):
    def fail() -> torch.Tensor:
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        cached_outputs(fail, key=["k"], rows=1, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
