"""sscl probe: compare encoders by linear probe, k-NN and SimpleShot on frozen features, and by their robustness.

Every encoder and every set is opened and checked before any features are computed; the folder is written at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sscl import run, writing
from sscl.config import ProbeConfig
from sscl.config.encoders import NO_FILES, RANDOM
from sscl.data.load import accounts
from sscl.data.scale import scale_against, scale_of
from sscl.device import describe_device, pick_device, pick_precision, tune
from sscl.evaluate import probe_results, probe_runs
from sscl.evaluate.probe_inputs import (
    check_set,
    describe_encoder,
    describe_set,
    open_encoders,
    open_set,
    set_in_words,
)
from sscl.evaluate.probe_notes import probe_notes, reference_notes, shot_notes
from sscl.evaluate.probe_report import FILE, MissingEncoder, ProbeReport, ProbeResults, UnknownRobustness
from sscl.evaluate.probe_results import Measured
from sscl.evaluate.probe_runs import Done
from sscl.evaluate.probe_shots import shot_differences, summarise_shots
from sscl.evaluate.probe_tables import INTERVAL_METHOD, in_columns, legend, probe_tables
from sscl.evaluate.robustness import robustness_differences, summarise_robustness
from sscl.evaluate.tables import Table, as_markdown
from sscl.plots import probe as probe_plots
from sscl.records import write_record
from sscl.run import check_inputs_outside
from sscl.words import next_command


def main(config: ProbeConfig, *, overwrite: bool = False) -> int:
    """Probe every encoder on every set and write probe.json, probe.md and the charts; return 0, or SOME_FAILED."""
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    out = Path(config.out)
    inputs = {key: path for i, data in enumerate(config.sets) for key, path in data.files(f"sets.{i}").items()}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs) as folder:
        print(f"device: {describe_device(device)}, precision {precision}")
        tune(device)
        jobs, absent = open_encoders(config)
        check_inputs_outside(out, {f"weights of {job.row.name}": job.spec.weights for job in jobs})
        opened = {
            (data.name, size): open_set(data.at(size), config=config)
            for data in config.sets
            for size in dict.fromkeys(job.size_px or data.size_px for job in jobs)
        }
        first = {data.name: opened[data.name, jobs[0].size_px or data.size_px] for data in config.sets}
        doubts: list[str] = []
        for number, data in enumerate(config.sets):
            doubts += check_set(data, first[data.name], key=f"sets.{number}.root")
            for job in jobs:
                side = job.size_px or data.size_px
                shown = scale_of(data.at(side), opened[data.name, side]["train"].tiles, key=f"sets.{number}")
                doubts += scale_against(shown, job.mpp, name=job.row.name, size_px=side)
            print(set_in_words(data, first[data.name]))
            for line in accounts({name: part.tiles for name, part in first[data.name].items()}):
                print(line)

        done = probe_runs.predict(config, jobs, opened, first, device=device, precision=precision)
        measured = probe_results.measure(done.found)
        reference = config.reference if any(job.row.name == config.reference for job in jobs) else None
        results = results_of(done, measured, absent=absent, reference=reference)
        report = ProbeReport(
            **dict(results),
            device=describe_device(device),
            precision=precision,
            encoders=tuple(describe_encoder(job) for job in jobs),
            sets=tuple(describe_set(data, first[data.name]) for data in config.sets),
            interval_method=INTERVAL_METHOD,
            linear_fits=done.fits,
            notes=(
                *(one.why for one in absent),
                *reference_notes(config, absent),
                *dict.fromkeys(doubts),  # a row of several seeds has one
                *probe_notes(config, jobs, first, done.fits),
                *shot_notes(config, results.few_shot, first),
            ),
            runs=measured.runs,
        )
        tables = probe_tables(report, reference=reference)
        lines = legend(report, neighbours=config.neighbours, reference=reference)

        write_record(folder / FILE, report)
        writing.write_text(folder / "probe.md", markdown(tables, lines, report.notes))
        chance = {where: 1 / len(np.unique(labels)) for where, labels in done.found.labels.items()}
        images = {row.name: row.images for row in config.encoders if any(job.row == row for job in jobs)}
        charts = probe_plots.draw_charts(
            report.summary, few_shot=report.few_shot, chance=chance, images=images, folder=folder
        )
    for table in tables:
        print(f"{table.title}\n{in_columns(table)}\n")
    for line in lines:
        print(line)
    for note in report.notes:
        print(f"note: {note}")
    print(f"wrote {out}/{', '.join([FILE, 'probe.md', *charts])}")
    if (start := next((job.spec for job in jobs if job.spec.weights not in RANDOM), None)) is not None:
        named = start.weights in NO_FILES
        words = (f"model.name={start.model}", f"model.weights={start.weights}") if named else (f"from={start.weights}",)
        print(next_command("finetune", config.sets[0].root, *words, "run=runs/classifier"))
    return run.SOME_FAILED if absent else 0


def results_of(
    done: Done, measured: Measured, *, absent: Sequence[MissingEncoder], reference: str | None
) -> ProbeResults:
    """Return what came out, over runs, draws and seeds; with a reference also the differences to it."""
    compared = {name: one for name, one in done.robust.items() if not isinstance(one, str)}
    results = ProbeResults(
        summary=probe_results.summarise(measured),
        few_shot=summarise_shots(done.shots),
        robustness=summarise_robustness(done.neighbourhoods, compared),
        robustness_unknown=tuple(
            UnknownRobustness(set=name, why=why) for name, why in done.robust.items() if isinstance(why, str)
        ),
        missing=tuple(absent),
    )
    if reference is None:
        return results
    gains = {
        "differences": probe_results.differences(measured, reference=reference),
        "few_shot_differences": shot_differences(done.shots, reference=reference),
        "robustness_differences": robustness_differences(done.neighbourhoods, reference=reference),
    }
    return results.model_copy(update=gains)


def markdown(tables: Sequence[Table], legend: Sequence[str], notes: Sequence[str]) -> str:
    parts = [f"**{table.title}**\n\n{as_markdown(table.lines)}" for table in tables]
    return "\n\n".join([*parts, *(f"{line}." for line in legend), *(f"Note: {note}." for note in notes)]) + "\n"
