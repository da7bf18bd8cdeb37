"""What `sscl doctor` finds, one line each, and how that is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sscl.records import Record
from sscl.words import width_of, wrapped

NAMES = 18  # columns of a name


class State(str, Enum):
    """Whether something keeps training from working."""

    FINE = "fine"
    NOTE = "note"  # training works; something else would not, or it is slower
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, what it is, and what to do where it is not as it should be."""

    name: str
    text: str
    state: State = State.FINE
    to_do: str = ""
    gpu: bool = False  # whether it is a graphics card to train on


class Entry(Record):
    """A finding, as `sscl doctor --json` prints it."""

    group: str
    name: str
    text: str
    state: State
    to_do: str


class Report(Record):
    """All findings; works: whether training would."""

    works: bool
    findings: tuple[Entry, ...]


Groups = dict[str, list[Finding]]


def faults(groups: Groups) -> list[Finding]:
    """Return what training would fail at."""
    return [finding for findings in groups.values() for finding in findings if finding.state is State.FAULT]


def report(groups: Groups) -> Report:
    entries = [
        Entry(group=group, name=one.name, text=one.text, state=one.state, to_do=one.to_do)
        for group, findings in groups.items()
        for one in findings
    ]
    return Report(works=not faults(groups), findings=tuple(entries))


def as_text(groups: Groups) -> list[str]:
    """Return the lines for a person: the groups, then what would fail with what to do."""
    lines = []
    for group, findings in groups.items():
        lines += [group, *(line for finding in findings for line in _rows(finding)), ""]
    found = faults(groups)
    lines.append("Training would fail:" if found else f"Training works here, on {_trained_on(groups)}.")
    lines += [wrapped(f"- {one.name}: {one.text}; {one.to_do}", indent=2) for one in found]
    notes = [one for findings in groups.values() for one in findings if one.state is State.NOTE and one.to_do]
    lines += ["", "What else to know:"] if notes else []
    return lines + [wrapped(f"- {one.name}: {one.to_do}", indent=2) for one in notes]


def _trained_on(groups: Groups) -> str:
    """Return where device=auto trains."""
    usable = any(one.state is State.FINE and one.gpu for findings in groups.values() for one in findings)
    return "the GPU" if usable else "the processor (use small tiles)"


def _rows(finding: Finding) -> Sequence[str]:
    """Return the lines of one finding; its text is wrapped beside its name."""
    sign = {State.FINE: " ", State.NOTE: " ", State.FAULT: "!"}[finding.state]
    body = wrapped(finding.text, width=80 - NAMES - 4).splitlines() or [""]
    name = finding.name + " " * max(0, NAMES - width_of(finding.name))
    rest = [f"{' ' * (NAMES + 4)}{line.strip()}" for line in body[1:]]
    return [f"{sign} {name}  {body[0]}".rstrip(), *rest]
