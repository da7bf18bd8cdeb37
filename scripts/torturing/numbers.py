"""Numbers that no one means, in configurations that are otherwise right: commands run with them to the end."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sscl import config as configs
from sscl.cli.table import COMMANDS
from sscl.models.checkpoint import load_checkpoint
from torturing import state
from torturing.child import run
from torturing.poison import NUMBERS, Random, pick
from torturing.trials import Material, Trial, rng_of, trials

# Keys that say how much is to be done: many of it take long, which is no fault.
_WORK = re.compile(
    "epoch|samples|tiles|batch|neighbours|iterations|hidden|dim$|size_px|fold|clusters|jobs|count|per_c|steps|patience"
)
_FEW = (-1, 0, 1, 2, 0.5, float("nan"), float("inf"), 10**400)


class Numbers:
    """A part whose inputs are commands with one or two numbers replaced."""

    name, number = "numbers", 9
    memory: int | None = None

    def __init__(self, material: Material) -> None:
        self.material = material
        self.trials = [trial for trial in trials() if not trial.old and "--folds" not in trial.words]

    def prepare(self) -> None:
        """Nothing."""

    def row(self, index: int) -> str:
        """Return the row of the table that an input belongs to."""
        return self.name

    def limit(self, index: int) -> float | None:
        """Return None: the commands have their own limit."""
        return None

    def try_one(self, index: int, seed: int, folder: Path) -> str | None:
        """Run a command; return what went wrong, None if nothing did."""
        rng = rng_of(seed, self.number, index)
        trial = self.trials[index % len(self.trials)]
        words = self.words(rng, trial)
        top = Path(tempfile.mkdtemp(dir=folder))
        try:
            box = top / "box"
            box.mkdir()
            self.material.sandbox(box, trial)
            wrong = _wrong(run([*trial.line, *words], box), box, trial)
        finally:
            shutil.rmtree(top, ignore_errors=True)
        return None if wrong is None else f"{trial.name} {' '.join(words)[:100]}: {wrong}"

    def words(self, rng: Random, trial: Trial) -> list[str]:
        """Return words that set one or two numbers of a command."""
        command = " ".join(trial.words[:2]) if trial.words[0] == "data" else trial.words[0]
        kind = getattr(configs, COMMANDS[command].config)
        known = [key for key, field in configs.keys(kind).items() if _is_number(field.annotation) and ".N" not in key]
        chosen = {pick(rng, known) for _ in range(int(rng.integers(1, 3)))}
        return [f"{key}={_written(pick(rng, _FEW if _WORK.search(key) else NUMBERS))}" for key in sorted(chosen)]


def _is_number(annotation: Any) -> bool:
    return any(word in str(annotation) for word in ("int", "float")) and "Literal" not in str(annotation)


def _written(value: Any) -> str:
    return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf", "True": "true", "False": "false"}.get(str(value), str(value))


def _wrong(done: Any, box: Path, trial: Trial) -> str | None:
    lines = done.err.splitlines()
    if done.code is None:
        return f"takes too long: {done.err[-300:]}"
    if done.code not in (0, 2) or "Traceback" in done.err:
        return f"exit code {done.code}: {done.last[:300]}"
    if done.code == 2 and not all(line.startswith("sscl: ") for line in lines):
        return f"{len(lines)} lines: {done.err[:300]}"
    for line in state.unreadable(box / "runs"):
        return line
    for path in (box / "runs").rglob("*.pt"):
        if path.parent.name == "checkpoints":
            try:
                load_checkpoint(path, to_resume=True)
            except ValueError as error:
                return f"writes what cannot be read: {error}"
    left = state.temporaries(box)
    return f"left {left[0]}" if left else None
