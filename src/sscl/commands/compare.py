"""sscl compare: a list of runs over seeds and shares of the labels, made or reused, side by side."""

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

from sscl import comparison, comparison_plots, run
from sscl.commands.inputs import load_tiles
from sscl.commands.planning import Step, check_roots, decide, modified, plan
from sscl.comparison import Predictions
from sscl.config import CompareConfig, plain, read_yaml
from sscl.data.split import label_fraction
from sscl.metrics import few_groups

PUBLISHED = "a difference from a published figure says something only on the data and the split that it was measured on"
CURVES = [("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")]


def main(config: CompareConfig, *, overwrite: bool = False) -> None:
    """Make the runs that are not there yet, evaluate them, and write the table and the pictures.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, one line a fault, before anything runs; a step that
            failed. Runs that are complete stay and are taken next time.
    """
    steps = plan(config)
    check_roots(steps)
    out = run.check_run_folder(config.out, overwrite=True, trains=True)  # a comparison goes on in its own folder
    ways = decide(steps, overwrite=overwrite)
    out.mkdir(parents=True, exist_ok=True)
    run.write_json(out / "env.json", run.environment())
    run.write_text(out / "config.yaml", run.to_yaml(plain(config)))

    kept = sum(way == "reused" for way in ways.values())
    print(f"{len(steps)} runs in {out / 'runs'}: {kept} complete, {len(steps) - kept} to make")
    shown = [step for step in steps if step.entry.shown and step.entry.command == "finetune"]
    for entry in config.runs:  # an entry's runs start from those of earlier entries only
        own = [step for step in steps if step.entry is entry]
        for i in range(0, len(own), config.jobs):
            make_together(own[i : i + config.jobs], ways, config, shown=entry.shown and entry.command == "finetune")

    rows: dict[str, list[Step]] = {}
    for step in shown:
        rows.setdefault(step.row, []).append(step)
    found = {name: [predictions_of(step, config) for step in own] for name, own in rows.items()}
    report = build_report(config, rows, found)
    run.write_json(out / "compare.json", report)
    tables = comparison.tables(report)
    run.write_text(out / "compare.md", markdown(report, tables))
    pictures = draw(config, out, rows, found, report)
    for title, lines in tables:
        print(f"\n{title}\n{comparison.as_text(lines)}")
    print(f"\n{report['interval_method']}")
    for caveat in report["caveats"]:
        print(f"note: {caveat}")
    print(f"wrote {out}/compare.md, compare.json, {', '.join(pictures)}")


# --- running ---


def make_together(steps: Sequence[Step], ways: Mapping[Path, str], config: CompareConfig, *, shown: bool) -> None:
    """Make some runs at the same time; where one fails the others come to their end first."""
    if len(steps) == 1:  # no thread between an interruption and the process it is for
        make(steps[0], ways[steps[0].folder], config, shown=shown)
        return
    with ThreadPoolExecutor(len(steps)) as pool:
        for done in [pool.submit(make, step, ways[step.folder], config, shown=shown) for step in steps]:
            done.result()


def make(step: Step, way: str, config: CompareConfig, *, shown: bool) -> None:
    """Make a run unless it is there, and evaluate it where it is a row's.

    Raises:
        ValueError: a command failed.
    """
    if way == "reused":
        print(f"reused: {step.folder.name}", flush=True)
    else:
        flag = {"new": [], "resume": ["--resume"]}.get(way, ["--overwrite"])
        if way.startswith("again"):
            print(f"\n{step.folder.name} {way}", flush=True)
        call([*step.words, *flag], step)
    if shown and not evaluated(step, config):
        folder = step.folder / f"eval_{config.split}"
        words = ["eval", f"checkpoint={step.folder}", f"split={config.split}"]
        words += [f"bootstrap_samples={config.bootstrap_samples}", f"bootstrap_seed={config.bootstrap_seed}"]
        words += [f"device={config.device}"] if config.device is not None else []
        words += ["progress=false"] if not config.progress or config.jobs > 1 else []
        call([*words, "--overwrite"] if folder.is_dir() else words, step)


def call(words: Sequence[str], step: Step) -> None:
    """Print a command and run it in a process of its own."""
    print(f"\n$ sscl {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "sscl", *words], check=False).returncode != 0:
        raise ValueError(
            f"compare: {step.folder.name}: `sscl {words[0]}` failed, see above; complete runs are kept and reused"
        )


def evaluated(step: Step, config: CompareConfig) -> bool:
    """Return whether the run has predictions of its checkpoint on this split, as its own data section says."""
    folder = step.folder / f"eval_{config.split}"
    written = folder / "predictions.csv"  # the later one of the two
    if not written.is_file() or modified(folder / "metrics.json") < modified(step.checkpoint):
        return False
    with written.open(encoding="utf-8") as handle:
        columns = handle.readline().strip().split(",")
    return "loss" in columns and not read_yaml(folder / "config.yaml").get("data")


def predictions_of(step: Step, config: CompareConfig) -> Predictions:
    """Return what eval wrote of a run."""
    return comparison.read_predictions(step.folder / f"eval_{config.split}" / "predictions.csv")


# --- what is written ---


def build_report(
    config: CompareConfig, rows: Mapping[str, Sequence[Step]], found: Mapping[str, Sequence[Predictions]]
) -> dict[str, Any]:
    """Return the content of compare.json: rows, their runs and paired differences, by metric.

    Raises:
        ValueError: the runs were not evaluated on the same tiles.
    """
    reference = config.reference or next(iter(rows.values()))[0].entry.name
    of = {(steps[0].entry.name, steps[0].fraction): name for name, steps in rows.items()}
    against = {name: of[reference, steps[0].fraction] for name, steps in rows.items()}
    result = comparison.side_by_side(
        found,
        against={name: other for name, other in against.items() if name != other},
        samples=config.bootstrap_samples,
        seed=config.bootstrap_seed,
    )
    first = next(iter(found.values()))[0]
    evaluations = {
        step.folder: json.loads((step.folder / f"eval_{config.split}" / "metrics.json").read_text(encoding="utf-8"))
        for steps in rows.values()
        for step in steps
    }
    lines = []
    for name, steps in rows.items():
        entry, fraction, values = steps[0].entry, steps[0].fraction, result["rows"][name]
        published = entry.published if fraction in (None, 1) else {}
        lines.append(
            {
                "name": name,
                "entry": entry.name,
                "fraction": fraction,
                "labelled_tiles": None if fraction is None else labelled_tiles(steps[0], config),
                "published": published,
                "ours_minus_published": {key: values["mean"][key] - value for key, value in published.items()},
                "mean": values["mean"],
                "sd": values["sd"],
                "runs": [
                    {
                        "seed": step.seed,
                        "folder": str(step.folder),
                        "epoch": evaluations[step.folder]["epoch"],
                        **one,
                    }
                    for step, one in zip(steps, values["runs"], strict=True)
                ],
            }
        )
    drawn = (
        "stratified by class"
        if first.groups is None
        else f"of whole groups ({len(set(first.groups))} slides or patients)"
    )
    few = few_groups(first.groups)
    caveats = dict.fromkeys(caveat for evaluation in evaluations.values() for caveat in evaluation["caveats"])
    return {
        "split": config.split,
        "tiles": len(first.labels),
        "classes": list(first.classes),
        "seeds": list(config.seeds),
        "interval_method": (
            f"95% intervals: bootstrap over the tiles, {drawn}, {config.bootstrap_samples} resamples, "
            f"seed {config.bootstrap_seed}, the same for all runs; sd is over seeds; loss is cross-entropy in nats"
        ),
        # Whole groups answer what eval says of its own intervals.
        "caveats": [
            *([PUBLISHED] if any(entry.published for entry in config.runs) else []),
            *([few] if few is not None else []),
            *(text for text in caveats if first.groups is None or not text.startswith("the intervals")),
        ],
        "rows": lines,
        "differences": result["differences"],
        "environment": run.environment(),
    }


def labelled_tiles(step: Step, config: CompareConfig) -> int:
    """Return how many labels a run may use, those of validation included where it is carved from them."""
    tiles = load_tiles(step.config.data, split="train", progress=config.progress)  # type: ignore[arg-type]
    fraction = 1.0 if step.fraction is None else step.fraction
    return len(label_fraction(tiles.labels[tiles.labels >= 0], fraction=fraction, seed=step.seed))


def markdown(report: Mapping[str, Any], tables: Sequence[tuple[str, list[list[str]]]]) -> str:
    """Return the tables with what a reader must know of them."""
    environment = report["environment"]
    parts = ["# Comparison", f"`{environment['command']}`, {environment['date']}, {environment['gpu'] or 'CPU'}"]
    for title, lines in tables:
        parts += [f"## {title}", comparison.as_markdown(lines)]
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
