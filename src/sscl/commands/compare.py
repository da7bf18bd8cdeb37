"""sscl compare: a list of runs over seeds and shares of the labels, made or reused, or finished ones, side by side."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl import run, writing
from sscl.config import CompareConfig, plain, read_yaml
from sscl.data.load import load_tiles
from sscl.data.split import label_fraction
from sscl.evaluate import comparison, predictions, tables
from sscl.evaluate.comparison import METRICS
from sscl.evaluate.metrics import GROUPS, few_groups
from sscl.evaluate.predictions import Predictions
from sscl.plots import comparison as comparison_plots
from sscl.train.plan import (
    Action,
    Decision,
    Step,
    check_roots,
    decide,
    evaluated,
    is_evaluated,
    plan,
    short_names,
    table_of,
)
from sscl.words import nearest

PUBLISHED = "a difference from a published figure says something only on the data and the split that it was measured on"
ONE_RUN = "one run a row: other seeds of the same recipes may differ by as much; the intervals are over the tiles alone"
DEPENDENT = (
    f"McNemar's test takes tiles for independent, and several are of one group ({GROUPS}): its p values may be too "
    "small; believe the intervals, which draw whole groups"
)
CURVES = [("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")]


def main(config: CompareConfig, *, overwrite: bool = False) -> None:
    """Make the runs that are not there yet, evaluate them, and write the table and the pictures.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, one line a fault, before anything runs; a step that
            failed. Runs that are complete stay and are taken next time.
    """
    if config.finished:
        compare_finished(config, overwrite=overwrite)
        return
    assert config.out is not None  # the configuration says so
    steps = plan(config)
    check_roots(steps)
    out = run.check_run_folder(config.out, overwrite=True, trains=True)  # a comparison goes on in its own folder
    decisions = decide(steps, overwrite=overwrite)
    start(out, config)

    kept = sum(decision.action is Action.REUSED for decision in decisions.values())
    print(f"{len(steps)} runs in {out / 'runs'}: {kept} complete, {len(steps) - kept} to make")
    shown = [step for step in steps if step.entry.shown and step.entry.command == "finetune"]
    for entry in config.runs:  # an entry's runs start from those of earlier entries only
        own = [step for step in steps if step.entry is entry]
        for i in range(0, len(own), config.jobs):
            some = own[i : i + config.jobs]
            make_together(some, decisions, config, shown=entry.shown and entry.command == "finetune")

    rows: dict[str, list[Step]] = {}
    for step in shown:
        rows.setdefault(step.row, []).append(step)
    found = {
        name: [predictions.read_predictions(table_of(step.folder, config.split)) for step in own]
        for name, own in rows.items()
    }
    report = report_made(config, rows, found)
    pictures = draw(config, out, rows, found, report)
    finish(out, report, pictures)


def compare_finished(config: CompareConfig, *, overwrite: bool) -> None:
    """Compare runs as they are: a row each, evaluated where that is missing, against the reference or the first.

    Raises:
        ValueError, FileNotFoundError: one line for each that cannot be compared, before anything is written; runs on
            other tiles.
    """
    folders = {name: Path(path) for name, path in zip(short_names(config.finished), config.finished, strict=True)}
    reference = config.reference or next(iter(folders))
    if reference not in folders:
        raise ValueError(f"reference: no row {reference!r}; {nearest(reference, list(folders))}")
    first = next(iter(folders.values()))
    beside = first.parent / ("compare_" + "_".join(folders).replace("/", "-"))[:100]
    out = run.check_run_folder(config.out or beside, overwrite=True)
    if out.is_dir() and any(out.iterdir()) and not (out / "compare.json").is_file():
        raise ValueError(f"{out}: exists and holds no comparison; name another folder with out=")
    faults, missing = [], []
    for name, folder in folders.items():
        try:
            if not is_evaluated(folder, config.split, overwrite=overwrite):
                missing.append(name)
        except (ValueError, FileNotFoundError) as error:
            faults.append(f"finished: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    for name in missing:
        evaluate(folders[name], config)
    found = {name: [predictions.read_predictions(table_of(folder, config.split))] for name, folder in folders.items()}
    report = report_finished(config, folders, found, reference=reference)
    start(out, config.model_copy(update={"out": str(out)}))
    finish(out, report, [])


def start(out: Path, config: CompareConfig) -> None:
    """Make the folder, or go on in it, with the configuration and the environment."""
    out.mkdir(parents=True, exist_ok=True)
    writing.write_json(out / "env.json", run.environment())
    writing.write_text(out / "config.yaml", writing.to_yaml(plain(config)))


def finish(out: Path, report: Mapping[str, Any], pictures: Sequence[str]) -> None:
    """Write the report and print it."""
    writing.write_json(out / "compare.json", report)
    titled = comparison.tables(report)
    writing.write_text(out / "compare.md", markdown(report, titled))
    for title, lines in titled:
        print(f"\n{title}\n{tables.as_text(lines)}")
    print(f"\n{report['interval_method']}")
    for caveat in report["caveats"]:
        print(f"note: {caveat}")
    print(f"wrote {out}/{', '.join(['compare.md', 'compare.json', *pictures])}")


# --- running ---


FLAGS = {Action.NEW: [], Action.RESUME: ["--resume"], Action.AGAIN: ["--overwrite"]}


def make_together(
    steps: Sequence[Step], decisions: Mapping[Path, Decision], config: CompareConfig, *, shown: bool
) -> None:
    """Make some runs at the same time; where one fails the others come to their end first."""
    if len(steps) == 1:  # no thread between an interruption and the process it is for
        make(steps[0], decisions[steps[0].folder], config, shown=shown)
        return
    with ThreadPoolExecutor(len(steps)) as pool:
        for done in [pool.submit(make, step, decisions[step.folder], config, shown=shown) for step in steps]:
            done.result()


def make(step: Step, decision: Decision, config: CompareConfig, *, shown: bool) -> None:
    """Make a run unless it is there, and evaluate it where it is a row's.

    Raises:
        ValueError: a command failed.
    """
    if decision.action is Action.REUSED:
        print(f"reused: {step.folder.name}", flush=True)
    else:
        if decision.action is Action.AGAIN:
            print(f"\n{step.folder.name} again: {decision.reason}", flush=True)
        call([*step.words, *FLAGS[decision.action]], step.folder)
    if shown and not evaluated(step.folder, config.split):
        evaluate(step.folder, config)


def evaluate(folder: Path, config: CompareConfig) -> None:
    """Evaluate a run on the split; what was there of another checkpoint, or of other data, is replaced.

    Raises:
        ValueError: the command failed.
    """
    words = ["eval", f"checkpoint={folder}", f"split={config.split}"]
    words += [f"bootstrap_samples={config.bootstrap_samples}", f"bootstrap_seed={config.bootstrap_seed}"]
    words += [f"device={config.device}"] if config.device is not None else []
    words += ["progress=false"] if not config.progress or config.jobs > 1 else []
    call([*words, "--overwrite"] if (folder / f"eval_{config.split}").is_dir() else words, folder)


def call(words: Sequence[str], folder: Path) -> None:
    """Print a command and run it in a process of its own."""
    print(f"\n$ sscl {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "sscl", *words], check=False).returncode != 0:
        raise ValueError(
            f"compare: {folder.name}: `sscl {words[0]}` failed, see above; complete runs are kept and reused"
        )


# --- what is written ---


def report_finished(
    config: CompareConfig, folders: Mapping[str, Path], found: Mapping[str, Sequence[Predictions]], *, reference: str
) -> dict[str, Any]:
    """Return the content of compare.json, a row a run."""
    lines: dict[str, dict[str, Any]] = {}
    said: list[dict[str, Any]] = []
    for name, folder in folders.items():
        beside = table_of(folder, config.split).parent
        about = next((beside / file for file in ("metrics.json", "folds.json") if (beside / file).is_file()), None)
        said.append({} if about is None else json.loads(about.read_text(encoding="utf-8")))
        own = folder / "config.yaml"
        content = read_yaml(own) if own.is_file() else {}
        lines[name] = {
            "entry": name,
            "fraction": None,
            "labelled_tiles": None,
            "published": {},
            "runs": [{"seed": content.get("seed"), "folder": str(folder), "epoch": said[-1].get("epoch")}],
        }
    splits = list(dict.fromkeys(one.get("split", "unknown") for one in said))
    return build_report(
        config,
        found,
        lines=lines,
        against={name: reference for name in folders if name != reference},
        said=said,
        seeds=(),
        split=splits[0] if len(splits) == 1 else " or ".join(splits),
    )


def report_made(
    config: CompareConfig, rows: Mapping[str, Sequence[Step]], found: Mapping[str, Sequence[Predictions]]
) -> dict[str, Any]:
    """Return the content of compare.json, a row an entry and share of the labels.

    Raises:
        ValueError: the runs were not evaluated on the same tiles.
    """
    reference = config.reference or next(iter(rows.values()))[0].entry.name
    of = {(steps[0].entry.name, steps[0].fraction): name for name, steps in rows.items()}
    against = {name: of[reference, steps[0].fraction] for name, steps in rows.items()}
    lines: dict[str, dict[str, Any]] = {}
    said: list[dict[str, Any]] = []
    for name, steps in rows.items():
        entry, fraction = steps[0].entry, steps[0].fraction
        files = [step.folder / f"eval_{config.split}" / "metrics.json" for step in steps]
        evaluations = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        said += evaluations
        lines[name] = {
            "entry": entry.name,
            "fraction": fraction,
            "labelled_tiles": None if fraction is None else labelled_tiles(steps[0], config),
            "published": entry.published if fraction in (None, 1) else {},
            "runs": [
                {"seed": step.seed, "folder": str(step.folder), "epoch": evaluation["epoch"]}
                for step, evaluation in zip(steps, evaluations, strict=True)
            ],
        }
    return build_report(
        config,
        found,
        lines=lines,
        against={name: other for name, other in against.items() if name != other},
        said=said,
        seeds=config.seeds,
        split=config.split,
        notes=[PUBLISHED] if any(entry.published for entry in config.runs) else [],
    )


def build_report(
    config: CompareConfig,
    found: Mapping[str, Sequence[Predictions]],
    *,
    lines: Mapping[str, Mapping[str, Any]],
    against: Mapping[str, str],
    said: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    split: str,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the content of compare.json: rows, their runs and paired differences, by metric.

    Args:
        found: the predictions of each row's runs.
        lines: what is known of each row: entry, fraction, labelled_tiles, published, and of its runs.
        against: the row that each row's difference is from. said: what each run's evaluation says, with its `caveats`.
        seeds, split, notes: as the report says.

    Raises:
        ValueError: the runs were not evaluated on the same tiles.
    """
    result = comparison.side_by_side(
        found, against=against, samples=config.bootstrap_samples, seed=config.bootstrap_seed
    )
    rows = []
    for name, line in lines.items():
        values = result["rows"][name]
        gaps = {key: values["mean"][key] - value for key, value in line["published"].items()}
        runs = [{**known, **one} for known, one in zip(line["runs"], values["runs"], strict=True)]
        figures = {"ours_minus_published": gaps, "mean": values["mean"], "sd": values["sd"], "runs": runs}
        rows.append({"name": name, **line, **figures})
    first = next(iter(found.values()))[0]
    several = first.groups is not None and len(set(first.groups)) < len(first.groups)
    drawn = "stratified by class" if first.groups is None else f"of whole groups ({len(set(first.groups))} {GROUPS})"
    few = few_groups(first.groups)
    caveats = dict.fromkeys(caveat for one in said for caveat in one.get("caveats", ()))
    return {
        "split": split,
        "tiles": len(first.labels),
        "classes": list(first.classes),
        "seeds": list(seeds),
        "interval_method": (
            f"95% intervals: bootstrap over the tiles, {drawn}, {config.bootstrap_samples} resamples, "
            f"seed {config.bootstrap_seed}, the same for all runs; sd is over seeds; loss is cross-entropy in nats"
        ),
        # Whole groups answer what eval says of its own intervals.
        "caveats": [
            *notes,
            *(many_differences(result["differences"]) if result["differences"] else []),
            *([DEPENDENT] if several and result["differences"] else []),
            *([ONE_RUN] if all(len(runs) == 1 for runs in found.values()) and len(found) > 1 else []),
            *([few] if few is not None else []),
            *(text for text in caveats if first.groups is None or not text.startswith("the intervals")),
        ],
        "rows": rows,
        "differences": result["differences"],
        "environment": run.environment(),
    }


def many_differences(differences: Mapping[str, Any]) -> list[str]:
    """Return a sentence that says how many differences a reader sees, and what was done about that."""
    count, tests = len(METRICS) * len(differences), sum(len(one["mcnemar"]) for one in differences.values())
    text = (
        f"{count} differences are shown and their intervals are not corrected for that number: where nothing differs, "
        "about one in 20 misses 0"
    )
    return [text + (f"; the {tests} p values of McNemar's test are also shown after Holm's" if tests > 1 else "")]


def labelled_tiles(step: Step, config: CompareConfig) -> int:
    """Return how many labels a run may use, those of validation included where it is carved from them."""
    tiles = load_tiles(step.config.data, split="train", progress=config.progress)  # type: ignore[arg-type]
    fraction = 1.0 if step.fraction is None else step.fraction
    return len(label_fraction(tiles.labels[tiles.labels >= 0], fraction=fraction, seed=step.seed))


def markdown(report: Mapping[str, Any], titled: Sequence[tuple[str, list[list[str]]]]) -> str:
    """Return the tables with what a reader must know of them."""
    environment = report["environment"]
    parts = ["# Comparison", f"`{environment['command']}`, {environment['date']}, {environment['gpu'] or 'CPU'}"]
    for title, lines in titled:
        parts += [f"## {title}", tables.as_markdown(lines)]
    parts += [report["interval_method"], *(f"Note: {caveat}." for caveat in report["caveats"])]
    return "\n\n".join(parts) + "\n"


def draw(
    config: CompareConfig,
    out: Path,
    rows: Mapping[str, Sequence[Step]],
    found: Mapping[str, Sequence[Predictions]],
    report: Mapping[str, Any],
) -> list[str]:
    """Draw the pictures and return their names."""
    seeds = f"seed {config.seeds[0]}" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds (thick: mean)"
    histories: dict[str, dict[str, Any]] = {}  # by share of the labels, and by entry
    for steps in rows.values():
        logs = [run.read_metrics(step.folder / "metrics.jsonl") for step in steps]
        histories.setdefault(steps[0].share, {})[steps[0].entry.name] = logs
    comparison_plots.plot_overlaid(histories, series=CURVES, path=out / "curves.png", title=f"Validation, {seeds}")
    written = ["curves.png"]
    if config.grid:
        most = max(config.fractions, default=None)  # of several shares of the labels the largest is enough to look at
        firsts = {name: steps[0] for name, steps in rows.items() if steps[0].fraction == most}
        step = next(iter(firsts.values()))
        draw_grid(config, out / "grid.png", step, {own.entry.name: found[name][0] for name, own in firsts.items()})
        written.append("grid.png")
    if len(config.fractions) > 1:
        lines: dict[str, list[tuple[int, list[float]]]] = {}
        for row in report["rows"]:
            values = [one["metrics"]["balanced_accuracy"] for one in row["runs"]]
            lines.setdefault(row["entry"], []).append((row["labelled_tiles"], values))
        title = f"{config.split} split, {report['tiles']} tiles, {len(config.seeds)} seeds"
        measure = "balanced accuracy" + (" (mean, band of 1 sd)" if len(config.seeds) > 1 else "")
        comparison_plots.plot_label_curve(lines, measure=measure, path=out / "labels.png", title=title)
        written.append("labels.png")
    return written


def draw_grid(config: CompareConfig, path: Path, step: Step, runs: Mapping[str, Predictions]) -> None:
    """Draw some tiles with their true class and what each row's first seed predicts."""
    tiles = load_tiles(step.config.data, split=config.split, progress=config.progress)  # type: ignore[arg-type]
    first = next(iter(runs.values()))
    share = f" and {step.share}" if step.share else ""
    chosen = pick(first.labels, count=config.grid, seed=config.grid_seed)
    row_of = {name: i for i, name in enumerate(tiles.ids)}
    comparison_plots.plot_predictions(
        tiles.images[[row_of[first.ids[i]] for i in chosen]],
        truths=[first.classes[i] for i in first.labels[chosen]],
        predicted={row: [one.classes[i] for i in one.predictions[chosen]] for row, one in runs.items()},
        path=path,
        title=f"{config.split} tiles drawn by seed {config.grid_seed}; runs with seed {config.seeds[0]}{share}",
    )


def pick(labels: NDArray[np.int64], *, count: int, seed: int) -> NDArray[np.int64]:
    """Return indices of random tiles, (count,) at most: every class once before one comes twice."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    place = rng.permutation(int(labels.max()) + 1)[labels[order]]
    times = np.empty(len(order), dtype=np.int64)  # how many tiles of its class come before it
    for label in np.unique(labels):
        own = labels[order] == label
        times[own] = np.arange(own.sum())
    return order[np.lexsort((place, times))][:count]
