"""Commands that are killed, stopped, met by a second one, or run out of disk: what is left, and what comes next."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torturing import state
from torturing.child import Done, Running, run
from torturing.poison import Random
from torturing.trials import Material, Trial, rng_of

ENDED = "has ended"  # of a training that is to be resumed


@dataclass
class Known:
    """What an undisturbed run of a trial gives: the steps it takes, its seconds, and what lies there after it."""

    steps: int
    seconds: float
    old: dict[str, str]
    new: dict[str, str]
    all: dict[str, str]


class Disturbed:
    """A part whose inputs are trials, disturbed in one way at a moment that the seed draws.

    Args:
        name: of the part. material: what the commands read.
    """

    memory: int | None = None  # no limit

    def __init__(self, name: str, material: Material, trials: list[Trial]) -> None:
        self.name, self.number = name, NUMBERS[name]
        self.material = material
        self.trials = [trial for trial in trials if self._applies(trial)]
        self._known: dict[str, Known] = {}

    def _applies(self, trial: Trial) -> bool:
        return self.name != "two" or trial.words[:2] != ("data", "synth")

    def prepare(self) -> None:
        """Nothing: what a trial gives undisturbed is found out when it is first needed."""

    def row(self, index: int) -> str:
        """Return the row of the table that an input belongs to."""
        return f"{self.name}: {self.trials[index % len(self.trials)].name}"

    def limit(self, index: int) -> float | None:
        """Return None: the commands have their own limit."""
        return None

    def try_one(self, index: int, seed: int, folder: Path) -> str | None:
        """Disturb a trial; return what went wrong, None if nothing did."""
        trial = self.trials[index % len(self.trials)]
        known = self._reference(trial, folder)
        with self._sandbox(trial, folder) as box:
            ways = {"kill": self._kill, "moment": self._moment, "two": self._two, "disk": self._disk}
            return ways[self.name](trial, known, box, rng_of(seed, self.number, index))

    # --- the ways ---

    def _kill(self, trial: Trial, known: Known, box: Path, rng: Random) -> str | None:
        step = int(rng.integers(known.steps))
        done = run(trial.line, box, at=step)
        where = done.steps[step] if step < len(done.steps) else "the end"
        return self._said(f"killed before step {step} ({where})", self._after(trial, known, box, done))

    def _moment(self, trial: Trial, known: Known, box: Path, rng: Random) -> str | None:
        number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[int(rng.integers(4))]
        command = Running(trial.line, box)
        seconds = float(rng.uniform(0.0, 1.1 * known.seconds))
        time.sleep(seconds)
        command.signal(number)
        done = command.end()
        name = signal.Signals(number).name
        wrong = self._after(trial, known, box, done)
        if "Traceback" in done.err:
            wrong = f"traceback: {done.last}"
        if done.code not in (0, -number, 130 if number == signal.SIGINT else 128 + number):
            wrong = f"exit code {done.code}: {done.last}"
        return self._said(f"{name} after {seconds:.2f} s", wrong)

    def _two(self, trial: Trial, known: Known, box: Path, rng: Random) -> str | None:
        step = int(rng.integers(known.steps))
        first = Running(trial.line, box, at=step, action="stop")
        if not first.stopped():
            return self._said("", f"ended early: {first.end().last}")
        other = run(trial.again(box) if trial.resumes else [*trial.words, f"{trial.into}={trial.out}"], box)
        first.signal(signal.SIGCONT)
        done = first.end()
        what = f"a second one while the first stood before step {step}"
        for which, code, text in (("first", done.code, done.err), ("second", other.code, other.err)):
            if code not in (0, 2) or "Traceback" in text or (code == 2 and len(text.splitlines()) != 1):
                return self._said(what, f"the {which}: exit code {code}: {text.strip()[-300:]}")
        if done.code != 0 and other.code != 0:
            return self._said(what, f"both were refused: {done.last}; {other.last}")
        return self._said(what, self._whole(trial, known, box))

    def _disk(self, trial: Trial, known: Known, box: Path, rng: Random) -> str | None:
        how = int(rng.integers(3))
        if how == 0:
            step = int(rng.integers(known.steps))
            done = run(trial.line, box, at=step, action="full")
            what = f"disk full from step {step} ({done.steps[step] if step < len(done.steps) else 'the end'})"
        elif how == 1:
            most = int(10 ** rng.uniform(0, 6.3))
            done = run(trial.line, box, file_bytes=most)
            what = f"files limited to {most} bytes"
        else:
            return self._small_disk(trial, known, box, rng)
        return self._said(what, self._full(trial, known, box, done))

    def _small_disk(self, trial: Trial, known: Known, box: Path, rng: Random) -> str | None:
        """A file system that is nearly full: filled by a file until so many bytes are left."""
        left = int(10 ** rng.uniform(3, 6.5)) // 4096 * 4096
        disk = box.with_name("disk")
        disk.mkdir(exist_ok=True)
        if not _mount(disk):
            return None
        try:
            shutil.copytree(box, disk, symlinks=True, dirs_exist_ok=True)
            free = shutil.disk_usage(disk).free
            with (disk / "filler").open("wb") as handle, contextlib.suppress(OSError):
                left_over = free - left
                while left_over > 0:
                    left_over -= handle.write(b"\0" * min(left_over, 2**20))
            done = run(trial.line, disk)
            (disk / "filler").unlink()
            return self._said(f"a disk with {left} bytes left", self._full(trial, known, disk, done))
        finally:
            _unmount(disk)

    # --- what must hold ---

    def _full(self, trial: Trial, known: Known, box: Path, done: Done) -> str | None:
        """Return what is wrong after a command met a full disk."""
        if done.code == 0:
            return self._whole(trial, known, box)
        lines = done.err.splitlines()
        if done.code is None:
            return "hangs"
        if done.code != 2 or "Traceback" in done.err:
            return f"exit code {done.code}: {done.last[:300]}"
        if len(lines) != 1:
            return f"{len(lines)} lines: {done.err[:300]}"
        if "/" not in lines[0] and not any(part in lines[0] for part in (trial.out, "runs", "cache", "made")):
            return f"names no file: {lines[0]}"
        if left := state.temporaries(box):
            return f"left {left[0]}"
        return self._after(trial, known, box, done)

    def _after(self, trial: Trial, known: Known, box: Path, done: Done) -> str | None:
        """Return what is wrong with what a command left that was ended, and with what comes next."""
        if done.code is None:
            return f"hangs: {done.err[-500:]}"
        if done.orphans:
            return "processes of it go on"
        for line in state.unreadable(box / "runs"):
            return line
        now = state.digest(box / trial.out)
        if wrong := self._neither(trial, known, now, box):
            return wrong
        again = trial.again(box)
        next_one = run(again, box)
        if next_one.code == 2 and ENDED in next_one.last and "--resume" in again:  # nothing is left to do
            again = [*trial.line[: -1 if trial.resumes else None], *(["--overwrite"])]
            again = [word for word in again if word != "--resume"]
            next_one = run(list(dict.fromkeys(again)), box)
        kept = not trial.replaces and now == known.new and next_one.code == 2  # whole, and never replaced
        if next_one.code != 0 and not kept:
            return f"then {again[-1]}: exit code {next_one.code}: {next_one.err.strip()[-400:]}"
        return self._whole(trial, known, box)

    def _neither(self, trial: Trial, known: Known, now: dict[str, str], box: Path) -> str:
        """Return in words that what lies there is neither the old result nor the new; empty if it is one of them."""
        if now in (known.old, known.new) or (trial.trains and not known.old):
            return ""
        if trial.trains:  # a run grows; nothing of the run before may be in it
            other = {name for name in now.keys() & known.old.keys() if now[name] == known.old[name]}
            mixed = now.get("config.yaml") == known.new.get("config.yaml") and not trial.resumes
            strange = sorted(name for name in other if mixed and known.old[name] != known.new.get(name))
            return f"the new run holds the old one's {strange[0]}" if strange else ""
        beside = (box / trial.out).parent.glob(f".{Path(trial.out).name}.*")
        if not now and (not known.old or any(state.digest(place) == known.old for place in beside)):
            return ""
        if not now:
            return "the old result is gone"
        return f"neither the old nor the new result: {state.difference(now, known.new)}"

    def _whole(self, trial: Trial, known: Known, box: Path) -> str | None:
        """Return what is not as after an undisturbed run."""
        if left := state.temporaries(box):
            return f"stays: {', '.join(left[:3])}"
        for line in state.unreadable(box / "runs"):
            return line
        wrong = state.difference(_results(box), known.all)
        return f"another result than undisturbed: {wrong}" if wrong else None

    @staticmethod
    def _said(what: str, wrong: str | None) -> str | None:
        return None if wrong is None else f"{what}: {wrong}"

    # --- the folder ---

    @contextlib.contextmanager
    def _sandbox(self, trial: Trial, folder: Path) -> Iterator[Path]:
        """Give a folder in which the trial can be run; results of another setting are there if it replaces them."""
        top = Path(tempfile.mkdtemp(dir=folder))
        try:
            box = top / "box"
            box.mkdir()
            self.material.sandbox(box, trial)
            if trial.old:
                kept = folder / f"old-{trial.name.replace(' ', '_')}"
                if not kept.exists():
                    done = run([*trial.old, f"{trial.into}={trial.out}"], box)
                    if done.code != 0:
                        raise RuntimeError(f"{trial.name}: {done.err}")
                    shutil.copytree(box, kept, symlinks=True)
                else:
                    shutil.rmtree(box)
                    shutil.copytree(kept, box, symlinks=True)
            yield box
        finally:
            shutil.rmtree(top, ignore_errors=True)

    def _reference(self, trial: Trial, folder: Path) -> Known:
        """Return what the trial gives undisturbed; it is run once in each worker."""
        if trial.name not in self._known:
            with self._sandbox(trial, folder) as box:
                old = state.digest(box / trial.out)
                began = time.monotonic()
                done = run(trial.line, box)
                if done.code != 0:
                    raise RuntimeError(f"{trial.name}: {done.code} {done.err}")
                seconds = time.monotonic() - began
                self._known[trial.name] = Known(
                    len(done.steps), seconds, old, state.digest(box / trial.out), _results(box)
                )
        return self._known[trial.name]


WAYS = {"kill": 200, "moment": 60, "two": 40, "disk": 80}  # how many inputs
NUMBERS = {name: 101 + place for place, name in enumerate(WAYS)}


def _results(box: Path) -> dict[str, str]:
    """Return all that commands wrote in a folder; of the cache the names alone."""
    found = {f"runs/{name}": said for name, said in state.digest(box / "runs").items()}
    found |= {f"made/{name}": said for name, said in state.digest(box / "made").items()}
    cache = box / "cache"
    return found | {f"cache/{name}": "" for name in state.files_of(cache)}


def _mount(folder: Path) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mount(b"torture", str(folder).encode(), b"tmpfs", 0, b"size=128m") == 0)


def _unmount(folder: Path) -> None:
    ctypes.CDLL(None).umount2(str(folder).encode(), 2)  # MNT_DETACH
