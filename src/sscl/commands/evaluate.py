"""sscl eval: metrics with intervals on a split that selected nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sscl import locks, run, writing
from sscl.config import EvalConfig
from sscl.data import task
from sscl.data.load import all_rows, describe_tiles, load_tiles
from sscl.data.synthetic import SAID, is_synthetic
from sscl.data.tiles import Tiles, place_store
from sscl.device import describe_device, pick_device, tune
from sscl.evaluate import (
    by_place,
    calibration,
    card_results,
    evaluation,
    evaluation_text,
    lineage,
    predictions,
    records,
)
from sscl.evaluate.decisions import risk_coverage
from sscl.evaluate.metrics import FloatArray
from sscl.evaluate.predictions import predictions_of, write_predictions
from sscl.evaluate.records import Evaluated, Evaluation
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, run_of, unfinished_notes
from sscl.models.classifier import (
    inference_precision,
    load_classifier,
    positive_class,
    precision_notes,
    with_classes_of,
)
from sscl.models.pixels import normalisation
from sscl.plots import calibration as calibration_plots
from sscl.plots import charts
from sscl.records import write_record
from sscl.words import as_typed, count, say_next


def main(config: EvalConfig, *, overwrite: bool = False) -> None:
    """Evaluate a finetune checkpoint and write metrics.json, predictions.csv and the pictures."""
    device = pick_device(config.device)
    model, trained = load_classifier(config.checkpoint, device=device)
    precision = inference_precision(config.precision, device, fitted=trained.fitted.precision)
    choice = lineage.choose(trained, config.data, split=config.split)
    data, split = choice.data, choice.split
    out = Path(config.out) if config.out is not None else choice.folder(run_of(config.checkpoint), "eval")
    with run.whole_folder(out, config, overwrite=overwrite, inputs=data.files("data")) as folder:
        given = load_tiles(data, split=split, progress=config.progress)
        whole = with_classes_of(given, trained.classes, checkpoint=config.checkpoint, data=data)
        positive = positive_class(whole.classes, config.positive)
        tiles = task.labelled(whole)
        if not len(tiles):
            raise ValueError(f"data.root: no tile of {data.root} has a label; sscl predict classifies such tiles")

        if config.by is not None:
            by_place.check(tiles, by=config.by)
        tune(device)
        mean, std = normalisation(trained, device)
        logits = features.outputs(
            model,
            place_store(tiles.images, device=device, budget_gb=data.device_budget_gb),
            all_rows(tiles),
            mean=mean,
            std=std,
            batch_size=config.batch_size,
            precision=precision,
            symmetric=config.tta,
            progress="evaluate" if config.progress else None,
        )
        results = evaluation.evaluate(
            tiles,
            logits,
            positive=positive,
            kept=trained.fitted,
            calibrate=config.calibrate,
            sensitivity=config.sensitivity,
            abstain=config.abstain,
        )
        evaluated = Evaluated(
            checkpoint=str(config.checkpoint),
            epoch=trained.epoch,
            c=trained.c,
            data=data,
            split=split,
            external=choice.external,
            protocol=data.protocol if data.source == "mhist" else None,
            tiles=len(tiles),
            classes=tiles.classes,
            class_counts=tiles.class_counts(),
            positive=None if positive is None else tiles.classes[positive],
            data_fingerprint=tiles.fingerprint,
            test_time_augmentation=config.tta,
            precision=precision,
            synthetic=is_synthetic(data.source, tiles.ids),
        )
        left_out = len(whole) - len(tiles)
        caveats = [
            *([SAID] if evaluated.synthetic else []),
            *unfinished_notes(config.checkpoint),
            *task.outcome_warnings(tiles.labels, logits.argmax(1).numpy(), tiles.classes),
            *lineage.caveats(choice, tiles, trained),
            *lineage.interval_caveats(tiles.groups),
            *precision_notes(precision, fitted=trained.fitted.precision),
            *([f"{count(left_out, 'tile')} without a label left out"] if left_out else []),
            *(
                [f"its classes ({', '.join(given.classes)}) were matched by name"]
                if given.classes != whole.classes
                else []
            ),
            *guessed_positive(tiles.classes, positive, wanted=config.positive),
        ]
        report = Evaluation(
            **dict(evaluated),
            **dict(results),
            by_place=(
                None if config.by is None else by_place.metrics_by_place(tiles, logits.argmax(1).numpy(), by=config.by)
            ),
            caveats=tuple(caveats),
            notes=(),
        )
        report = report.model_copy(update={"notes": tuple(evaluation_text.reading_notes(report))})
        probabilities = calibration.softmax(logits, temperature=results.calibration.temperature)

        write_record(folder / records.FILE, report)
        write_predictions(folder / predictions.FILE, predictions_of(tiles, probabilities))
        draw(folder, tiles, report, probabilities=probabilities, positive=positive)
    print("Evaluated")
    print(f"  {config.checkpoint}, {trained.chosen}, on {describe_device(device)}, precision {precision}")
    for line in describe_tiles(data, tiles, split=split, indent=2).splitlines():
        print(f"  {line}")
    if not lineage.interval_caveats(tiles.groups):  # else a note says what they rest on
        print(f"  {report.interval_method}")
    print(f"\n{evaluation_text.as_text(report)}\n")
    pictures = len(list(out.glob("*.png")))
    print(f"wrote {out}/{records.FILE}, {predictions.FILE} and {count(pictures, 'picture')}")
    if split == "test" or choice.external:
        update_card(run_of(config.checkpoint) / card_results.FILE, report, trained, out=out, reviewed=choice.reviewed)
    there = [as_typed(f"data.{key}", value) for key, value in config.data.items()] if choice.external else []
    say_next("gradcam", run_of(config.checkpoint), *there)


def update_card(path: Path, report: Evaluation, trained: Checkpoint, *, out: Path, reviewed: bool) -> None:
    """Put the metrics into the run's model card, those of another set beside the test metrics, never over them.

    So are those on classes that reviewers gave. reviewed: whether they are.

    A checkpoint that was moved elsewhere has no card.
    """
    if not path.is_file():
        return
    section = card_results.test_section(report, trained_on=trained.trained_on, folder=out)
    external = card_results.external_part(report.data, split=report.split) if report.external or reviewed else None
    try:
        with writing.holding(path):  # another evaluation may write its part just now
            why_not = card_results.refresh(path, section, external=external)
    except locks.InUse as error:
        why_not = f"{error}; the card was left unchanged"
    which = "test metrics" if external is None else f"section {external.title!r}"
    print(f"note: {why_not}" if why_not is not None else f"updated the {which} in {path}")


def draw(out: Path, tiles: Tiles, report: Evaluation, *, probabilities: FloatArray, positive: int | None) -> None:
    title = f"{report.split} split, {count(len(tiles), 'synthetic tile' if report.synthetic else 'tile')}"
    matrix = [list(row) for row in report.confusion_matrix]
    charts.plot_confusion(matrix, classes=tiles.classes, path=out / "confusion.png", title=title)
    for name, plot in (("roc", charts.plot_roc), ("precision_recall", charts.plot_precision_recall)):
        plot(tiles.labels, probabilities, classes=tiles.classes, positive=positive, path=out / f"{name}.png")
    found = report.calibration
    calibration_plots.plot_reliability(
        {"as trained": found.after} if found.temperature == 1 else {"before": found.before, "after": found.after},
        temperature=found.temperature,
        positive=report.positive,
        path=out / "reliability.png",
        title=title,
    )
    calibration_plots.plot_coverage(
        risk_coverage(probabilities.argmax(1) == tiles.labels, probabilities.max(1)),
        found=report.coverage,
        path=out / "coverage.png",
        title=title,
    )
    if report.decision_curve is not None and report.positive is not None:
        point = report.operating_point
        calibration_plots.plot_decision_curve(
            report.decision_curve,
            threshold=None if point is None else point.threshold,
            positive=report.positive,
            path=out / "decision_curve.png",
            title=title,
        )


def guessed_positive(classes: Sequence[str], positive: int | None, *, wanted: str | None) -> list[str]:
    """Return a sentence where the positive class was neither named nor SSA."""
    if positive is None or wanted is not None or classes[positive] == "SSA":
        return []
    return [f"positive class: {classes[positive]}, the second of two; set positive=NAME to choose the other"]
