"""sscl probe: compare encoders by linear probe and k-NN on frozen features.

Every encoder and every set is opened and checked before any features are computed; the folder is written at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sscl import run, writing
from sscl.config import ProbeConfig
from sscl.data import split
from sscl.data.load import accounts
from sscl.device import describe_device, pick_device, pick_precision, tune
from sscl.evaluate import probe, probe_results
from sscl.evaluate.metrics import IntArray
from sscl.evaluate.probe_inputs import (
    EVALUATED,
    Job,
    Parts,
    check_set,
    describe_encoder,
    describe_set,
    embed,
    open_encoders,
    open_set,
    set_in_words,
)
from sscl.evaluate.probe_notes import probe_notes
from sscl.evaluate.probe_results import Fits, Found, ProbeReport, RunFacts
from sscl.evaluate.probe_tables import interval_method, legend, probe_tables
from sscl.evaluate.tables import Table, as_markdown, as_text
from sscl.plots import probe as probe_plots
from sscl.progress import Bar
from sscl.records import write_record
from sscl.run import check_inputs_outside
from sscl.words import next_command


def main(config: ProbeConfig, *, overwrite: bool = False) -> None:
    """Probe every encoder on every set and write probe.json, probe.md and the charts.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line.
    """
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    out = Path(config.out)
    inputs = {f"sets.{i}.root": data.root for i, data in enumerate(config.sets)}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs) as folder:
        print(f"device: {describe_device(device)}, precision {precision}")
        tune(device)
        jobs = open_encoders(config)
        check_inputs_outside(out, {f"weights of {job.row.name}": job.spec.weights for job in jobs})
        opened = {
            (data.name, size): open_set(data.model_copy(update={"size_px": size}), config=config)
            for data in config.sets
            for size in dict.fromkeys(job.size_px or data.size_px for job in jobs)
        }
        first = {data.name: opened[data.name, jobs[0].size_px or data.size_px] for data in config.sets}
        doubts: list[str] = []
        for number, data in enumerate(config.sets):
            doubts += check_set(data, first[data.name], key=f"sets.{number}.root")
            print(set_in_words(data, first[data.name]))
            for line in accounts({name: part.tiles for name, part in first[data.name].items()}):
                print(line)

        found, fits = predict(config, jobs, opened, first, device=device, precision=precision)
        measured = probe_results.measure(found)
        reference = config.reference
        report = ProbeReport(
            device=describe_device(device),
            precision=precision,
            encoders=tuple(describe_encoder(job) for job in jobs),
            sets=tuple(describe_set(data, first[data.name]) for data in config.sets),
            interval_method=interval_method(),
            linear_fits=fits,
            notes=(*doubts, *probe_notes(config, jobs, first, fits)),
            summary=probe_results.summarise(measured),
            differences=() if reference is None else probe_results.differences(measured, reference=reference),
            runs=measured.runs,
        )
        tables = probe_tables(report.summary, report.differences, reference=reference)
        lines = legend(neighbours=config.neighbours, reference=reference)

        write_record(folder / probe_results.FILE, report)
        writing.write_text(folder / "probe.md", markdown(tables, lines, report.notes))
        charts = probe_plots.draw_charts(
            report.summary,
            chance={where: 1 / len(np.unique(labels)) for where, labels in found.labels.items()},
            images={row.name: row.images for row in config.encoders},
            folder=folder,
        )
    for table in tables:
        print(f"{table.title}\n{as_text(table.lines, texts=len(table.lines[0]))}")
    for line in lines:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    print(f"wrote {out}/{', '.join([probe_results.FILE, 'probe.md', *charts])}")
    start = next((f"from={job.spec.weights}" for job in jobs if job.spec.weights is not None), None)
    if start is not None:
        print(next_command("finetune", config.sets[0].root, start, "run=runs/classifier"))


def markdown(tables: Sequence[Table], legend: Sequence[str], notes: Sequence[str]) -> str:
    """Return the content of probe.md."""
    parts = [f"**{table.title}**\n\n{as_markdown(table.lines)}" for table in tables]
    return "\n\n".join([*parts, *(f"{line}." for line in legend), *(f"Note: {note}." for note in notes)]) + "\n"


def predict(
    config: ProbeConfig,
    jobs: Sequence[Job],
    opened: dict[tuple[str, int], Parts],
    first: dict[str, Parts],
    *,
    device: torch.device,
    precision: str,
) -> tuple[Found, Fits]:
    """Return what every classifier on every encoder's features predicts, and how the linear fits ended.

    Args:
        opened: parts by name of the set and size. first: those whose labels are reported, by name of the set.
    """
    found = Found()
    for name, parts in first.items():
        for part in EVALUATED:
            if part in parts:
                found.labels[name, part], found.groups[name, part] = parts[part].labels, parts[part].groups
    fits = unconverged = 0
    total = len(jobs) * len(config.sets) * len(config.fractions) * len(config.label_seeds)
    with Bar(total, desc="probe" if config.progress else None, unit="fit", leave=True) as bar:
        for job in jobs:
            for data in config.sets:
                bar.note(f"{job.row.name}, {data.name}")
                parts = opened[data.name, job.size_px or data.size_px]
                embedded = embed(job, parts, data=data, config=config, device=device, precision=precision)
                for fraction, label_seed in ((f, s) for f in config.fractions for s in config.label_seeds):
                    drawn = draw_labels(parts, embedded, fraction=fraction, label_seed=label_seed)
                    linear, validation = fit_linear(drawn, config=config, label_seed=label_seed)
                    fits, unconverged = fits + linear.fits, unconverged + linear.unconverged
                    facts = RunFacts(
                        encoder=job.row.name,
                        seed=job.seed,
                        set=data.name,
                        part="",
                        fraction=fraction,
                        label_seed=label_seed,
                        labels=len(drawn.labels),
                        classifier="knn",
                    )
                    for part in (part for part in EVALUATED if part in parts):
                        for run_facts, predictions in classify(
                            facts.model_copy(update={"part": part}),
                            drawn,
                            linear,
                            embedded[part],
                            validation=validation,
                            neighbours=config.neighbours,
                            num_classes=len(parts["train"].tiles.classes),
                        ):
                            found.runs.append(run_facts)
                            found.predictions.append(predictions)
                    bar.update()
    return found, Fits(fits=fits, unconverged=unconverged)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Labelled features of a fraction of a set.

    Attributes:
        features: of the training part, (N, C). labels: (N,). groups: of these tiles, (N,), or None.
        validation_features, validation_labels: of the set's own validation part, (M, C) and (M,), or None.
    """

    features: torch.Tensor
    labels: IntArray
    groups: np.ndarray | None
    validation_features: torch.Tensor | None = None
    validation_labels: IntArray | None = None


def draw_labels(parts: Parts, embedded: dict[str, torch.Tensor], *, fraction: float, label_seed: int) -> Drawn:
    """Return a fraction of the training labels with their features, and the same fraction of the set's validation."""
    train = parts["train"]
    used = split.label_fraction(train.labels, fraction=fraction, seed=label_seed)
    x, y = embedded["train"][torch.from_numpy(used)], train.labels[used]
    groups = None if train.groups is None else train.groups[used]
    if "validation" not in parts:
        return Drawn(x, y, groups)
    own = split.label_fraction(parts["validation"].labels, fraction=fraction, seed=label_seed)
    return Drawn(x, y, groups, embedded["validation"][torch.from_numpy(own)], parts["validation"].labels[own])


def fit_linear(drawn: Drawn, *, config: ProbeConfig, label_seed: int) -> tuple[probe.LinearProbe, str]:
    """Return the linear probe, and where the validation tiles that chose its C came from.

    They are carved from the labels drawn, and then all of these are fitted; a set's own validation part is not fitted.
    """
    x, y = drawn.features, drawn.labels
    rows = np.arange(len(y))
    if drawn.validation_features is not None and drawn.validation_labels is not None:
        x, y = torch.cat([x, drawn.validation_features]), np.concatenate([y, drawn.validation_labels])
        folds, how = [(rows, np.arange(len(rows), len(y)))], "the set's own"
    else:
        folds, how = probe.validation_folds(
            y, fraction=config.validation_fraction, seed=label_seed, groups=drawn.groups
        )
    linear = probe.fit_linear_probe(
        x, y, folds=folds, grid=config.c_grid, rows=rows, max_iterations=config.max_iterations
    )
    return linear, how


def classify(
    facts: RunFacts,
    drawn: Drawn,
    linear: probe.LinearProbe,
    queries: torch.Tensor,
    *,
    validation: str,
    neighbours: int,
    num_classes: int,
) -> list[tuple[RunFacts, IntArray]]:
    """Return what the linear probe and kNN predict for queries (M, C), class indices (M,) each.

    Args:
        facts: of the run with kNN. validation: where the tiles that chose C came from. neighbours: k of kNN.
    """
    chosen = facts.model_copy(
        update={
            "classifier": "linear",
            "c": linear.c,
            "validation": validation,
            "validation_scores": {f"{c:g}": score for c, score in linear.scores.items()},
        }
    )
    votes = probe.knn_probabilities(
        drawn.features, torch.from_numpy(drawn.labels), queries, neighbours=neighbours, num_classes=num_classes
    )
    return [
        (chosen, linear.probabilities(queries, num_classes=num_classes).argmax(1)),
        (facts, votes.numpy().argmax(1)),
    ]
