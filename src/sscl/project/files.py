"""The YAML files of a project, each line with why it is so."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from sscl.config.encoders import RESNETS
from sscl.models.resnet import SMALL
from sscl.project.look import LAYOUTS, Found
from sscl.project.settings import Encoder, Plan
from sscl.words import count
from sscl.writing import in_line

FILES = ("pretrain.yaml", "finetune.yaml", "eval.yaml", "gradcam.yaml", "report.yaml")
PATHS = ("groups_csv", "cache_dir", "slides_root", "annotations", "reviews")
IMBALANCE = 2.0  # classes whose sizes differ by more are weighted in the loss


class Recipe(NamedTuple):
    """Settings of a shipped config, by folder of configs; the rates are those of fine-tuning."""

    configs: str
    tiles: str
    temperature: float | None
    learning_rate: float
    head_learning_rate: float


RECIPES = {
    "resnet18": Recipe("colon", "other colon tiles", 0.2, 5e-4, 2e-3),
    SMALL: Recipe("demo", "the demo's tiles", None, 1e-3, 1e-3),
}


@dataclass
class Lines:
    """The lines of a YAML file."""

    lines: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.lines.append(f"# {text}" if text else "")

    def section(self, name: str) -> None:
        """Begin a section; `put` with indent=1 adds to it."""
        self.lines.append(f"{name}:")

    def put(self, key: str, value: object, why: str, *, indent: int = 0) -> None:
        """Add a key, its value as it loads again, and why."""
        self.lines.append(f"{'  ' * indent}{in_line(key, value)}  # {why}")

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def texts(found: Found, encoder: Encoder, plan: Plan, *, out: Path, device: str) -> dict[str, str]:
    """Return the files of a project by name: pretraining alone where there are no classes.

    Args:
        out: the folder of the project. device: as given; auto is not written.
    """
    written = {"pretrain.yaml": _pretrain(found, encoder, plan, out=out)}
    if found.classes:
        written["finetune.yaml"] = _finetune(found, encoder, plan, out=out)
        written |= _results(found, out=out)
    line = "" if device == "auto" else f"{in_line('device', device)}  # as given\n"
    return {name: text + line for name, text in written.items()}


def place(folder: Path, name: str) -> str:
    """Return a path that holds from any working folder."""
    return os.path.join(os.path.abspath(folder), name)


def _head(what: str, command: str, *, out: Path) -> Lines:
    """Begin a file with what it is, and how it is run alone."""
    file = Lines()
    file.note(what)
    file.note(f"  sscl {command} {shlex.quote(place(out, f'{command}.yaml'))}")
    file.note(f"Written by sscl init; sscl train runs all files of this folder. All keys: sscl {command} --help-all")
    return file


def _absolute(value: str | tuple[str, ...]) -> str | list[str]:
    return os.path.abspath(value) if isinstance(value, str) else [os.path.abspath(path) for path in value]


def _data(file: Lines, found: Found, encoder: Encoder, *, pretrains: bool) -> None:
    """Add the sections data and augment; fine-tuning takes the size of the tiles from the pretraining."""
    data = found.data
    file.section("data")
    file.put("root", os.path.abspath(data.root), count(found.total, "tile"), indent=1)
    file.put("source", data.source, LAYOUTS[data.source], indent=1)
    if pretrains:
        file.put("size_px", encoder.size_px, encoder.why_size, indent=1)
    for key, (value, why) in found.chosen.items():
        file.put(key, _absolute(value) if key in PATHS else value, why, indent=1)
    if pretrains and found.tiles_per_slide is not None and "tiles_per_slide" not in found.chosen:
        low, high = found.of_slides.min(), found.of_slides.max()
        why = f"of each an epoch, none twice until all were seen: slides have {low:,} to {high:,}"
        file.put("tiles_per_slide", found.tiles_per_slide, why, indent=1)
    if pretrains and found.classes and data.source in ("folder", "table", "slides"):
        file.put("labels", True, "leaves out the test tiles, and measures k-NN accuracy", indent=1)
    if encoder.name in RECIPES:
        file.section("augment")
        file.put("rotation_degrees", 90, "tissue has no upright", indent=1)
        file.put("stain_probability", 0.8, "slides are stained differently", indent=1)


def _pretrain(found: Found, encoder: Encoder, plan: Plan, *, out: Path) -> str:
    file = _head("Pretraining without labels (SimCLR).", "pretrain", out=out)
    file.put("run", place(out, "pretrain"), "the folder that is written")
    _data(file, found, encoder, pretrains=True)
    file.section("model")
    file.put("name", encoder.name, encoder.why_name, indent=1)
    if encoder.stem != "standard":
        file.put("stem", encoder.stem, "first layers for tiles under 96 px", indent=1)
    file.lines.append("  # weights: imagenet  # start from ImageNet's weights; they are downloaded once")
    file.section("train")
    file.put("epochs", plan.epochs, plan.why_epochs, indent=1)
    file.put("batch_size", plan.batch_size, plan.why_batch, indent=1)
    warm = max(0.5, min(10.0, plan.epochs / 10))
    file.put("warmup_epochs", warm, "of a rising learning rate, at the start", indent=1)
    if encoder.name in RECIPES:
        recipe = RECIPES[encoder.name]
        file.put("optimizer", "adamw", "learns faster than sgd in few epochs", indent=1)
        file.put("learning_rate", 1e-3, f"as for {recipe.tiles} (sscl configs {recipe.configs}/pretrain)", indent=1)
        file.put("learning_rate_scaling", "none", "adamw needs none", indent=1)
        if recipe.temperature is not None:
            file.put("temperature", recipe.temperature, f"as for {recipe.tiles}", indent=1)
    return file.text()


def _finetune(found: Found, encoder: Encoder, plan: Plan, *, out: Path) -> str:
    file = _head("Training of the classifier with labels.", "finetune", out=out)
    file.put("run", place(out, "finetune"), "the folder that is written")
    _data(file, found, encoder, pretrains=False)
    file.section("model")
    if encoder.name in RESNETS and encoder.size_px < 160:
        file.put("output_stride", 16, "heatmaps twice as fine", indent=1)
    file.put("weights", place(out, "pretrain"), "the pretraining, with its encoder and size of tiles", indent=1)
    file.section("train")
    file.put("epochs", plan.labelled_epochs, "at most; the best on validation tiles is kept", indent=1)
    file.put("batch_size", plan.labelled_batch_size, "as many steps an epoch as its tiles allow", indent=1)
    if plan.steps is not None:
        file.put("steps_per_epoch", plan.steps, "few tiles: each is seen several times an epoch", indent=1)
    if encoder.name in RECIPES:
        recipe = RECIPES[encoder.name]
        why = f"as for {recipe.tiles} (sscl configs {recipe.configs}/finetune)"
        file.put("learning_rate", recipe.learning_rate, why, indent=1)
        file.put("head_learning_rate", recipe.head_learning_rate, "likewise", indent=1)
    sizes = sorted(number for name, number in found.train.class_counts().items() if name in found.classes and number)
    if sizes and sizes[-1] > IMBALANCE * sizes[0]:
        why = f"classes have {sizes[0]:,} to {sizes[-1]:,} tiles; each counts the same"
        file.put("loss", "weighted_cross_entropy", why, indent=1)
    return file.text()


def _results(found: Found, *, out: Path) -> dict[str, str]:
    """Return the files of what is done with the classifier."""
    run, left_out = place(out, "finetune"), "" if "test" in found.parts else " Left out until there is a test split."
    evaluated = _head(f"Metrics on the test tiles, which selected nothing.{left_out}", "eval", out=out)
    evaluated.put("checkpoint", run, "the classifier")
    maps = _head(f"Heatmaps of test tiles, and whether they can be trusted.{left_out}", "gradcam", out=out)
    maps.put("checkpoint", run, "the classifier")
    maps.put("threshold", 0.5, "boxes hold what is above half the maximum; at 0.2 they often fill the tile")
    maps.put("checks", True, "random weights, deletion and insertion, turned tiles")
    maps.put("check_tiles", 16, "enough for a first look")
    page = _head(f"Everything on one page, to read offline.{left_out}", "report", out=out)
    page.put("runs", [run, place(out, "pretrain")], "the classifier, and what it started from")
    page.put("out", place(out, "report.html"), "the page")
    page.note("Afterwards, for whole slides a heatmap, files for QuPath and a page each; then at full resolution:")
    page.note(f"  sscl predict {shlex.quote(run)} SLIDES out=ANSWERS")
    page.note("  sscl slides view ANSWERS")
    if not found.scale.span:
        page.note("It needs the scale of the tiles: data.mpp (µm per pixel) in pretrain.yaml and finetune.yaml.")
    return {"eval.yaml": evaluated.text(), "gradcam.yaml": maps.text(), "report.yaml": page.text()}
