"""sscl demo: the whole method on synthetic polyps, with the commands that a user would type."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sscl import children, forks, run
from sscl.config import DemoConfig, shipped
from sscl.evaluate.comparison import Comparison
from sscl.evaluate.metrics import classification_metrics
from sscl.evaluate.records import Evaluation
from sscl.explain.records import CHECKED_BY, Localisation, MapChecks
from sscl.records import read_record
from sscl.report.blocks import number
from sscl.report.slide_folder import content_of, slide_folders
from sscl.report.slide_record import PAGE
from sscl.slides.libraries import library, openslide
from sscl.writing import naming

LOG = "output.txt"
SLIDE, PREDICTED = "slide", "predicted"
TRUTH = {"HP": (2, 4), "SSA": (3, 5)}  # in the picture of a drawn slide's truth: lesion, crypt bases
# What the steps import, those of the comparison too, in the order in which they do.
IMPORTED = (
    *("sscl.cli", "sscl.commands.data", "sscl.commands.audit", "scipy.sparse.csgraph", "sscl.commands.pretrain"),
    *("torch._dynamo", "sscl.commands.finetune", "sscl.commands.evaluate", "sscl.commands.compare", "scipy.stats"),
    *("sklearn.metrics", "sscl.commands.gradcam", "sscl.commands.draw_slides", "sscl.commands.predict"),
    "sscl.commands.report",
)


@dataclass(frozen=True)
class Step:
    """A command, as its words after `sscl`, what it does, and the config that it takes."""

    title: str
    words: list[str]
    config: str


def main(config: DemoConfig, *, overwrite: bool = False) -> None:
    """Run every step, with what it prints in a file; then say what came out, and which files to open.

    Raises:
        ValueError: a step failed, or the folder to write exists.
        FileNotFoundError: one of the demo's YAML files is missing.
    """
    folder = Path(config.run)
    no_slides = missing_library()
    todo = steps(config.configs, folder, slides=no_slides is None)
    for step in todo:
        shipped.find(step.config, key="configs")
    started = time.perf_counter()
    with run.holding(folder), forks.prepared(*IMPORTED):
        run.start_folder(folder, config, overwrite=overwrite)
        log = folder / LOG
        for number, step in enumerate(todo, start=1):
            print(f"\n{number}/{len(todo)}  {step.title}\n$ sscl {shlex.join(step.words)}", flush=True)
            with naming(log), log.open("a", encoding="utf-8") as output:
                output.write(f"\n$ sscl {shlex.join(step.words)}\n")
                output.flush()
                code = children.run_command(step.words, stage=True, output=output)
            if code != 0:
                command = f"sscl {shlex.join(step.words)}"
                raise ValueError(f"demo: `{command}` failed; its message is above, what it printed before in {log}")
    print("\n".join(["", *summary(folder)]))
    if no_slides is not None:
        print(f"Without a whole slide: {no_slides}")
    panels = sorted((folder / "finetune" / "gradcam_test").glob("*_panel.png"))
    print(f"\nDone in {(time.perf_counter() - started) / 60:.1f} minutes. Open:")
    pages = sorted((folder / PREDICTED).glob(f"*/{PAGE}"))
    for what, path in (
        ("everything on one page", folder / "finetune" / "report.html"),
        *(("a whole slide", page) for page in pages),
        ("the tiles", folder / "inspect" / "contact_sheet.png"),
        ("their two views", folder / "inspect" / "two_views.png"),
        ("pretraining curves", folder / "pretrain" / "curves.png"),
        ("few labels, with and without", folder / "few" / "compare.md"),
        ("confusion matrix", folder / "finetune" / "eval_test" / "confusion.png"),
        ("where the model looked", panels[0] if panels else folder / "finetune" / "gradcam_test"),
        ("what the commands printed", folder / LOG),
    ):
        print(f"  {what:<30}{path}")


def missing_library() -> str | None:
    """Return what to install to read slides; None: it is there."""
    try:
        openslide(), library("tifffile")
    except ValueError as error:
        return str(error)
    return None


def steps(configs: str, folder: Path, *, slides: bool = True) -> list[Step]:
    """Return the commands in their order.

    Args:
        configs: a folder of YAML files, or of shipped configs; a folder that exists wins.
        folder: where everything is written. slides: whether slides can be read here.
    """
    tiles, audit, pretrained, few, finetuned, drawn, predicted = (
        folder / name for name in ("tiles", "audit", "pretrain", "few", "finetune", SLIDE, PREDICTED)
    )
    ending = ".yaml" if Path(configs).is_dir() else ""

    def step(title: str, name: str, *overrides: str, file: str | None = None) -> Step:
        config = f"{configs}/{file or name.split()[-1]}{ending}"
        return Step(title, [*name.split(), config, *overrides], config)

    of_slide = [
        step("Draw a whole slide", "slides synth", str(drawn), file="slide"),
        step(
            "The classifier on it: heatmap, files for QuPath, a page",
            "predict",
            str(finetuned),
            str(drawn / "slides"),
            f"out={predicted}",
        ),
    ]
    return [
        step("Draw polyps: tiles, truth masks, slides", "data synth", str(tiles)),
        step("Look at them", "data inspect", str(tiles), f"out={folder / 'inspect'}"),
        step("Does the split leak?", "data audit", str(tiles), f"out={audit}"),
        step("Pretrain without labels", "pretrain", str(tiles), f"run={pretrained}"),
        step(
            "A tenth of the labels, three times: pretrained, and from scratch",
            "compare",
            f"root={tiles}",
            f"runs.1.set=[model.weights={pretrained}]",
            f"out={few}",
            file="tenth",
        ),
        step("Fine-tune with all labels", "finetune", str(tiles), f"from={pretrained}", f"run={finetuned}"),
        step("Evaluate on slides that selected nothing", "eval", str(finetuned)),
        step("Heatmaps, and checks of them", "gradcam", str(finetuned)),
        *(of_slide if slides else []),
        step("One page of it all", "report", *map(str, [finetuned, few, audit, *([predicted] if slides else [])])),
    ]


def summary(folder: Path) -> list[str]:
    """Return what came out, in lines: few labels, all labels, heatmaps and their checks."""
    tested = folder / "finetune" / "eval_test"
    found = read_record(Evaluation, tested / "metrics.json", made_by="sscl eval")
    compared = read_record(Comparison, folder / "few" / "compare.json", made_by="sscl compare")
    maps = folder / "finetune" / "gradcam_test"
    lines = ["What came out", "-------------"]
    rows = {row.name: row.mean["balanced_accuracy"] for row in compared.rows}
    lines.append("balanced accuracy on the test slides, with a tenth of the labels:")
    lines += [f"  {name:<22}{value:.3f}" for name, value in rows.items()]
    for difference in compared.differences.values():
        interval = difference.intervals["balanced_accuracy"]
        shown = "" if interval is None else f" (95%: {interval[0]:+.3f} to {interval[1]:+.3f})"
        lines.append(f"  difference            {difference.mean['balanced_accuracy']:+.3f}{shown}")
        lines.append(f"                        {difference.verdicts['balanced_accuracy']}")
    lines.append("with all labels:")
    accuracy, ends = found.metrics.balanced_accuracy, found.intervals.balanced_accuracy
    shown = "" if ends is None else f" (95%: {ends[0]:.3f} to {ends[1]:.3f})"
    lines.append(f"  pretrained            {accuracy:.3f}{shown}")
    if (folder / PREDICTED).is_dir():
        lines += slide_lines(folder, found)
    if (maps / "localisation.json").exists():
        hits = read_record(Localisation, maps / "localisation.json", made_by="sscl gradcam")
        lines.append("peak of the heatmap on the crypt bases, which alone decide the class:")
        lines.append(f"  this model            {hits.this_model.peak_hit:.2f}")
        lines.append(f"  random weights        {hits.random_weights.peak_hit:.2f}")
        lines.append(f"  a random point        {hits.whole_tile.peak_hit:.2f}")
        lines.append("boxes against those around the bases, mean overlap (IoU):")
        lines.append(f"  this model            {hits.this_model.mean_boxes_iou:.2f}")
        for name, gain in hits.gains.items():
            shown = "" if gain.interval is None else f" (gain, 95%: {gain.interval[0]:+.2f} to {gain.interval[1]:+.2f})"
            lines.append(f"  {name:<22}{hits.each[name].mean_boxes_iou:.2f}{shown}")
    if (maps / "checks.json").exists():
        checks = read_record(MapChecks, maps / "checks.json", made_by=CHECKED_BY)
        lines.append("checks of the heatmaps:")
        lines += [f"  {check.outcome.value:<22}{check.question}" for check in checks.each.values()]
    lines.append("Synthetic tiles, drawn by a program: they say nothing about tissue.")
    return lines


def slide_lines(folder: Path, tiles: Evaluation) -> list[str]:
    """Return how the classifier did on the drawn slide, on the tiles of which at least half is a lesion of one class.

    Args:
        tiles: how it did on the test tiles.
    """
    (predicted,) = slide_folders(folder / PREDICTED)
    record, content = predicted.record, content_of(predicted)
    truth = np.asarray(Image.open(folder / SLIDE / "truth" / Path(record.name).with_suffix(".png")))
    corners = np.rint(content.xy / (record.width / truth.shape[1])).astype(int)
    side = round(record.footprint * truth.shape[1] / record.width)
    values = [TRUTH[name] for name in record.classes]
    shares = np.array(
        [[np.isin(truth[y : y + side, x : x + side], of).mean() for of in values] for x, y in corners.tolist()]
    )
    rows = np.flatnonzero(shares.max(1) >= 0.5)
    if not len(rows):
        return []
    labels = shares[rows].argmax(1)
    positive = record.classes.index(record.positive or record.classes[-1])
    found = classification_metrics(labels, content.probabilities[rows], positive=positive)
    lines = ["on a drawn slide, its tiles that are half lesion or more, and the test tiles:"]
    for name, here, there in zip(record.classes, found.per_class, tiles.metrics.per_class, strict=True):
        called = f"{name} called {name}"
        lines.append(
            f"  {called:<22}{number(here.recall)} of {here.support:<8}{number(there.recall)} of {there.support}"
        )
    lines.append(f"  {'AUROC':<22}{number(found.auroc):<17}{number(tiles.metrics.auroc)}")
    return lines
