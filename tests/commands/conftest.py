"""Tiny tiles and tiny runs that the tests of the commands share; every command is called as `sscl.cli.main`."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sscl.cli import main
from sscl.data.synthetic import write_synthetic
from sscl.models.torch_files import read_torch_file

Context = Callable[[], AbstractContextManager[None]]
SIZE_PX = 32
ENCODER = "timm:test_resnet"  # the encoder of every run that names no other: 0.4 M parameters, 96 features


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str


class Cli:
    """The command line, called in this process; the methods add the keys that keep a run tiny."""

    def __init__(self, tiles: Path) -> None:
        self.tiles = tiles

    def __call__(self, *words: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
        return Result(code, out.getvalue(), err.getvalue())

    def pretrain(self, run: Path, *words: object) -> Result:
        tiny = ["train.batch_size=12", "train.epochs=1", "train.warmup_epochs=1", "health.tiles=8"]
        common = self._common()
        if any(str(word).startswith("data=") for word in words):  # a list of sources replaces all of it
            common = [word for word in common if not word.startswith("data.")]
        return self("pretrain", f"run={run}", *common, *tiny, *words)

    def finetune(self, run: Path, *words: object) -> Result:
        return self("finetune", f"run={run}", *self._common(), "train.batch_size=12", "train.epochs=1", *words)

    def evaluate(self, checkpoint: Path, *words: object) -> Result:
        tiny = ["progress=false", "device=cpu"]
        return self("eval", f"checkpoint={checkpoint}", *tiny, *words)

    def gradcam(self, checkpoint: Path, *words: object) -> Result:
        return self("gradcam", f"checkpoint={checkpoint}", "progress=false", "device=cpu", *words)

    def _common(self) -> list[str]:
        data = [f"data.root={self.tiles}", "data.source=mhist", "data.published=false", f"data.size_px={SIZE_PX}"]
        return [*data, f"model.name={ENCODER}", "progress=false", "log.every_seconds=0", "device=cpu"]


@pytest.fixture(scope="session", autouse=True)
def own_cache_and_one_thread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep decoded tiles out of the user's cache; one thread, so that equal runs give equal bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSCL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", autouse=True)  # not longer: tests/train estimates
def one_estimate_a_model(estimated_once: Context) -> Iterator[None]:
    """The dry run takes as long as an epoch of a tiny run."""
    with estimated_once():
        yield


@functools.lru_cache(maxsize=24)
def content_of(path: str | Path, *_state: int) -> Any:
    return read_torch_file(path)


@pytest.fixture(scope="module", autouse=True)  # not longer: tests/models reads
def one_read_a_file(wrapped: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
    """The runs that tests start from are read again and again: here once, then copied."""

    def read(real: Any, path: str | Path, *, mapped: bool = False) -> Any:
        if not Path(path).is_file():
            return real(path, mapped=mapped)
        state = os.stat(path)
        return copy.deepcopy(content_of(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))

    with wrapped(checkpoint_content=read, weights_content=read):
        yield


@pytest.fixture(scope="module", autouse=True)  # not longer: other folders of tests draw
def blank(blank_pictures: None) -> None:
    """Rendering took two thirds of a tiny run; tests/plots renders the charts."""


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 synthetic tiles of 32 px: 32 train on 4 slides, 16 test on 2 slides."""
    root = tmp_path_factory.mktemp("tiles") / "polyps"
    write_synthetic(root, count=48, size_px=SIZE_PX, workers=1)
    return root


@pytest.fixture(scope="session")
def cli(tiles: Path) -> Cli:
    return Cli(tiles)


@pytest.fixture(scope="session")
def folder3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with train/ and test/ of three classes, told apart by colour, without groups."""
    root = tmp_path_factory.mktemp("folder3") / "colours"
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 5)):
        for channel, name in enumerate(("benign", "cancer", "stroma")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 150, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
                pixels[..., channel] += 100
                Image.fromarray(pixels).save(folder / f"{name}_{index}.png")
    return root


@pytest.fixture(scope="session")
def folder3_words(folder3: Path) -> list[str]:
    return [f"data.root={folder3}", "data.source=folder"]


@pytest.fixture(scope="session")
def pretrained(cli: Cli, blank_drawing: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrain run of 4 epochs."""
    run = tmp_path_factory.mktemp("runs") / "pretrain"
    with blank_drawing():  # session fixtures come before `blank`
        result = cli.pretrain(run, "train.epochs=4")
    assert result.code == 0, result.err
    assert result.out.endswith(f"\nnext: sscl finetune LABELLED_TILES from={run} run={run}-classifier\n")
    return run


@pytest.fixture(scope="session")
def finetuned(cli: Cli, pretrained: Path, blank_drawing: Context, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finetune run of 3 epochs from the pretrain run, HP against SSA."""
    run = tmp_path_factory.mktemp("runs") / "finetune"
    with blank_drawing():
        result = cli.finetune(run, f"model.weights={pretrained}", "train.epochs=3", "train.learning_rate=1e-3")
    assert result.code == 0, result.err
    return run


@pytest.fixture(scope="session")
def finetuned3(
    cli: Cli, folder3_words: list[str], blank_drawing: Context, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finetune run from scratch on the three classes of the image folder."""
    run = tmp_path_factory.mktemp("runs") / "finetune3"
    with blank_drawing():
        result = cli.finetune(run, *folder3_words, "train.epochs=2", "train.learning_rate=1e-3")
    assert result.code == 0, result.err
    return run


@pytest.fixture
def broken(tiles: Path, tmp_path: Path) -> Path:
    """A copy of the tiles for a test to break."""
    return Path(shutil.copytree(tiles, tmp_path / "tiles"))


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], dict[str, str]]:
    """Return a function that gives the digest of every file below a folder, and its folders."""

    def taken(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(folder.rglob("*"))
        }

    return taken


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """Return a function that gives the rows of a run's metrics.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, str]]]:
    """Return a function that gives the rows of a CSV file by column."""

    def read(path: Path) -> list[dict[str, str]]:
        with path.open(newline="") as handle:
            return list(csv.DictReader(handle))

    return read


@pytest.fixture(scope="session")
def differing_tensors() -> Callable[[Any, Any], list[str]]:
    """Return a function that gives the places where two checkpoints' tensors and numbers are not bit-identical."""

    def differ(a: Any, b: Any, place: str = "") -> list[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return [f"{place}: keys"]
            return [where for key in a for where in differ(a[key], b[key], f"{place}/{key}")]
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
            if len(a) != len(b):
                return [f"{place}: length"]
            return [where for i in range(len(a)) for where in differ(a[i], b[i], f"{place}/{i}")]
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
        return [] if same else [place]

    return differ
