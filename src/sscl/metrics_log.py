"""metrics.jsonl, the log of a training: one JSON object an epoch."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sscl import writing
from sscl.places import missing
from sscl.reading import opened, parse_json, read_text
from sscl.words import count, short
from sscl.writing import naming, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MetricsRow = dict[str, float]  # a row of metrics.jsonl by name; "epoch", from 1, is whole
# What every row of a training has.
PRETRAIN_ROW = ("loss", "loss_relative", "positive_similarity", "negative_similarity")
FINETUNE_ROW = ("train_loss", "validation_loss")


def name_of_row(epoch: float, c: float | None) -> str:
    """Return what a row is called: "epoch 3", or "C=0.01" of a logistic regression, which has no epochs."""
    return f"epoch {epoch}" if c is None else f"C={c:g}"


def kind_of_row(c: float | None) -> str:
    """Return what was chosen where a row was: "the epoch" or "C"."""
    return "the epoch" if c is None else "C"


@dataclass(frozen=True)
class Wandb:
    """What a run is called at Weights & Biases.

    Attributes:
        project, name: of the run there; name None: that of the run folder.
        mode: online or offline; None: as WANDB_MODE says, else online.
        config: the resolved configuration, which is uploaded.
    """

    project: str
    name: str | None
    mode: Literal["online", "offline"] | None
    config: Mapping[str, object]

    @property
    def offline(self) -> bool:
        """Whether nothing is uploaded."""
        return (self.mode or os.environ.get("WANDB_MODE", "")) in ("offline", "dryrun", "disabled")


class MetricsLog:
    """metrics.jsonl, one JSON object a line, and TensorBoard events and a run of Weights & Biases when asked for.

    Args:
        keep_epochs: those of the checkpoint that a run goes on from, whose rows stay; None = a new run.
        needs: what a row of this command always has, see `kept_rows`.

    Attributes:
        rows: of all epochs so far.
        dropped: what was left out of the log that was there, in a line; empty = nothing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_epochs: int | None = None,
        needs: Collection[str] = (),
        tensorboard: bool = False,
        wandb: Wandb | None = None,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self.rows: list[MetricsRow] = []
        self.dropped = ""
        if keep_epochs is not None:
            self.rows, self.dropped = kept_rows(self.path, epochs=keep_epochs, needs=needs)
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._writer = tensorboard_writer(folder, keep_epochs=keep_epochs) if tensorboard else None
        self._wandb = None if wandb is None else wandb_run(folder, wandb)

    def append(self, row: MetricsRow) -> None:
        """Add a row. It outlives this process, and after `sync` a power failure too."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with naming(self.path), self.path.open("a", encoding="utf-8") as handle:
            handle.write(line)
        self.rows.append(row)
        if self._writer is not None:
            for key, value in row.items():
                if key != "epoch":
                    self._writer.add_scalar(key, value, int(row["epoch"]))
        if self._wandb is not None:
            try:
                self._wandb.log(dict(row))
            except Exception as error:  # its service's, its socket's: none of them is worth a training
                print(f"note: log.wandb: {_first_line(error)}; metrics.jsonl goes on without it")
                self._wandb = None

    def sync(self) -> None:
        """Bring all rows to the disk; another thread may call this."""
        writing.sync(self.path)

    def close(self) -> None:
        """Bring all rows to the disk and finish the TensorBoard file and the run of Weights & Biases, if any."""
        self.sync()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path, *, needs: Collection[str] = ()) -> list[MetricsRow]:
    """Return the rows of a metrics.jsonl, without a last line that a killed run left half written.

    Args:
        needs: keys that every row has, such as FINETUNE_ROW.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another line is not a row of metrics, or of an earlier epoch than the one before.
    """
    if not path.is_file():
        raise FileNotFoundError(missing(path, "file"))
    rows: list[MetricsRow] = []
    for number, row in parsed(path):
        if row == HALF_WRITTEN:
            continue
        if not isinstance(row, str):
            lacks = [key for key in needs if key not in row]
            if lacks:
                row = f"has no {lacks[0]!r}"
            elif rows and row["epoch"] <= rows[-1]["epoch"]:
                row = f"epoch {row['epoch']} comes after epoch {rows[-1]['epoch']}"
        if isinstance(row, str):
            raise ValueError(f"{path}: line {number}: {row}; remove that line")
        rows.append(row)
    return rows


def kept_rows(path: Path, *, epochs: int, needs: Collection[str] = ()) -> tuple[list[MetricsRow], str]:
    """Return the rows of the first `epochs` epochs in a metrics.jsonl, whatever else is in it, and what is left out.

    Args:
        needs: keys; a line without one of them is no row of this run.
    """
    rows: list[MetricsRow] = []
    later, foreign = 0, []
    for number, row in parsed(path):
        if not isinstance(row, str) and row["epoch"] > epochs:
            later += 1
        elif isinstance(row, str) or (rows and row["epoch"] <= rows[-1]["epoch"]) or not row.keys() >= set(needs):
            foreign.append(number)
        else:
            rows.append(row)
    parts = []
    if later:
        parts.append(f"drops {count(later, 'row')} after epoch {epochs}")
    if foreign:
        parts.append(f"drops what is no row of this run ({count(len(foreign), 'line')}, the first is {foreign[0]})")
    if len(rows) < epochs:
        parts.append(f"has no row for {epochs - len(rows)} of {count(epochs, 'epoch')}")
    return rows, f"{path}: {'; '.join(parts)}" if parts else ""


HALF_WRITTEN = "half written"
_LOG_BYTES = 32 * 2**20  # far more than any training writes
_LINE_BYTES = 2**20
_LARGEST = 1e38  # float32
_EPOCHS = 10**6
_WANDB_SECONDS = 30.0  # to reach the service


def parsed(path: Path) -> Iterator[tuple[int, MetricsRow | str]]:
    """Yield the number of each line of a metrics.jsonl, and its row or why it is none. Empty lines are passed over.

    A last line without an end is a row if it is whole.
    """
    if not path.is_file():
        return
    with opened(path, expected="a log of metrics") as handle:
        number = 0
        while line := handle.readline(_LINE_BYTES):
            number += 1
            row = _row_of(line) if line.strip() else None
            if isinstance(row, str) and not line.endswith(b"\n") and len(line) < _LINE_BYTES:
                row = HALF_WRITTEN
            if row is not None:
                yield number, row
            if len(line) == _LINE_BYTES or handle.tell() > _LOG_BYTES:
                yield number + 1, "too long for a log of metrics"
                return


def _row_of(line: bytes) -> MetricsRow | str:
    """Return the row in a line, or why it is none."""
    try:
        row = parse_json(line)
        if not isinstance(row, dict):
            return "no row of metrics, which is a JSON object"
        for key, value in row.items():
            if type(value) not in (int, float) or not abs(value) <= _LARGEST:
                return f"{key!r} is not a number up to {_LARGEST:g}"
    except ValueError as error:
        return f"not JSON ({short(str(error))})"
    if type(row.get("epoch")) is not int or not 1 <= row["epoch"] <= _EPOCHS:
        return f"has no 'epoch' from 1 to {_EPOCHS}"
    return row


def check_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError("log.tensorboard: TensorBoard is not installed; pip install 'sscl[tensorboard]'") from error


def tensorboard_writer(folder: Path, *, keep_epochs: int | None = None) -> SummaryWriter:
    """Return TensorBoard's writer of events in the folder (torch.utils.tensorboard, an extra).

    After a resumption it hides the events of earlier writers beyond `keep_epochs`, which are written again.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=None if keep_epochs is None else keep_epochs + 1)


def check_wandb(wanted: Wandb) -> None:
    """Raise ValueError where Weights & Biases is asked for and not installed, or has no key to log in with."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError("log.wandb: wandb is not installed; pip install 'sscl[wandb]'") from error
    if not wanted.offline and not wandb.login(prompt=False):
        raise ValueError("log.wandb: there is no key to log in with; wandb login, or log.wandb_mode=offline")


def wandb_run(folder: Path, wanted: Wandb) -> Any:
    """Return the run of Weights & Biases that belongs to a run folder, the same again when training goes on.

    Its files lie in the folder. Beyond configuration and rows it is told nothing: no code, no output, no names of
    machines and users. Where the service cannot be reached, the run is kept offline.
    """
    import wandb

    identity = folder / "wandb_id"
    if not identity.is_file():
        write_text(identity, uuid.uuid4().hex[:8] + "\n")
    settings = wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_git=True,
        disable_job_creation=True,
        init_timeout=_WANDB_SECONDS,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    given: dict[str, Any] = {
        "project": wanted.project,
        "name": wanted.name or folder.resolve().name,
        "id": read_text(identity, at_most=100).strip(),
        "resume": "allow",
        "dir": str(folder),
        "config": dict(wanted.config),
        "settings": settings,
    }
    try:
        found = wandb.init(mode="offline" if wanted.offline else "online", **given)
    except wandb.errors.Error as error:
        print(f"note: log.wandb: {_first_line(error)}")
        found = wandb.init(mode="offline", **given)
    found.define_metric("*", step_metric="epoch")
    kept = f"offline, in {folder}/wandb; wandb sync uploads it"
    print(f"wandb: {kept if found.offline else found.url}")
    return found


def _first_line(error: Exception) -> str:
    return short(next(iter(str(error).splitlines()), type(error).__name__), most=160)
