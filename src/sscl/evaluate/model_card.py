"""The model card of a classifier, Markdown: what it was trained on and how, validation metrics, limits.

`finetune` writes it beside the best checkpoint. `eval` puts the test metrics between two marker lines, see
`card_results`; everything else in the file is the user's to edit. Folders are named by their last part alone, so that a
card can be passed on. K classes, N validation tiles.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl import run
from sscl.config.encoders import TIMM
from sscl.config.messages import shown
from sscl.config.published import PUBLISHED
from sscl.config.training import FinetuneTrainConfig
from sscl.data.slide_set import WEAK
from sscl.data.synthetic import SAID, is_synthetic
from sscl.data.tiles import Tiles
from sscl.evaluate import calibration, metrics, proportions
from sscl.evaluate.card_results import BEGIN, END, cells, last_part, metric_rows, set_name
from sscl.evaluate.card_results import FILE as FILE
from sscl.evaluate.lineage import INDEPENDENT, NO_SLIDE_IDS
from sscl.evaluate.metric_intervals import interval_method, metric_intervals
from sscl.evaluate.tables import as_markdown, code, code_block, escaped, one_line
from sscl.models.checkpoint import Checkpoint
from sscl.words import count, listed

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """Training tiles, or validation tiles.

    Attributes:
        counts: tiles of each class. groups: how many groups they are of; None where there are none.
        group_of: the group of each tile, in order.
        synthetic: whether they were drawn by a program.
    """

    counts: Mapping[str, int]
    groups: int | None
    synthetic: bool = False
    group_of: tuple[str, ...] | None = field(default=None, compare=False)


def part_of(tiles: Tiles, rows: NDArray[np.int64]) -> Part:
    """Return what a card says of the labelled tiles at `rows`, (M,)."""
    found = np.bincount(tiles.labels[rows], minlength=len(tiles.classes))
    return Part(
        counts=dict(zip(tiles.classes, found.tolist(), strict=True)),
        groups=None if tiles.groups is None else len(np.unique(tiles.groups[rows])),
        synthetic=is_synthetic("", tiles.ids),
        group_of=None if tiles.groups is None else tuple(tiles.groups[rows].tolist()),
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
    warnings: Sequence[str] = (),
    unfinished: bool = False,
) -> str:
    """Return the text of a card, without test metrics yet.

    Args:
        checkpoint: with its calibration.
        folder: the run folder; its name alone is written.
        origin: where the encoder's weights came from, see `origin_of_weights`.
        train, validation: the tiles. carved: whether those for validation were taken from the training split.
        groups_are: what the groups of tiles are, in words. slides_known: whether slide or patient ids were given.
        unlabelled: tiles that took part in contrastive steps without their labels.
        warnings: what was doubtful about the task, a sentence each.
        unfinished: whether the training goes on; the card is written again at its end.
    """
    name = folder.resolve().name
    classes = listed([code(label) for label in checkpoint.classes])
    environment = run.environment()
    synthetic = train.synthetic or checkpoint.finetune_config.data.source == "synthetic"
    untested = f"Not evaluated yet. `sscl eval RUN`, where RUN is the folder {code(name)}, fills this in."
    tiles = "**synthetic tiles, drawn by a program**" if synthetic else "tiles of H&E-stained tissue"
    lines = [
        f"# Model card: {code(name)}",
        "",
        f"A {code(checkpoint.encoder_name)} that tells {classes} apart on {tiles}, "
        f"{checkpoint.size_px} px a side, {checkpoint.scale}. **Research software, not a medical device: do not base a "
        "diagnosis on it.**",
        "",
        f"Written by `sscl finetune` (sscl {environment.sscl}) on {environment.date[:10]}. `sscl eval` rewrites "
        "the lines between its marker lines and adds a part for each other set; you may edit everything else.",
        "",
        *_unfinished_lines(checkpoint, unfinished=unfinished),
        *_data_lines(checkpoint, train, validation, carved=carved, groups_are=groups_are, unlabelled=unlabelled),
        *_model_lines(checkpoint, origin=origin),
        *_training_lines(checkpoint),
        *_validation_lines(checkpoint, validation.group_of),
        *("## Test", "", BEGIN, "", untested, "", END, ""),
        *_limit_lines(checkpoint, train, warnings=warnings, slides_known=slides_known),
        *_use_lines(name),
    ]
    return "\n".join(lines)


def _unfinished_lines(checkpoint: Checkpoint, *, unfinished: bool) -> list[str]:
    planned = checkpoint.finetune_config.train.planned
    said = (
        f"**Unfinished: epoch {checkpoint.epoch} of {planned}.** The training had not ended when this was written; "
        "where it was interrupted, `sscl finetune run=RUN --resume` goes on."
    )
    return [said, ""] if unfinished else []


def origin_of_weights(weights: str | None, before: Checkpoint | None) -> str:
    """Return where an encoder's weights came from, in words.

    Args:
        weights: `model.weights`. before: the checkpoint that it names; None for other weights.
    """
    usual = {
        None: "random weights",
        "random": "random weights",
        "imagenet": "weights trained on ImageNet",
        "published": "its published weights",
    }
    if weights in usual:
        return usual[weights]
    if before is None:
        return f"the file {code(last_part(str(weights)))}, which does not say what it was trained on"
    first = before.config.model.weights
    own = usual.get(first) or f"{code(last_part(str(first)))}"
    if before.kind == "finetune":
        how = f"trained with labels ({listed([code(name) for name in before.classes])})"
    else:
        how = "pretrained without labels"
    return f"the run {code(last_part(str(weights)))}, {how}, {before.chosen}, itself from {own}"


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
    fold = ""
    if training.fold is not None:
        fold = f"; fold {training.fold} of {training.folds}, so one part was held out (`predictions.csv`)"
    rows = [
        ("set", set_name(data)),
        ("split", "the training split alone; test tiles were only searched for copies of training tiles" + fold),
        ("validation tiles", where),
        (
            "near-duplicates",
            "kept on one side of each split made here" if data.group_near_duplicates else "not looked for",
        ),
        ("stain normalisation", data.stain),
    ]
    if data.weak_labels:
        rows.insert(1, ("labels", WEAK))
    elif data.annotations is not None:
        areas = f"classes of areas that people drew and that cover {data.label_coverage:.0%} of a tile or more"
        rows.insert(1, ("labels", areas))
    elif data.reviews:
        rows.insert(1, ("labels", "classes that people gave to tiles in reviews, of which not all may have been blind"))
    if training.label_fraction < 1:
        rows.insert(2, ("labels used", f"{100 * training.label_fraction:g}% of each class, validation included"))
    if training.balance == "down":
        rows.append(("balance", "training tiles of each class reduced to the number of the smallest"))
    if unlabelled:
        rows.append(("without labels", f"{unlabelled} more tiles of the training split, in contrastive steps only"))
    rows.append(("fingerprint", code(checkpoint.fingerprint[:16]) + " (training split as a whole)"))
    parts = metrics.largest_classes({"training": train.counts, "validation": validation.counts})
    counts = [
        [label if label not in train.counts else code(label), str(number), str(parts["validation"][label])]
        for label, number in parts["training"].items()
    ]
    counts.append(["all", str(sum(train.counts.values())), str(sum(validation.counts.values()))])
    if train.groups is not None or validation.groups is not None:
        counts.append([groups_are, *("not known" if p.groups is None else str(p.groups) for p in (train, validation))])
    return [
        "## Data",
        "",
        _facts(rows),
        "",
        as_markdown([["tiles", "training", "validation"], *counts]),
        "",
    ]


def _scale(checkpoint: Checkpoint) -> str:
    scale, data = checkpoint.scale, checkpoint.finetune_config.data
    if not scale.span:
        return "not known: `data.mpp` was not given"
    middle = f", {scale.mpp:.3g} in the middle" if scale.mpp_range else ""
    where = "at which the slides were indexed" if data.source == "slides" else "as given, `data.mpp`"
    if data.mpp is None:
        table = "by the table's column `mpp` and the sides of its files"
        where = table if data.source == "table" else "as these tiles are drawn"
    return f"{scale}{middle} at {checkpoint.size_px} px a side ({where})"


def encoder_options(checkpoint: Checkpoint) -> str:
    """Return how the encoder differs from others of its name, in words."""
    name = checkpoint.encoder_name
    said = [f"{checkpoint.stem} stem", f"stride {checkpoint.output_stride}"]
    if name.startswith(TIMM) or name in PUBLISHED:
        said = [f"feature {checkpoint.pooling}"]
    return ", ".join([*said, *(f"{key} {shown(value)}" for key, value in checkpoint.kwargs.items())])


def _model_lines(checkpoint: Checkpoint, *, origin: str) -> list[str]:
    mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (checkpoint.mean, checkpoint.std))
    rows = [
        ("encoder", f"{code(checkpoint.encoder_name)}, {encoder_options(checkpoint)}"),
        ("head", f"linear, {len(checkpoint.classes)} classes"),
        ("started from", origin),
        ("scale", _scale(checkpoint)),
        (
            "input",
            f"RGB, {checkpoint.size_px} px a side; channel means {mean}, standard deviations {std} (pixels in 0-1)",
        ),
    ]
    sets = list(dict.fromkeys(set_name(section) for section in checkpoint.lineage))
    if sets:
        rows.insert(3, ("trained before on", "; ".join(sets)))
    return ["## Model", "", _facts(rows), ""]


_FROZEN_VIEWS = {
    "none": "each tile as it is",
    "symmetries": "the 8 flips and rotations of each tile",
    "random": "{count} random views of each tile",
    "each_epoch": "another random view of each tile in each epoch",
}


def learned(train: FinetuneTrainConfig) -> str:
    """Return what was trained, and on which views where that was the head alone."""
    if train.lora.rank is not None:
        layers = listed([code(target) for target in train.lora.targets])
        return f"the head, and in the encoder LoRA of rank {train.lora.rank} for {layers}, merged into its weights"
    if not train.freeze_encoder:
        return "the whole model"
    return f"the head alone, on fixed features of {_FROZEN_VIEWS[train.frozen_views].format(count=train.view_count)}"


def _training_lines(checkpoint: Checkpoint) -> list[str]:
    config = checkpoint.finetune_config
    train, contrast = config.train, config.contrast
    how = learned(train)
    if train.freeze_batch_norm:
        how += ", with the batch-norm statistics of the start"
    gamma = f", gamma {train.focal_gamma:g}" if train.loss.endswith("focal") else ""
    rates = f"{train.learning_rate:g} (head {train.head_learning_rate:g})"
    if train.layer_decay < 1:
        rates += f", times {train.layer_decay:g} from each block of the encoder to the one before"
    select = train.select.replace("_", " ")
    rows = [("trained", how), ("loss", train.loss.replace("_", " ") + gamma)]
    if train.head == "logistic":
        c = (checkpoint.validation or {})["c"]
        rows += [
            ("fitted by", "logistic regression (L-BFGS) to standardised features, of training tiles alone"),
            ("C", f"{c:g} of {len(train.c_grid)} values, the best by validation {select}"),
        ]
    else:
        views = "" if train.freeze_encoder else ", as random views"
        rows += [
            ("optimizer", f"{train.optimizer}, peak learning rate {rates}, {train.schedule} schedule"),
            ("weight decay", f"{train.weight_decay:g}"),
            ("batch", f"{train.batch_size} tiles, or all if there are fewer{views}"),
            ("epoch", f"{checkpoint.epoch} of at most {train.epochs}, the best by validation {select}"),
        ]
    rows += [
        ("precision, seed", f"{checkpoint.precision}, {config.seed}"),
    ]
    if train.balance == "draws":
        rows.append(("balance", "classes drawn equally often; in the loss each weighs 1"))
    if contrast.kind != "none":
        rows.append(("contrastive steps", f"{contrast.kind} at temperature {contrast.temperature:g}, alternating"))
    return ["## Training", "", _facts(rows), "", "All settings: `config.yaml` beside this file.", ""]


def _validation_lines(checkpoint: Checkpoint, groups: Sequence[str] | None) -> list[str]:
    """Return the metrics of the validation tiles, from the logits that the checkpoint keeps. groups: of each tile."""
    kept, classes = checkpoint.fitted, checkpoint.classes
    positive = None if kept.positive is None else classes.index(kept.positive)
    labels = kept.labels.numpy()
    probabilities = calibration.softmax(kept.logits, temperature=kept.temperature)
    matrix = metrics.confusion_matrix(labels, probabilities.argmax(1), num_classes=len(classes))
    values = metrics.classification_metrics(labels, probabilities, positive=positive)
    intervals = metric_intervals(labels, probabilities, positive=positive, groups=groups)
    shares = proportions.metric_proportions(matrix, intervals, positive=positive)
    over = INDEPENDENT if groups is None else interval_method(groups)
    over = over[0].upper() + over[1:]
    rows = [cells(row) for row in metric_rows(classes, kept.positive, values, shares, intervals, groups=groups)]
    threshold = (
        "none (needs two classes, both among the validation tiles)"
        if kept.threshold is None
        else f"call {code(kept.positive)} if p >= {kept.threshold:.3f} (maximises Youden's index)"
    )
    facts = [
        ("temperature", f"{kept.temperature:.3f} ({kept.method})"),
        ("expected calibration error", f"{kept.ece_before:.3f} before, {kept.ece_after:.3f} after"),
        ("operating point", threshold),
    ]
    few = " They are few: other ones may give another temperature and threshold." * (kept.tiles < calibration.FEW)
    return [
        "## Validation",
        "",
        f"{count(kept.tiles, 'tile')}.{few} They chose {checkpoint.chosen_kind}, the temperature and the threshold, so "
        f"these metrics are optimistic; the intervals do not show by how much. {over}.",
        "",
        as_markdown([["metric", "value", "95% interval", "tiles"], *rows]),
        "",
        _facts(facts, title="calibration"),
        "",
    ]


def _facts(rows: Rows, *, title: str = "") -> str:
    return as_markdown([[title, ""], *map(list, rows)], texts=2)


def _limit_lines(checkpoint: Checkpoint, train: Part, *, warnings: Sequence[str], slides_known: bool) -> list[str]:
    data, classes = checkpoint.finetune_config.data, checkpoint.classes
    unknown = "" if checkpoint.scale.span else "; its own µm per pixel are not known, so nothing warns of another scale"
    found = [
        "Not a medical device, and not tested on patients: it classifies single tiles, and nothing here says how well "
        "it would classify a slide or a patient.",
        f"In this run it learned the labels of {code(last_part(data.root))} alone. It may do far worse on tiles of "
        f"other scanners, stains, laboratories, magnifications or patients{unknown}.",
        f"It answers with one of {len(classes)} classes whatever it is shown, also for other tissue, a blank or a "
        "blurred tile, and may be confident about it. Abstaining on the least confident tiles helps only in part.",
        f"Validation chose {checkpoint.chosen_kind}, the temperature and the threshold; only metrics on tiles that "
        "chose nothing are unbiased.",
    ]
    if not slides_known:
        found.append(f"{NO_SLIDE_IDS[0].upper()}{NO_SLIDE_IDS[1:]}.")
    found += [escaped(f"{text[0].upper()}{text[1:]}.") for text in warnings]
    if train.synthetic or data.source == "synthetic":
        found.append(f"{SAID[0].upper()}{SAID[1:]}.")
    if min(train.counts.values()) < 50:
        rarest = min(train.counts, key=lambda label: train.counts[label])
        found.append(f"Few training tiles: {train.counts[rarest]} of {code(rarest)}.")
    return ["## Limits", "", *(f"- {text}" for text in found), ""]


def _use_lines(name: str) -> list[str]:
    folder = one_line(name)
    return [
        "## Use",
        "",
        *code_block("sh", [f"sscl predict {shlex.quote(folder)} TILES  # predictions.csv"]),
        "",
        *code_block("python", ["import sscl", "", f"model = sscl.load({folder!r})", 'model.predict("tile.png")']),
        "",
    ]
