"""Files that nobody wrote on purpose, one kind a part, and the readers that they are fed to."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from sscl.cli import main
from torturing.poison import Random
from torturing.trials import Material, rng_of

MEMORY = 2**30  # bytes that a reader may take beyond what the process has
EVERY = 100  # one input of so many goes through the command line too


class Fed:
    """A part whose inputs are files made by a seed and fed to a reader.

    A reader must return, or raise a ValueError or OSError of one line that names the file, or lines that name a key.
    """

    name: str
    number: int
    memory: int | None = MEMORY
    seconds = 5.0  # of the processor, for one input

    def __init__(self, material: Material) -> None:
        self.material = material
        self.runs = material.folder / "runs"

    def prepare(self) -> None:
        """Read what inputs are made from, once for all workers."""

    def row(self, index: int) -> str:
        """Return the row of the table that an input belongs to."""
        return self.name

    def limit(self, index: int) -> float | None:
        """Return how many seconds of the processor an input may take."""
        return 60.0 if index % EVERY == 0 else self.seconds

    def make(self, rng: Random, folder: Path) -> Path:
        """Write a poisoned file into the folder and return it."""
        raise NotImplementedError

    def read(self, rng: Random, path: Path) -> None:
        """Have a reader of sscl read it."""
        raise NotImplementedError

    def words(self, rng: Random, path: Path) -> list[str]:
        """Return a command line that reads it."""
        raise NotImplementedError

    def try_one(self, index: int, seed: int, folder: Path) -> str | None:
        """Feed one input; return what went wrong, None if nothing did."""
        rng = rng_of(seed, self.number, index)
        there = Path(tempfile.mkdtemp(dir=folder))
        os.chdir(there)
        try:
            path = self.make(rng, there)
            wrong = refused_well(lambda: self.read(rng, path), name=path.name)
            if wrong is None and index % EVERY == 0:
                wrong = at_the_command_line(self.words(rng, path))
            return wrong or ("a file was run" if (there / "PWNED").exists() else None)
        finally:
            os.chdir(folder)
            shutil.rmtree(there, ignore_errors=True)


def refused_well(read: Callable[[], object], *, name: str, key: bool = False) -> str | None:
    """Return what is wrong with how a reader refuses an input; None if it takes it, or refuses it in a clear line.

    Args:
        name: what each line must have in it.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read()
    except (ValueError, OSError) as error:
        said = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        kind = f"{type(error).__name__} ({_where(error)})"
        lines = said.splitlines()
        if not said.strip():
            return f"{kind} that says nothing"
        if len(lines) > 1 and not all(name in line for line in lines):
            return f"{kind} of {len(lines)} lines: {said[:200]!r}"
        if name not in said:
            return f"{kind} that does not name the file: {said[:200]!r}"
        if len(said) > 4000:
            return f"{kind} of {len(said)} letters: {said[:150]!r}"
        if any(ord(letter) < 32 for line in lines for letter in line):
            return f"{kind} with control characters: {said[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]} ({_where(error)})"
    return None


def _where(error: BaseException) -> str:
    """Return the last line of sscl in a traceback."""
    found, trace = "", error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if "/sscl/" in path:
            found = f"{path.rpartition('/sscl/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def at_the_command_line(words: list[str]) -> str | None:
    """Return what is wrong with the exit code and the error output of a command; None if nothing is."""
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            with open(1, "w", closefd=False) as stdout, open(2, "w", closefd=False) as stderr:  # noqa: SIM117
                with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                    code: object = main(words)
        except (Exception, SystemExit) as error:
            code = f"{type(error).__name__}: {str(error)[:150]} ({_where(error)})"
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
        err.seek(0)
        said = err.read().decode("utf-8", "replace")
    lines = [line for line in said.splitlines() if line]
    command = f"sscl {' '.join(words)[:100]}"
    if code not in (0, 2, 3):
        return f"{command}: {code}"
    if code != 0 and (not lines or not all(line.startswith("sscl: ") for line in lines)):
        return f"{command}: exit code {code}, {len(lines)} lines: {said[:200]!r}"
    return None


def strange(folder: Path) -> None:
    """Put what is no picture under a picture's name: a pipe, a link to itself, a folder."""
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "folder.png").mkdir()
