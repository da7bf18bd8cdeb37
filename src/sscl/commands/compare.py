"""sscl compare: compare runs over seeds and fractions of the labels, made or reused, or compare finished runs."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl import children, metrics_log, run, writing
from sscl.config import CompareConfig, FinetuneConfig, read_yaml
from sscl.data.load import load_tiles
from sscl.data.tiles import Tiles
from sscl.evaluate import comparison, lineage, records
from sscl.evaluate.comparison import Comparison, RowFacts, RunFacts
from sscl.evaluate.comparison_tables import comparison_tables
from sscl.evaluate.metrics import display_name
from sscl.evaluate.predictions import TilePredictions, read_predictions
from sscl.evaluate.records import Evaluation
from sscl.evaluate.tables import Table, as_markdown, as_text
from sscl.plots import comparison as comparison_plots
from sscl.records import read_record, write_record
from sscl.train.fold_report import FoldsReport
from sscl.train.labelled import used_labels
from sscl.train.plan import Step, check_inputs, plan
from sscl.train.reuse import FLAGS, Action, Decision, decide, evaluated, is_evaluated, short_names, table_of
from sscl.words import nearest, next_command

CURVES = [("validation accuracy", "validation_accuracy"), ("validation loss", "validation_loss")]
Facts = list[tuple[RowFacts, list[RunFacts]]]


def main(config: CompareConfig, *, overwrite: bool = False) -> None:
    """Make the runs that are not there yet, evaluate them, and write the table and the pictures.

    Raises:
        ValueError, FileNotFoundError: bad input, one line a fault, before anything runs; a step failed. Complete
            runs are kept and reused next time.
    """
    if config.finished:
        compare_finished(config, overwrite=overwrite)
        return
    assert config.out is not None  # the configuration says so
    steps = plan(config)
    check_inputs(steps, progress=config.progress)
    with run.holding(config.out):
        compare_made(config, steps, overwrite=overwrite)


def compare_made(config: CompareConfig, steps: Sequence[Step], *, overwrite: bool) -> None:
    """Make the runs of a plan and compare them, in the comparison's own folder; see `main`."""
    out = run.check_run_folder(str(config.out), overwrite=True, trains=True)  # a comparison goes on in its own folder
    decisions = decide(steps, overwrite=overwrite)
    if out.is_dir() and not writing.is_bare(out):
        writing.remove_dead(out)
        run.write_origin(out, config)
    else:
        run.start_folder(out, config, overwrite=True)

    kept = sum(decision.action is Action.REUSED for decision in decisions.values())
    print(f"{len(steps)} runs in {out / 'runs'}: {kept} complete, {len(steps) - kept} to make")
    shown = [step for step in steps if step.entry.shown and step.entry.command == "finetune"]
    for together in batches(steps, jobs=config.jobs):
        make_together(together, decisions, config)

    rows: dict[str, list[Step]] = {}
    for step in shown:
        rows.setdefault(step.row, []).append(step)
    found = {
        name: [read_predictions(table_of(step.folder, config.split)) for step in own] for name, own in rows.items()
    }
    report = report_made(config, rows, found)
    pictures = draw(config, out, rows, found, report)
    write(out, report)
    tell(out, report, pictures)


def compare_finished(config: CompareConfig, *, overwrite: bool) -> None:
    """Compare runs as they are: a row each, evaluated where that is missing, against the reference or the first."""
    folders = {name: Path(path) for name, path in zip(short_names(config.finished), config.finished, strict=True)}
    reference = config.reference or next(iter(folders))
    if reference not in folders:
        raise ValueError(f"reference: no row {reference!r}; {nearest(reference, folders)}")
    first = next(iter(folders.values()))
    beside = first.parent / ("compare_" + "_".join(folders).replace("/", "-"))[:100]
    out = run.check_run_folder(config.out or beside, overwrite=True)
    if out.is_dir() and not writing.is_bare(out) and not (out / comparison.FILE).is_file():
        raise ValueError(f"{out}: exists and is not a comparison; name another folder with out=")
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
    found = {name: [read_predictions(table_of(folder, config.split))] for name, folder in folders.items()}
    report = report_finished(config, folders, found, reference=reference)
    inputs = {f"finished.{i}": path for i, path in enumerate(config.finished)}
    whole = config.model_copy(update={"out": str(out)})
    with run.whole_folder(out, whole, overwrite=True, inputs=inputs) as folder:
        write(folder, report)
        keep_others(out, folder)
    tell(out, report, [])


def keep_others(old: Path, new: Path) -> None:
    """Copy what others wrote into a comparison of finished runs, such as its report, to the folder that follows it."""
    writing.remove_dead(old)
    for path in old.iterdir() if old.is_dir() else ():
        if not (new / path.name).exists() and not writing.is_passing(path):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)


def write(folder: Path, report: Comparison) -> None:
    """Write the report, for programs and for people."""
    write_record(folder / comparison.FILE, report)
    writing.write_text(folder / "compare.md", markdown(report, comparison_tables(report)))


def tell(out: Path, report: Comparison, pictures: Sequence[str]) -> None:
    """Print the report, and what was written."""
    for table in comparison_tables(report):
        print(f"\n{table.title}\n{as_text(table.lines, texts=table.texts)}")
    print(f"\n{report.interval_method}")
    for caveat in report.caveats:
        print(f"note: {caveat}")
    print(f"wrote {out}/{', '.join(['compare.md', comparison.FILE, *pictures])}")
    print(next_command("report", out))


# --- running ---


def batches(steps: Sequence[Step], *, jobs: int) -> list[list[Step]]:
    """Return the runs in their order, as many together as may be: none with the run that it starts from."""
    found: list[list[Step]] = []
    for step in steps:
        if not found or len(found[-1]) == jobs or step.start in found[-1]:
            found.append([])
        found[-1].append(step)
    return found


def make_together(steps: Sequence[Step], decisions: Mapping[Path, Decision], config: CompareConfig) -> None:
    """Make some runs at the same time; where one fails the others come to their end first."""
    if len(steps) == 1:  # no thread between an interruption and the process it is for
        make(steps[0], decisions[steps[0].folder], config)
        return
    # An interruption ends the children; the threads, which wait for them, end then.
    with ThreadPoolExecutor(len(steps)) as pool, children.lifeline() as line:
        made = [pool.submit(make, step, decisions[step.folder], config, line=line) for step in steps]
        wait(made)
    for one in made:
        one.result()


def make(step: Step, decision: Decision, config: CompareConfig, *, line: int | None = None) -> None:
    """Make a run unless it is there, and evaluate it where it is a row's.

    Args:
        line: see `children.run_command`.
    """
    if decision.action is Action.REUSED:
        print(f"reused: {step.folder.name}{decision.reason and f'; {decision.reason}'}", flush=True)
    else:
        if decision.action is Action.AGAIN:
            print(f"\n{step.folder.name} again: {decision.reason}", flush=True)
        call([*step.words, *FLAGS[decision.action]], step.folder, line=line)
    shown = step.entry.shown and step.entry.command == "finetune"
    if shown and not evaluated(step.folder, config.split):
        evaluate(step.folder, config, line=line)


def evaluate(folder: Path, config: CompareConfig, *, line: int | None = None) -> None:
    """Evaluate a run on the split; what was there of another checkpoint, or of other data, is replaced."""
    words = ["eval", f"checkpoint={folder}", f"split={config.split}"]
    words += [f"device={config.device}"] if config.device is not None else []
    words += ["progress=false"] if not config.progress or config.jobs > 1 else []
    call([*words, "--overwrite"] if (folder / f"eval_{config.split}").is_dir() else words, folder, line=line)


def call(words: Sequence[str], folder: Path, *, line: int | None) -> None:
    """Print a command and run it in a process of its own."""
    print(f"\n$ sscl {shlex.join(words)}", flush=True)
    if children.run_command(words, line=line) != 0:
        raise ValueError(
            f"compare: {folder.name}: `sscl {words[0]}` failed, see above; complete runs are kept and reused"
        )


# --- what is written ---


def report_finished(
    config: CompareConfig,
    folders: Mapping[str, Path],
    found: Mapping[str, Sequence[TilePredictions]],
    *,
    reference: str,
) -> Comparison:
    """Return the content of compare.json, a row a run."""
    facts: Facts = []
    splits: list[str] = []
    caveats = lineage.other_scales(folders, reference=reference)
    for name, folder in folders.items():
        split, epoch, said = about(table_of(folder, config.split).parent)
        splits.append(split)
        caveats += said
        own = folder / "config.yaml"
        given = read_yaml(own).get("seed") if own.is_file() else None
        seed = given if isinstance(given, int) else None
        row = RowFacts(name=name, entry=name, fraction=None, labelled_tiles=None, published={})
        facts.append((row, [RunFacts(seed=seed, folder=str(folder), epoch=epoch)]))
    return comparison.build(
        found,
        facts=facts,
        against={name: reference for name in folders if name != reference},
        seeds=(),
        split=" or ".join(dict.fromkeys(splits)),
        caveats=caveats,
        environment=run.environment(),
    )


def about(folder: Path) -> tuple[str, int | None, Sequence[str]]:
    """Return split, epoch and caveats of the predictions in a folder, as far as a file beside them says."""
    if (folder / records.FILE).is_file():
        found = read_record(Evaluation, folder / records.FILE, made_by="sscl eval")
        return found.split, found.epoch, found.caveats
    if (folder / "folds.json").is_file():
        folds = read_record(FoldsReport, folder / "folds.json", made_by="sscl finetune --folds")
        return folds.split, None, folds.caveats
    return "unknown", None, ()


def report_made(
    config: CompareConfig, rows: Mapping[str, Sequence[Step]], found: Mapping[str, Sequence[TilePredictions]]
) -> Comparison:
    """Return the content of compare.json, a row an entry and fraction of the labels.

    Raises:
        ValueError: the runs were not evaluated on the same tiles.
    """
    reference = config.reference or next(iter(rows.values()))[0].entry.name
    of = {(steps[0].entry.name, steps[0].fraction): name for name, steps in rows.items()}
    against = {name: of[reference, steps[0].fraction] for name, steps in rows.items()}
    facts: Facts = []
    first = {name: steps[0].folder for name, steps in rows.items()}
    caveats: list[str] = []
    for name, other in against.items():
        caveats += lineage.other_scales({name: first[name], other: first[other]}, reference=other)
    for name, steps in rows.items():
        entry, fraction = steps[0].entry, steps[0].fraction
        runs = []
        for step in steps:
            _, epoch, said = about(table_of(step.folder, config.split).parent)
            caveats += said
            runs.append(RunFacts(seed=step.seed, folder=str(step.folder), epoch=epoch))
        row = RowFacts(
            name=name,
            entry=entry.name,
            fraction=fraction,
            labelled_tiles=None if fraction is None else labelled_tiles(steps[0], config),
            published=entry.published if fraction in (None, 1) else {},
        )
        facts.append((row, runs))
    return comparison.build(
        found,
        facts=facts,
        against={name: other for name, other in against.items() if name != other},
        seeds=config.seeds,
        split=config.split,
        caveats=caveats,
        environment=run.environment(),
    )


def labelled_tiles(step: Step, config: CompareConfig) -> int:
    """Return how many labels a run may use, those of validation included where it is carved from them."""
    assert isinstance(step.config, FinetuneConfig)
    return len(used_labels(tiles_of(step, config, split="train"), step.config))


def tiles_of(step: Step, config: CompareConfig, *, split: str) -> Tiles:
    assert isinstance(step.config, FinetuneConfig)
    return load_tiles(step.config.data, split=split, progress=config.progress)


def markdown(report: Comparison, tables: Sequence[Table]) -> str:
    """Return the tables with what a reader must know of them."""
    environment = report.environment
    parts = ["# Comparison", f"`{environment.command}`, {environment.date}, {environment.gpu or 'CPU'}"]
    for table in tables:
        parts += [f"## {table.title}", as_markdown(table.lines, texts=table.texts)]
    parts += [report.interval_method, *(f"Note: {caveat}." for caveat in report.caveats)]
    return "\n\n".join(parts) + "\n"


def draw(
    config: CompareConfig,
    out: Path,
    rows: Mapping[str, Sequence[Step]],
    found: Mapping[str, Sequence[TilePredictions]],
    report: Comparison,
) -> list[str]:
    """Draw the pictures and return their names."""
    seeds = f"seed {config.seeds[0]}" if len(config.seeds) == 1 else f"{len(config.seeds)} seeds (thick: mean)"
    histories: dict[str, dict[str, list[list[dict[str, float]]]]] = {}  # by fraction of the labels, and by entry
    for steps in rows.values():
        files = [step.folder / "metrics.jsonl" for step in steps]
        logs = [metrics_log.read_metrics(log) if log.is_file() else [] for log in files]
        histories.setdefault(steps[0].labels, {})[steps[0].entry.name] = logs
    comparison_plots.plot_overlaid(histories, series=CURVES, path=out / "curves.png", title=f"Validation, {seeds}")
    written = ["curves.png"]
    if config.grid:
        most = max(config.fractions, default=None)  # of several fractions the largest is enough to look at
        firsts = {name: steps[0] for name, steps in rows.items() if steps[0].fraction == most}
        step = next(iter(firsts.values()))
        draw_grid(config, out / "grid.png", step, {own.entry.name: found[name][0] for name, own in firsts.items()})
        written.append("grid.png")
    if len(config.fractions) > 1:
        lines: dict[str, list[tuple[int, list[float]]]] = {}
        for row in report.rows:
            values = [one.metrics["balanced_accuracy"] for one in row.runs]
            lines.setdefault(row.entry, []).append((row.labelled_tiles or 0, values))
        title = f"{config.split} split, {report.tiles} tiles, {len(config.seeds)} seeds"
        measure = display_name("balanced_accuracy") + (" (mean, band of 1 sd)" if len(config.seeds) > 1 else "")
        comparison_plots.plot_label_curve(lines, measure=measure, path=out / "labels.png", title=title)
        written.append("labels.png")
    return written


def draw_grid(config: CompareConfig, path: Path, step: Step, runs: Mapping[str, TilePredictions]) -> None:
    """Draw some tiles with their true class and what each row's first seed predicts."""
    tiles = tiles_of(step, config, split=config.split)
    first = next(iter(runs.values()))
    labels = f" and {step.labels}" if step.labels else ""
    chosen = pick(first.labels, count=config.grid, seed=config.grid_seed)
    row_of = {name: i for i, name in enumerate(tiles.ids)}
    comparison_plots.plot_predictions(
        tiles.images[[row_of[first.ids[i]] for i in chosen]],
        truths=[first.classes[i] for i in first.labels[chosen]],
        predicted={row: [one.classes[i] for i in one.predictions[chosen]] for row, one in runs.items()},
        path=path,
        title=f"{config.split} tiles drawn by seed {config.grid_seed}; runs with seed {config.seeds[0]}{labels}",
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
