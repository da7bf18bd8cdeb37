"""The model card of a classifier, Markdown: what it was trained on and how, what it is worth, where it ends.

`finetune` writes it beside the best checkpoint. `eval` puts the figures of the test split between the two marker lines;
whatever else stands in the file is its reader's to edit. Folders are named by their last part alone, so that a card can
be passed on. K classes, N validation tiles.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl import run, writing
from sscl.config import DataConfig
from sscl.config.training import FinetuneTrainConfig
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, metrics
from sscl.models.checkpoint import Checkpoint

FILE = "MODEL_CARD.md"
BEGIN = "<!-- sscl eval writes from here -->"
END = "<!-- sscl eval writes to here -->"

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "mcc": "MCC",
}


@dataclass(frozen=True)
class Part:
    """Tiles that took part in training, or chose the epoch.

    Attributes:
        counts: tiles of each class. groups: how many groups they are of; None where there are none.
    """

    counts: Mapping[str, int]
    groups: int | None


def part_of(tiles: Tiles, rows: NDArray[np.int64]) -> Part:
    """Return what a card says of the labelled tiles at `rows`, (M,)."""
    found = np.bincount(tiles.labels[rows], minlength=len(tiles.classes))
    return Part(
        counts=dict(zip(tiles.classes, found.tolist(), strict=True)),
        groups=None if tiles.groups is None else len(np.unique(tiles.groups[rows])),
    )


def model_card(
    checkpoint: Checkpoint,
    *,
    folder: Path,
    origin: str,
    train: Part,
    validation: Part,
    carved: bool,
    groups_are: str,
    slides_known: bool,
    unlabelled: int = 0,
) -> str:
    """Return the text of a card, with no test figures yet.

    Args:
        checkpoint: with its calibration.
        folder: the run folder; its name alone is written.
        origin: where the encoder's weights came from, see `origin_of_weights`.
        train, validation: the tiles. carved: whether those for validation were taken from the training split.
        groups_are: what the groups of tiles are, in words. slides_known: whether slide or patient ids were given.
        unlabelled: tiles that took part in contrastive steps without their labels.
    """
    name = folder.resolve().name
    environment = run.environment()
    lines = [
        f"# Model card: {_code(name)}",
        "",
        f"A {_code(checkpoint.encoder_name)} that tells {_listed(map(_code, checkpoint.classes))} apart on tiles of "
        f"H&E-stained tissue, {checkpoint.size_px} px a side. **Research software, not a medical device: no "
        "diagnosis may rest on it.**",
        "",
        f"Written by `sscl finetune` (sscl {environment['sscl']}) on {environment['date'][:10]}. `sscl eval` rewrites "
        'what stands between the two marker lines under "Test"; everything else stays as you edit it.',
        "",
        *_data_lines(checkpoint, train, validation, carved=carved, groups_are=groups_are, unlabelled=unlabelled),
        *_model_lines(checkpoint, origin=origin),
        *_training_lines(checkpoint),
        *_validation_lines(checkpoint),
        *("## Test", "", BEGIN, "", *_untested(name), "", END, ""),
        *_limit_lines(checkpoint, train, validation, slides_known=slides_known),
        *_use_lines(name),
    ]
    return "\n".join(lines)


def origin_of_weights(weights: str | None, before: Checkpoint | None) -> str:
    """Return where an encoder's weights came from, in words.

    Args:
        weights: `model.weights`. before: the checkpoint that it names; None for other weights.
    """
    usual = {None: "random weights", "imagenet": "weights trained on ImageNet"}
    if weights in usual:
        return usual[weights]
    if before is None:
        return f"the file {_code(_name(str(weights)))}, which does not say what it was trained on"
    first = before.config.model.weights
    own = usual.get(first) or f"{_code(_name(str(first)))}"
    if before.kind == "finetune":
        how = f"trained with labels ({_listed(map(_code, before.classes))})"
    else:
        how = "pretrained without labels"
    return f"the run {_code(_name(str(weights)))}, {how} up to epoch {before.epoch}, itself from {own}"


# --- what finetune knows ---


def _data_lines(
    checkpoint: Checkpoint,
    train: Part,
    validation: Part,
    *,
    carved: bool,
    groups_are: str,
    unlabelled: int,
) -> list[str]:
    data, training = checkpoint.finetune_config.data, checkpoint.finetune_config.train
    where = "carved from the training split, by class" if carved else "the set's own validation split"
    if carved and train.groups is not None:
        where += f"; kept whole: {groups_are}"
    rows = [
        ("set", _set(data)),
        ("split", "the training split alone; the test split took no part in this run" + _fold(training)),
        ("validation tiles", where),
        (
            "near-duplicates",
            "kept on one side of each split made here" if data.group_near_duplicates else "not looked for",
        ),
        ("stain normalisation", data.stain),
    ]
    if training.label_fraction < 1:
        rows.insert(2, ("labels used", f"{100 * training.label_fraction:g}% of each class, validation included"))
    if training.balance == "down":
        rows.append(("balance", "every class of the training tiles cut to the smallest"))
    if unlabelled:
        rows.append(("without labels", f"{unlabelled} more tiles of the training split, in contrastive steps alone"))
    rows.append(("fingerprint", _code(checkpoint.fingerprint[:16]) + " (training split as a whole)"))
    counts = [[_code(label), str(n), str(validation.counts[label])] for label, n in train.counts.items()]
    counts.append(["all", str(sum(train.counts.values())), str(sum(validation.counts.values()))])
    if train.groups is not None or validation.groups is not None:
        counts.append([groups_are, *("not known" if p.groups is None else str(p.groups) for p in (train, validation))])
    return [
        "## Data",
        "",
        *_table(["", ""], rows),
        "",
        *_table(["tiles", "training", "validation"], counts, numbers=2),
        "",
    ]


def _model_lines(checkpoint: Checkpoint, *, origin: str) -> list[str]:
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (checkpoint.mean, checkpoint.std))
    rows = [
        ("encoder", f"{_code(checkpoint.encoder_name)}, {checkpoint.stem} stem, stride {checkpoint.output_stride}"),
        ("head", f"linear, {len(checkpoint.classes)} classes"),
        ("started from", origin),
        (
            "input",
            f"RGB, {checkpoint.size_px} px a side; means {mean}, deviations {std} of pixels in 0-1",
        ),
    ]
    sets = list(dict.fromkeys(_set(section) for section in checkpoint.lineage))
    if sets:
        rows.insert(3, ("trained before on", "; ".join(sets)))
    return ["## Model", "", *_table(["", ""], rows), ""]


def _training_lines(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.finetune_config
    train, contrast = config.train, config.contrast
    learned = "the head alone, on fixed features" if train.freeze_encoder else "the whole net"
    if train.freeze_batch_norm:
        learned += ", batch-norm statistics as they came"
    rates = f"{train.learning_rate:g} (head {train.head_learning_rate:g})"
    rows = [
        ("trained", learned),
        ("loss", train.loss.replace("_", " ") + _focus(train)),
        ("optimizer", f"{train.optimizer}, peak learning rate {rates}, {train.schedule} schedule"),
        ("weight decay", f"{train.weight_decay:g}"),
        ("batch", f"{train.batch_size} tiles or as many as there are, random views of them"),
        ("epoch", f"{checkpoint.epoch} of at most {train.epochs}, the best by validation {_words(train.select)}"),
        ("precision, seed", f"{checkpoint.precision}, {config.seed}"),
    ]
    if train.balance == "draws":
        rows.append(("balance", "classes drawn equally often"))
    if contrast.kind != "none":
        rows.append(("contrastive steps", f"{contrast.kind} at temperature {contrast.temperature:g}, in turn"))
    return ["## Training", "", *_table(["", ""], rows), "", "Every setting: `config.yaml` beside this file.", ""]


def _validation_lines(checkpoint: Checkpoint) -> list[str]:
    """Return the figures of the validation tiles, from the logits that the checkpoint keeps."""
    kept, classes = checkpoint.fitted, checkpoint.classes
    positive = None if kept.positive is None else classes.index(kept.positive)
    labels = kept.labels.numpy()
    probabilities = calibration.softmax(kept.logits, temperature=kept.temperature)
    matrix = metrics.confusion_matrix(labels, probabilities.argmax(1), num_classes=len(classes))
    values = metrics.classification_metrics(labels, probabilities, positive=positive)
    figures = {"classes": list(classes), "positive": kept.positive, "metrics": values}
    rows = _figure_rows(figures, wilson=metrics.wilson_proportions(matrix, positive=positive), intervals=None)
    threshold = (
        "none (it takes two classes, both among the validation tiles)"
        if kept.threshold is None
        else f"{_code(kept.positive)} from a probability of {kept.threshold:.3f} on (Youden's index)"
    )
    facts = [
        ("temperature", f"{kept.temperature:.3f} ({kept.method})"),
        ("expected calibration error", f"{kept.ece_before:.3f} before, {kept.ece_after:.3f} after"),
        ("operating point", threshold),
    ]
    few = ""
    if kept.tiles < calibration.FEW:
        few = " They are few: with others, temperature and threshold may be quite different."
    return [
        "## Validation",
        "",
        f"{kept.tiles} tiles.{few} They chose the epoch and fitted temperature and threshold, so these figures "
        "flatter; Wilson's intervals take tiles for independent and know nothing of that choice.",
        "",
        *_table(["figure", "value", "Wilson 95%", "tiles"], rows, numbers=3),
        "",
        *_table(["calibration", ""], facts),
        "",
    ]


def _untested(name: str) -> list[str]:
    return [f"Not evaluated yet. `sscl eval checkpoint=RUN`, where RUN is the folder {_code(name)}, fills this in."]


def _limit_lines(checkpoint: Checkpoint, train: Part, validation: Part, *, slides_known: bool) -> list[str]:
    data, classes = checkpoint.finetune_config.data, checkpoint.classes
    found = [
        "Not a medical device, and not tried on patients: it judges single tiles, and nothing here says how well a "
        "slide or a patient would be judged.",
        f"In this run it learned the labels of {_code(_name(data.root))} alone. Tiles of other scanners, stains, "
        "laboratories, magnifications or patients may be judged far worse; the size of a pixel in µm is not recorded.",
        f"It answers with one of {len(classes)} classes whatever it is shown, also for other tissue, a blank or a "
        "blurred tile, and may be sure of it. Leaving the least confident tiles undecided helps only in part.",
        "Validation chose the epoch, the temperature and the threshold; only tiles that chose nothing say what the "
        "classifier is worth.",
    ]
    if not slides_known:
        found.append(
            "No slide or patient ids: tiles of one slide may lie in training, validation and test, which would make "
            "all figures too good."
        )
    for what, part in (("train on", train), ("validate with", validation)):
        absent = [_code(label) for label, count in part.counts.items() if not count]
        if absent:
            found.append(f"There was no tile to {what} of {_listed(absent)}.")
    if data.source == "synthetic":
        found.append("The tiles are drawn by a program: the figures say nothing about tissue.")
    if min(train.counts.values()) < 50:
        rarest = min(train.counts, key=lambda label: train.counts[label])
        found.append(f"Few tiles to learn from: {train.counts[rarest]} of {_code(rarest)}.")
    return ["## Limits", "", *(f"- {text}" for text in found), ""]


def _use_lines(name: str) -> list[str]:
    folder = _plain(name)
    return [
        "## Use",
        "",
        *_fenced("sh", [f"sscl predict --checkpoint {shlex.quote(folder)} TILES  # predictions.csv"]),
        "",
        *_fenced("python", ["import sscl", "", f"model = sscl.load({folder!r})", 'model.predict("tile.png")']),
        "",
    ]


# --- what eval adds ---


def test_section(report: Mapping[str, Any], *, sections: Sequence[DataConfig], folder: Path) -> str:
    """Return what goes between the marker lines: the figures of an evaluation and what to know of them.

    Args:
        report: metrics.json of eval. folder: that of the evaluation.
        sections: the data sections that the weights were trained on; the last is that of the labels.
    """
    data, found = DataConfig(**report["data"]), report["calibration"]
    environment = run.environment()
    same = Path(data.root).resolve() == Path(sections[-1].root).resolve()
    counts = _listed(f"{n} {_code(label)}" for label, n in report["class_counts"].items())
    rows = _figure_rows(report, wilson=report["wilson"], intervals=report["intervals"])
    point, abstention = report["operating_point"], report["coverage"]["abstention"]
    if point is not None:
        title = f"from a probability of {point['threshold']:.3f} on"
        rows += [
            _row(f"{_code(report['positive'])} {key}, {title}", share["value"], share["interval"], share)
            for key in ("sensitivity", "specificity")
            if (share := point["here"][key]) is not None
        ]
    if abstention is not None:
        title = f"confidence of {abstention['threshold']:.3f} or more"
        names = {"decided": f"tiles decided, {title}", "accuracy": "accuracy on these"}
        rows += [
            _row(name, share["value"], share["interval"], share)
            for key, name in names.items()
            if (share := abstention["here"][key]) is not None
        ]
    after = found["after"]
    facts = [
        ("set", _set(data) + ("" if same else ", **another than trained on**")),
        ("tiles", f"{report['tiles']} ({counts})"),
        ("epoch of the checkpoint", str(report["epoch"])),
        ("temperature", f"{found['temperature']:.3f}"),
        (
            "expected calibration error",
            f"{after['ece']:.3f} (true probabilities: below {after['ece_by_chance']['quantile_95']:.3f} in 95%)",
        ),
        ("Brier score, 0 to 2", f"{after['brier']:.3f}"),
        ("test-time augmentation", "8 flips and rotations" if report["test_time_augmentation"] else "none"),
    ]
    caveats = [_pathless(text, roots=[section.root for section in (data, *sections)]) for text in report["caveats"]]
    lines = [
        f"By `sscl eval` (sscl {environment['sscl']}) on {environment['date'][:10]}; all of it: "
        f"{_code(folder.resolve().name + '/metrics.json')}.",
        "",
        *_table(["", ""], facts),
        "",
        *_table(["figure", "value", "bootstrap 95%", "Wilson 95%", "tiles"], rows, numbers=4),
        "",
        f"{_plain(report['interval_method'])}.",
    ]
    if caveats:
        lines += ["", "To know before believing these figures:", "", *(f"- {text}" for text in caveats)]
    return "\n".join(lines)


def refresh(path: Path, section: str) -> str | None:
    """Put a section between the marker lines of a card; return in words why not, None where it was done.

    Each marker must stand on a line of its own, once and in order. Nothing else in the file changes, nor do its line
    ends.
    """
    if not path.is_file():
        return f"there is no {path}"
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return f"{path} is not UTF-8 text; it stays as it is"
    lines = text.splitlines(keepends=True)
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == marker] for marker in (BEGIN, END))
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        return f"{path} has not the two marker lines, once each ({BEGIN} and {END}); it stays as it is"
    first = lines[begins[0]]
    end = first[len(first.rstrip("\r\n")) :]
    new = [line + end for line in ("", *section.split("\n"), "")]
    changed = "".join([*lines[: begins[0] + 1], *new, *lines[ends[0] :]])
    with writing.replacing(path) as temporary:
        temporary.write_bytes(changed.encode("utf-8"))
    return None


# --- Markdown ---


def _figure_rows(
    report: Mapping[str, Any], *, wilson: Mapping[str, Any], intervals: Mapping[str, Any] | None
) -> list[list[str]]:
    """Return figures as rows: name, value, the bootstrap's interval where there are some, Wilson's, counts."""
    values, classes = report["metrics"], report["classes"]
    drawn = intervals is not None
    keys = [(title, values[key], (intervals or {}).get(key), wilson.get(key), drawn) for key, title in _TITLES.items()]
    if report["positive"] is not None:
        for key in ("sensitivity", "specificity"):
            title = f"{_code(report['positive'])} {key}"
            keys.append((title, values[key], (intervals or {}).get(key), wilson[key], drawn))
    else:
        for i, label in enumerate(classes):
            found = None if intervals is None else intervals["per_class"][i]["recall"]
            share = wilson["per_class"][i]["recall"]
            keys.append((f"{_code(label)} recall", values["per_class"][i]["recall"], found, share, drawn))
    return [_row(*key) for key in keys]


def _row(name: str, value: float | None, interval: Any, share: Any, drawn: bool = True) -> list[str]:
    def ends(pair: Any) -> str:
        return "" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"

    score = ["", ""] if share is None else [ends(share["wilson"]), f"{share['count']} of {share['of']}"]
    return [name, "undefined" if value is None else f"{value:.3f}", *([ends(interval)] if drawn else []), *score]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> list[str]:
    """Return a Markdown table whose last `numbers` columns are right-aligned."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)]


def _plain(text: object) -> str:
    """Return text on one line, without what cannot be printed or written."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()


def _code(text: object) -> str:
    """Return a name as a code span, in which nothing is markup, whatever the name."""
    shown = _plain(text)
    longest = max((len(ticks) for ticks in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if not shown or shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _fenced(language: str, lines: Sequence[str]) -> list[str]:
    longest = max((len(ticks) for ticks in re.findall("`+", "\n".join(lines))), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *lines, fence]


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _name(path: str) -> str:
    """Return the last part of a path; of a file in a run's checkpoints/, with the run's name."""
    whole = Path(path).resolve()
    return "/".join(whole.parts[-3:]) if whole.parent.name == "checkpoints" else whole.name


def _set(data: DataConfig) -> str:
    protocol = f", protocol {data.protocol}" if data.source == "mhist" else ""
    return f"{_code(_name(data.root))} ({data.source}{protocol})"


def _pathless(text: str, *, roots: Sequence[str]) -> str:
    """Return a sentence as text, with folders by their last part alone."""
    whole = {Path(root).resolve() for root in roots}
    for path in sorted(whole, key=lambda path: -len(path.parts)):  # a folder in another first
        if path.name:
            text = text.replace(str(path), path.name)
    return re.sub(r"([\\`*_\[\]<>#|$~])", r"\\\1", _plain(text))


def _fold(training: FinetuneTrainConfig) -> str:
    if training.fold is None:
        return ""
    return f"; fold {training.fold} of {training.folds}, so one part of it was held out (`predictions.csv`)"


def _focus(training: FinetuneTrainConfig) -> str:
    return f", gamma {training.focal_gamma:g}" if training.loss.endswith("focal") else ""


def _words(key: str) -> str:
    return key.replace("_", " ")
