"""The commands that write, at toy size, and the material that they and the fuzzed files start from."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from torturing.child import run

TINY = ("device=cpu", "progress=false")
DATA = ("data.root=data", "data.size_px=32", "data.published=false")
TRAIN = (*DATA, "model.name=timm:test_resnet", "train.batch_size=8", "train.warmup_epochs=0", "log.every_seconds=1000")
PRETRAIN = ("pretrain", *TRAIN, "train.epochs=2", "health.tiles=8", *TINY)
FINETUNE = ("finetune", *TRAIN, "train.epochs=2", "model.weights=runs/pre", *TINY)


@dataclass(frozen=True)
class Trial:
    """A command that is disturbed.

    Attributes:
        name: its row. words: what is typed, without where it writes. out: the folder or file that it writes.
        old: words that make another result there first. needs: results of other commands that it reads.
        resumes: whether it goes on with what `old` left, instead of replacing it.
        into: the key of `out`. cached: whether decoded tiles are there already. slow: whether it starts processes.
    """

    name: str
    words: tuple[str, ...]
    out: str
    old: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    resumes: bool = False
    into: str = "out"
    cached: bool = True
    slow: bool = False

    @property
    def trains(self) -> bool:
        """Whether what it writes is a run, which grows with each epoch."""
        return self.into == "run"

    @property
    def line(self) -> list[str]:
        """The words that are typed."""
        flags = ["--resume"] if self.resumes else ["--overwrite"] if self.old else []
        return [*self.words, f"{self.into}={self.out}", *flags]

    def again(self, folder: Path) -> list[str]:
        """Return what a user types after the command was ended, in the folder in which it ran."""
        plain = [word for word in self.line if not word.startswith("--re") and word != "--overwrite"]
        out = folder / self.out
        if self.trains and (out / "checkpoints" / "last.pt").is_file() and not (self.old and not self.resumes):
            return [*plain, "--resume"]
        there = out.is_file() or (out.is_dir() and any(out.iterdir()))
        return [*plain, "--overwrite"] if there and self.replaces else plain

    @property
    def replaces(self) -> bool:
        """Whether the command takes --overwrite for what is there."""
        return self.words[:2] != ("data", "synth") and "--folds" not in self.words


def _both(name: str, words: tuple[str, ...], out: str, other: str, **more: object) -> list[Trial]:
    """Return a command that writes a new result, and one that replaces the result of another setting."""
    fresh = Trial(name, words, out, **more)  # type: ignore[arg-type]
    return [fresh, Trial(f"{name} --overwrite", words, out, old=(*words, other), **more)]  # type: ignore[arg-type]


def trials() -> list[Trial]:
    """Return all of them."""
    fine, pre = ("runs/fine",), ("runs/pre",)
    resumed = [
        Trial(f"{words[0]} --resume", words, out, (*words, "train.stop_after_epoch=1"), needs, True, "run")
        for words, out, needs in ((PRETRAIN, "runs/new", ()), (FINETUNE, "runs/new", pre))
    ]
    probed = ("sets=[{name: a, root: data, size_px: 32, published: false}]", "label_seeds=[0]", "c_grid=[1]")
    probe = ("probe", "encoders=[{name: a, weights: runs/pre}]", *probed, "fractions=[1.0]")
    folds = ("finetune", *TRAIN, "train.epochs=1", *TINY, "--folds", "2")
    return [
        *_both("pretrain", PRETRAIN, "runs/new", "seed=1", into="run"),
        *_both("finetune", FINETUNE, "runs/new", "seed=1", into="run", needs=pre),
        *resumed,
        Trial("finetune --folds", folds, "runs/folds", into="run"),
        *_both("eval", ("eval", "runs/fine", *TINY), "runs/fine/eval_test", "calibrate=false", needs=fine),
        *_both("gradcam", ("gradcam", "runs/fine", *TINY), "runs/cam", "method=gradcam++", needs=fine),
        *_both(
            "predict",
            ("predict", "runs/fine", "data/images", "panels=2", *TINY),
            "runs/said",
            "abstain=0.5",
            needs=fine,
        ),
        *_both("probe", (*probe, *TINY), "runs/probe", "neighbours=3", needs=pre),
        *_both("embed", ("embed", "runs/pre", *DATA, "methods=[pca]", *TINY), "runs/embed", "seed=1", needs=pre),
        *_both("audit", ("data", "audit", *DATA, *TINY), "runs/audit", "min_cosine=0.99"),
        *_both("export", ("export", "runs/fine"), "runs/export", "what=classifier", needs=fine),
        *_both(
            "report",
            ("report", "runs/fine", "tiles=4", *TINY),
            "runs/report.html",
            "tiles=2",
            needs=("runs/fine", "runs/fine/eval_test"),
        ),
        *_both("inspect", ("data", "inspect", *DATA, "tiles=4", "progress=false"), "runs/look", "seed=1"),
        *_both("compare", ("compare", "runs/fine", "runs/fine2", "progress=false"), "runs/compared",
               "device=cpu", needs=("runs/fine", "runs/fine/eval_test", "runs/fine2", "runs/fine2/eval_test")),
        Trial("synth", ("data", "synth", "count=24", "size_px=32", "progress=false"), "made", into="root"),
        Trial("ingest", ("data", "inspect", *DATA, "tiles=4", "progress=false"), "runs/look", cached=False),
    ]  # fmt: skip


class Material:
    """What was made once: `data`, the cache, and the results that the commands read.

    A folder `sandbox` gives has `data` as a link, so that decoded tiles are found in its copy of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Write it all.

        Raises:
            RuntimeError: a command failed.
        """
        self.folder.mkdir(parents=True)
        (self.folder / "runs").mkdir()
        self.call("data", "synth", "root=data", "count=64", "size_px=32", "progress=false")
        self.call(*PRETRAIN, "run=runs/pre")
        self.call(*FINETUNE, "run=runs/fine")
        self.call(*FINETUNE, "run=runs/fine2", "seed=3")
        self.call("eval", "runs/fine", *TINY)
        self.call("eval", "runs/fine2", *TINY)

    def more(self) -> None:
        """Write a result of every other kind too, for the files that are fuzzed."""
        for trial in trials():
            if not (self.folder / trial.out).exists() and not trial.old:
                self.call(*trial.line)
        if not (self.folder / "runs" / "checked").exists():
            self.call("gradcam", "runs/fine", "out=runs/checked", "checks=true", "check_tiles=4", *TINY)

    def call(self, *words: str) -> None:
        """Run a command in it."""
        done = run(words, self.folder)
        if done.code != 0:
            raise RuntimeError(f"sscl {' '.join(words)}: exit {done.code}\n{done.err[-2000:]}")

    def sandbox(self, folder: Path, trial: Trial) -> None:
        """Fill an empty folder with what a command reads, and what lay where it writes."""
        (folder / "data").symlink_to(self.folder / "data")
        (folder / "runs").mkdir()
        for name in trial.needs:
            hidden = shutil.ignore_patterns("eval_*")
            shutil.copytree(self.folder / name, folder / name, ignore=hidden, dirs_exist_ok=True)
        if trial.cached:
            shutil.copytree(self.folder / "cache", folder / "cache")


def rng_of(*keys: int) -> np.random.Generator:
    """Return the random numbers of an input: of the seed, the part's number and the input's."""
    return np.random.default_rng(keys)
