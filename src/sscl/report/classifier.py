"""What a report says of a fine-tuned classifier: from its checkpoint, its log and its evaluation to sections.

All figures are those that finetune and eval wrote; nothing is computed anew. An evaluation by an earlier version has
fewer of them, and so has the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sscl.evaluate import calibration, evaluation, metrics
from sscl.evaluate.predictions import Predictions
from sscl.plots import calibration as calibration_plots
from sscl.plots import charts
from sscl.report import blocks
from sscl.report.blocks import Block, Section, interval, number

CURVES = [
    ("loss", ["train_loss", "validation_loss"]),
    ("accuracy", ["train_accuracy", "validation_accuracy", "validation_balanced_accuracy"]),
]
NOT_A_DEVICE = (
    "Research software, not a medical device: nothing here says how the classifier does on other slides, stains, "
    "scanners or hospitals, and no diagnosis may rest on it."
)


@dataclass(frozen=True)
class Subject:
    """A classifier and its evaluation.

    Attributes:
        folder: of the run. content: of its checkpoint, without tensors. log: rows of its metrics.jsonl.
        evaluated: folder of the evaluation. report: its metrics.json. found: its predictions.csv.
    """

    folder: Path
    content: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    evaluated: Path
    report: Mapping[str, Any]
    found: Predictions

    @property
    def positive(self) -> int | None:
        """Index of the positive class of two."""
        name = self.report["positive"]
        return None if name is None else self.found.classes.index(name)

    @property
    def decided_from(self) -> float | None:
        """Confidence from which on a tile is decided."""
        abstention = self.report.get("coverage", {}).get("abstention")
        return None if abstention is None else float(abstention["threshold"])

    @property
    def set_name(self) -> str:
        """What the set of tiles is called."""
        return blocks.name_of(self.report["data"]["root"])

    @property
    def split(self) -> str:
        """The tiles that were evaluated on, in words."""
        return f"{self.report['split']} split of {self.set_name}"

    @property
    def title(self) -> str:
        """Above the charts."""
        return f"{self.report['split']} split, {self.report['tiles']} tiles"


# --- what comes first ---


def summary(
    subject: Subject, *, training_tiles: int | None, audits: Sequence[Mapping[str, Any]], checks: Mapping[str, Any]
) -> Section:
    """Return what was trained on what, the main figures, and what was judged.

    Args:
        training_tiles: tiles of the training split; None = not known here.
        audits: content of audit.json files. checks: content of a checks.json; empty = the maps were not checked.
    """
    report, values, drawn = subject.report, subject.report["metrics"], subject.report["intervals"]
    rows = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
    rows |= {"sensitivity": f"sensitivity for {report['positive']}", "specificity": "specificity"}
    headline = {
        name: f"{number(values[key])} ({interval(drawn[key])})" if drawn[key] is not None else number(values[key])
        for key, name in rows.items()
        if values.get(key) is not None
    }
    found = [
        blocks.paragraph(f"{_trained(subject, training_tiles)} {_right(subject)}"),
        blocks.facts(headline),
        blocks.paragraph(f"{report['interval_method'].partition(';')[0]}."),
        _better_than_guessing(subject),
        _leaks(subject, audits),
        _calibrated(subject),
        *_maps(checks),
    ]
    if report["caveats"]:
        found += [blocks.paragraph("Before believing these figures:"), blocks.bullets(report["caveats"])]
    return blocks.section("summary", "Summary", [*found, blocks.paragraph(NOT_A_DEVICE)])


def _trained(subject: Subject, training_tiles: int | None) -> str:
    """Return in a sentence what was trained on what."""
    content, config = subject.content, subject.content["config"]
    weights = config["model"]["weights"]
    known = {None: "random weights", "imagenet": "ImageNet weights"}
    origin = known.get(weights) or f"the weights of {Path(weights).name}"
    roots = dict.fromkeys(blocks.name_of(section["root"]) for section in content["history"])
    before = f", which were trained on {listed(list(roots))}," if roots else ""
    share = config["train"].get("label_fraction", 1.0)
    part = "" if share == 1 else f"{100 * share:g}% of the labels of "
    of = "" if training_tiles is None else f"{training_tiles:,} tiles of "
    name = blocks.name_of(config["data"]["root"])
    fold = config["train"].get("fold")
    part += "" if fold is None else f"all but fold {fold} of {config['train']['folds']} of "
    kept = content.get("calibration")
    own = config["data"].get("source") == "pathmnist"
    chose = "validation tiles chose"
    if kept is not None:
        these = "tiles of its own validation split" if own else "of these tiles were kept apart for validation and"
        chose = f"{kept['tiles']:,} {these} chose"
    return (
        f"The encoder, a net of the kind {content['encoder_name']}, starts from {origin}{before} and was fine-tuned on "
        f"{part}{of}the training split of {name} to tell {listed(content['classes'])} apart; {chose} "
        f"epoch {content['epoch']}."
    )


def listed(names: Sequence[str]) -> str:
    """Return names as they are enumerated in a sentence."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def _right(subject: Subject) -> str:
    right = sum(row[i] for i, row in enumerate(subject.report["confusion_matrix"]))
    return f"Of the {subject.report['tiles']:,} tiles of the {subject.split} it gets {right:,} right."


def _better_than_guessing(subject: Subject) -> Block:
    chance = 1 / len(subject.found.classes)
    value, drawn = (subject.report[part]["balanced_accuracy"] for part in ("metrics", "intervals"))
    title = "Is it better than guessing?"
    if value is None or drawn is None:
        return blocks.verdict(None, title, "A class has no tile here, so balanced accuracy is undefined.")
    return blocks.verdict(
        drawn[0] > chance,
        title,
        f"Balanced accuracy {number(value)} ({interval(drawn)}); guessing has {number(chance)}. Passes where the whole "
        "interval lies above that.",
    )


def _leaks(subject: Subject, audits: Sequence[Mapping[str, Any]]) -> Block:
    title = "Are the tiles it was tested on new to it?"
    here, trained = (Path(of["data"]["root"]).resolve() for of in (subject.report, subject.content["config"]))
    if subject.report["split"] != "test" and here == trained:  # an audit is of the test split
        text = "They are tiles that it was trained on, or among them: the figures say nothing about new tiles."
        return blocks.verdict(False, title, text)
    if not audits:
        return blocks.verdict(None, title, "Not looked at: sscl data audit searches for tiles that are in both splits.")
    said = blocks.sentence("; ".join(audit["verdict"] for audit in audits))
    return blocks.verdict(not any(audit["leakage"] for audit in audits), title, said)


def _calibrated(subject: Subject) -> Block:
    title = "Do its probabilities say how often it is right?"
    found = subject.report.get("calibration")
    if found is None:
        return blocks.verdict(None, title, "Evaluated by an earlier version, which did not ask. Run sscl eval again.")
    error, chance = found["after"]["ece"], found["after"]["ece_by_chance"]["quantile_95"]
    return blocks.verdict(
        error <= chance,
        title,
        f"Confidence and accuracy differ by {number(error)} on average (expected calibration error); with true "
        f"probabilities that would be below {number(chance)} in 95% of samples of this size.",
    )


def _maps(checks: Mapping[str, Any]) -> list[Block]:
    if not checks:
        text = "Not checked: sscl gradcam checks=true asks whether they depend on what was learned."
        return [blocks.verdict(None, "Can the heatmaps be trusted?", text)]
    asked = {
        "randomisation": "Do the heatmaps depend on what was learned?",
        "deletion_insertion": "Does what they mark matter to the classifier?",
    }
    return [
        blocks.verdict(checks[name]["passed"], title, blocks.sentence(checks[name]["verdict"]))
        for name, title in asked.items()
    ]


# --- data, training ---


def data(subject: Subject, *, counts: Mapping[str, Mapping[str, int]], groups: Mapping[str, int | None]) -> Section:
    """Return where the tiles are from and how many of each class there are.

    Args:
        counts: {split: {class: tiles}}. groups: {split: slides, patients or clusters; None where these are not known}.
    """
    section = subject.report["data"]
    facts = {"tiles": section["root"], "source": section["source"]}
    facts |= {"protocol": str(subject.report["protocol"])} if subject.report.get("protocol") else {}
    facts |= {"side": f"{section['size_px']} px", "stain normalisation": section.get("stain", "none")}
    kept = subject.content.get("calibration")
    if kept is not None:
        own = subject.content["config"]["data"].get("source") == "pathmnist"
        where = "the set's own validation split" if own else "carved from the training split"
        facts["validation"] = f"{kept['tiles']} tiles, {where}; they chose the epoch"
    classes = list(dict.fromkeys(name for split in counts.values() for name in split))
    lines = [["split", *classes, "all", "groups (slides, patients or clusters)"]]
    for split, of in counts.items():
        known = groups.get(split)
        row = [f"{of.get(name, 0):,}" for name in classes]
        lines.append([split, *row, f"{sum(of.values()):,}", "not known" if known is None else f"{known:,}"])
    return blocks.section("data", "Data", [blocks.facts(facts), blocks.table("Tiles of each class", lines)])


def training(subject: Subject) -> Section:
    """Return how it was trained, with its curves."""
    content, config = subject.content, subject.content["config"]
    train, best = config["train"], content.get("validation", {})
    facts = {
        "encoder": f"{content['encoder_name']}, {content['stem']} stem, output stride "
        f"{content.get('output_stride', 32)}",
        "weights at the start": str(config["model"]["weights"] or "random"),
        "epochs": f"{len(subject.log)}; epoch {content['epoch']} was chosen by validation "
        f"{train['select'].replace('_', ' ')}",
        "batch": f"{train['batch_size']} tiles",
        "optimizer": f"{train['optimizer']}, learning rate {train['learning_rate']:g}, "
        f"{train['head_learning_rate']:g} for the head",
        "loss": train["loss"],
        "precision": content["precision"],
    }
    if best:
        facts["validation at that epoch"] = (
            f"accuracy {number(best['validation_accuracy'])}, balanced accuracy "
            f"{number(best['validation_balanced_accuracy'])}, loss {number(best['validation_loss'])}"
        )
    found = [blocks.facts(facts)]
    if subject.log:
        series = [*CURVES]
        if "contrast_loss" in subject.log[0]:
            series.append(("contrastive loss", ["contrast_loss"]))
        losses = [row["validation_loss"] for row in subject.log]
        found.append(
            blocks.figure(
                "training",
                partial(_history, subject.log, series),
                alt=f"Loss and accuracy over {len(losses)} epochs: the validation loss goes from {losses[0]:.3f} to "
                f"{losses[-1]:.3f} and is least, {min(losses):.3f}, in epoch {losses.index(min(losses)) + 1}",
                caption="Training and validation by epoch. Validation loss that rises while training loss falls is "
                "learning by heart.",
            )
        )
    return blocks.section("training", "Fine-tuning", found)


def _history(log: Sequence[Mapping[str, Any]], series: Sequence[tuple[str, Sequence[str]]], path: Path) -> None:
    charts.plot_history(log, series=series, path=path, title="")


# --- figures ---


def results(subject: Subject) -> Section:
    """Return the metrics with their intervals."""
    report = subject.report
    rows = evaluation.figures(report)
    first = len(rows) - 3 * len(report["classes"])
    header = ["", "value", "95% bootstrap", "95% Wilson", "tiles"]
    found = [
        blocks.table(f"On the {subject.split}, {report['tiles']:,} tiles", [header, *_lines(rows[:first])]),
        blocks.table("Of each class", [header, *_lines(rows[first:])]),
    ]
    by_agreement = [row for row in report["accuracy_by_agreement"] or [] if row["count"]]
    if by_agreement:
        lines = [["agreement", "accuracy", "95% Wilson", "tiles"]]
        for row in by_agreement:
            share = metrics.proportion(row["correct"], row["count"])
            assert share is not None  # there are tiles
            counts = f"{row['correct']} of {row['count']}"
            lines.append([row["agreement"], number(row["accuracy"]), interval(share["wilson"]), counts])
        found.append(blocks.table("By how many annotators agree on the tile", lines))
    positive = "" if report["positive"] is None else f" Positive class: {report['positive']}."
    how = report["interval_method"].rstrip(".")
    return blocks.section("results", "Results", [*found, blocks.paragraph(f"{how}.{positive}")])


def _lines(rows: Sequence[evaluation.Row]) -> list[list[str]]:
    """Return cells: name, value, bootstrap interval, Wilson's, counts."""
    found = []
    for name, value, drawn, share in rows:
        score = ["", ""] if share is None else [interval(share["wilson"]), f"{share['count']} of {share['of']}"]
        found.append([name, number(value), interval(drawn), *score])
    return found


def errors(subject: Subject, *, shown: int) -> Section:
    """Return the confusion matrix, ROC and precision-recall curves. shown: tiles in the gallery."""
    report, found = subject.report, subject.found
    total = report["tiles"]
    note = f"The gallery holds {shown:,} of the {total:,} tiles; a cell may show fewer than it counts."
    curves: dict[str, Any] = {"classes": found.classes, "positive": subject.positive}
    assert found.probabilities is not None  # read from a file, it has them
    scores = found.labels, found.probabilities
    names = ", ".join(found.classes) if subject.positive is None else str(report["positive"])
    auroc, average_precision = (number(report["metrics"][key]) for key in ("auroc", "average_precision"))
    return blocks.section(
        "errors",
        "Right and wrong",
        [
            blocks.confusion(found.classes, report["confusion_matrix"], note=note if 0 < shown < total else ""),
            blocks.figure(
                "roc",
                lambda path: charts.plot_roc(*scores, path=path, **curves),
                alt=f"ROC curve of {names}, area {auroc}",
                caption="What share of each class is found, against how many others are taken for it, over all "
                "thresholds.",
            ),
            blocks.figure(
                "precision-recall",
                lambda path: charts.plot_precision_recall(*scores, path=path, **curves),
                alt=f"Precision against recall of {names}, average precision {average_precision}",
                caption="How many of the tiles called so are so, against what share of the class is found.",
            ),
        ],
    )


def probabilities(subject: Subject) -> Section | None:
    """Return what the probabilities are worth; None where the evaluation is from before that was asked."""
    found = subject.report.get("calibration")
    if found is None:
        return None
    before, after = found["before"], found["after"]
    names = {"ece": "ECE", "ece_equal_mass": "ECE, bins of equal mass", "brier": "Brier score", "loss": "cross-entropy"}
    names |= {"soft_vote_brier": f"Brier score against votes / {metrics.ANNOTATORS}"}
    lines = [["", "as trained", "calibrated"]]
    lines += [[name, number(before[key]), number(after[key])] for key, name in names.items() if after[key] is not None]
    changed = found["temperature"] != 1
    stages = {"before": before, "after": after} if changed else {"as trained": after}
    worded = "; ".join(f"{row['score']:.2f}: {row['share']:.2f} of {row['count']}" for row in after["reliability"])
    return blocks.section(
        "probabilities",
        "Probabilities",
        [
            blocks.paragraph(f"Temperature {found['temperature']:.3f}: {found['method']}. {found['definition']}."),
            blocks.table("Calibration on these tiles", lines),
            blocks.figure(
                "reliability",
                lambda path: calibration_plots.plot_reliability(
                    stages,
                    temperature=found["temperature"],
                    positive=subject.report["positive"],
                    path=path,
                    title=subject.title,
                ),
                alt=f"Reliability diagram: predicted probability and how often it came true: {worded}",
                caption="Points on the diagonal: what is given a probability comes true as often. Below it: "
                "too high a probability. The bars below count the tiles.",
            ),
        ],
    )


def decisions(subject: Subject) -> Section | None:
    """Return operating point, abstention and net benefit; None where the evaluation is from before these."""
    report = subject.report
    coverage = report.get("coverage")
    if coverage is None:
        return None
    point, abstention, curve = report["operating_point"], coverage["abstention"], report["decision_curve"]
    header = ["", "value", "95% bootstrap", "95% Wilson", "tiles"]
    found: list[Block] = []
    if point is not None:
        there = " and ".join(f"{name} {value:.3f}" for name, value in point["on_validation"].items())
        text = (
            f"Operating point: a tile is called {report['positive']} from a probability of {point['threshold']:.4f} "
            f"on, chosen by {point['rule']} on {point['chosen_on']} validation tiles ({there} there)."
        )
        rows = evaluation.share_rows(point["here"], {key: key for key in point["here"]})
        found += [blocks.paragraph(text), blocks.table("At the operating point", [header, *_lines(rows)])]
    if abstention is not None:
        text = (
            f"Abstention: tiles of a confidence below {abstention['threshold']:.4f} are left to a person. That leaves "
            f"out at most {100 * abstention['share_on_validation']:g}% of {abstention['chosen_on']} validation tiles."
        )
        rows = evaluation.share_rows(
            abstention["here"], {"decided": "tiles decided here", "accuracy": "accuracy on these"}
        )
        found += [blocks.paragraph(text), blocks.table("Where it abstains", [header, *_lines(rows)])]
    sure = [
        (f"accuracy on the surest {100 * row['coverage']:.0f}%", row["accuracy"]["value"], None, row["accuracy"])
        for row in coverage["at"]
    ]
    found.append(
        blocks.figure(
            "coverage",
            lambda path: calibration_plots.plot_coverage(
                calibration.risk_coverage(
                    subject.found.predictions == subject.found.labels, _confidence(subject.found)
                ),
                decided=None if abstention is None else abstention["here"],
                path=path,
                title=subject.title,
            ),
            alt="; ".join(f"{name}: {number(value)}" for name, value, *_ in sure),
            caption="Accuracy on the tiles it is surest about, against their share. A curve that rises to the left "
            "means that its confidence tells which tiles to look at oneself.",
        )
    )
    if curve is not None:
        found.append(
            blocks.figure(
                "decision",
                lambda path: calibration_plots.plot_decision_curve(
                    curve,
                    threshold=None if point is None else point["threshold"],
                    positive=report["positive"],
                    path=path,
                    title=subject.title,
                ),
                alt=_benefit(curve, report["positive"]),
                caption="Net benefit: tiles rightly called, less those wrongly called, weighed by the threshold. Where "
                "the classifier's line is not above both others, calling all or none serves as well.",
            )
        )
    return blocks.section("decisions", "Decisions", found)


def _confidence(found: Predictions) -> Any:
    assert found.probabilities is not None  # read from a file, it has them
    return found.probabilities.max(1)


def _benefit(curve: Mapping[str, Sequence[float]], positive: str) -> str:
    above = [
        threshold
        for threshold, model, everything in zip(curve["threshold"], curve["model"], curve["treat_all"], strict=True)
        if model > max(everything, 0)
    ]
    where = f"from {min(above):.2f} to {max(above):.2f}" if above else "nowhere"
    return f"Net benefit of calling tiles {positive}: the classifier does better than calling all or none {where}"


def caveats(subject: Subject, more: Sequence[str]) -> Section:
    """Return what to know before believing the figures. more: sentences from elsewhere."""
    found = [*subject.report["caveats"], *subject.report.get("notes", ()), *more]
    if "calibration" not in subject.report:
        found.append(
            "evaluated by an earlier version, without calibration, thresholds and Wilson's intervals: sscl eval "
            "--overwrite makes them"
        )
    return blocks.section("caveats", "Caveats", [blocks.bullets(list(dict.fromkeys(found)))])
