"""What the parts of scripts/gpu_check left in files, and all that was found as Markdown."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_plan import CUT, FAILED, MEASURED, NOT_REACHED
from table import table


def findings(work: Path) -> dict[str, Any]:
    """Return what the parts have written so far: tests and study."""
    found: dict[str, Any] = {}
    tests = counted(work / "tests.xml") if (work / "tests.xml").is_file() else None
    if tests is not None:
        found["tests"] = tests
    from sscl.metrics_log import read_metrics  # needs pydantic, which may have come as a wheel

    study: dict[str, Any] = {}
    for command in ("pretrain", "finetune"):
        log = work / command / "metrics.jsonl"
        rows = read_metrics(log) if log.is_file() else []
        if rows:
            study[command] = {"epochs": len(rows), "last": rows[-1]}
    metrics = work / "finetune" / "eval_test" / "metrics.json"
    if metrics.is_file():
        study["eval"] = json.loads(metrics.read_text(encoding="utf-8"))
    panels = sorted(path.name for path in (work / "finetune" / "gradcam_test").glob("*_panel.png"))
    if panels:
        study["gradcam"] = {"panels": len(panels)}
    predictions = work / "finetune" / "predictions" / "predictions.csv"
    if predictions.is_file():
        study["predict"] = {"tiles": len(predictions.read_text(encoding="utf-8").splitlines()) - 1}
    return {**found, "study": study}


def counted(file: Path) -> dict[str, Any] | None:
    """Return how many tests a JUnit file has of each outcome, and which failed; None for half a file."""
    try:
        cases = list(ElementTree.parse(file).iter("testcase"))
    except ElementTree.ParseError:
        return None
    outcomes: Counter[str] = Counter()
    names = []
    for case in cases:
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        outcomes[outcome] += 1
        if outcome == "failed":
            names.append(f"{case.get('classname')}::{case.get('name')}")
    return {**{name: outcomes[name] for name in ("passed", "failed", "skipped")}, "failures": names}


def markdown(report: dict[str, Any], *, waiting: Sequence[str] = ()) -> str:
    """Return the report as Markdown; `waiting` names what is still to come."""
    lines = [
        "# GPU check",
        "",
        f"`{report['command']}`, {report['date'][:10]}, {report['device']}, torch {report['torch']}, commit "
        f"{report['commit']}, {report['seconds']:.0f} s of {report['minutes']:g} minutes.",
        "",
        *(["**Toy size: shows that it runs; the numbers mean nothing.**", ""] if report["quick"] else []),
        *table([row for measured in report["rows"] for row in measured.get("rows", [])]),
        "",
        *missing_lines(report["rows"]),
        *part_lines(report["parts"], waiting),
    ]
    if "tests" in report:
        tests = report["tests"]
        lines += ["", "## Tests", ""]
        lines.append(f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
        lines += [f"- failed: `{name}`" for name in tests["failures"]]
    if report["study"]:
        lines += ["", "## Study", "", *study_lines(report["study"])]
    lines += kernel_lines(report["rows"])
    for part in report["parts"]:
        if part["status"] in (FAILED, CUT) or part["name"] == "pretrain":
            lines += ["", f"## End of the output of {part['name']}", "", "```text", *part["tail"], "```"]
    return "\n".join(lines) + "\n"


def missing_lines(measured: list[dict[str, Any]]) -> list[str]:
    """Return a line for each row that failed, was stopped, or was not reached, and why."""
    others = [line for line in measured if line["state"] in (FAILED, CUT, NOT_REACHED)]
    return [*(f"- {line['name']}: **{line['state']}**: {line['note']}" for line in others), *([""] if others else [])]


def part_lines(parts: list[dict[str, Any]], waiting: Sequence[str]) -> list[str]:
    """Return the table of the commands that were run."""
    lines = ["| part | result | s | of at most |", "|---|---|---|---|"]
    for part in parts:
        result = ": ".join(filter(None, (part["status"], part["note"])))
        lines.append(f"| {part['name']} | {result} | {part['seconds']:.0f} | {part['limit_s']:.0f} |")
    return lines + [f"| {name} | not reached yet | | |" for name in waiting]


def study_lines(study: dict[str, Any]) -> list[str]:
    """Return the study's results, a line each."""

    def numbers(values: dict[str, Any]) -> str:
        return ", ".join(f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, (int, float)))

    lines = []
    for command in ("pretrain", "finetune"):
        if command in study:
            lines.append(f"- {command}, {study[command]['epochs']} epochs; the last: {numbers(study[command]['last'])}")
    if "eval" in study:
        lines.append(f"- eval on test: {numbers(study['eval']['metrics'])}")
    if "gradcam" in study:
        lines.append(f"- gradcam: {study['gradcam']['panels']} tiles explained")
    if "predict" in study:
        lines.append(f"- predict: {study['predict']['tiles']} tiles classified")
    return lines


def kernel_lines(measured: list[dict[str, Any]]) -> list[str]:
    """Return the kernels that take longest in the first row that has some."""
    for line in measured:
        seen = line.get("details", {}).get("observed") if line["state"] == MEASURED else None
        if seen and seen["largest"]:
            table = [f"| `{name}` | {count} | {ms:.1f} |" for name, count, ms in seen["largest"]]
            return ["", f"## Kernels of {line['name']}", "", "| kernel | calls | ms |", "|---|---|---|", *table]
    return []


__all__ = ["counted", "findings", "markdown", "study_lines"]
