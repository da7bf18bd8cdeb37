"""README.md of an export: the model card as the Hugging Face hub shows it, with its YAML head.

Below the head it says how to load the files; then comes the MODEL_CARD.md of the run, as the user has left it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sscl.config.published import PUBLISHED
from sscl.evaluate import card_results, records
from sscl.evaluate.card_results import SHOWN
from sscl.evaluate.intervals import ends_text
from sscl.evaluate.metrics import display_name
from sscl.evaluate.records import Evaluation
from sscl.evaluate.tables import code, code_block, escaped
from sscl.metrics_log import name_of_row
from sscl.models.exported import Exported
from sscl.models.exports import ExportReport
from sscl.models.timm_folder import Fitted, named
from sscl.records import read_record
from sscl.words import listed
from sscl.writing import to_yaml

FILE = "README.md"
METRICS = {"auroc": "roc_auc", "mcc": "matthews_correlation"}  # the hub's own names


def hub_card(
    exported: Exported,
    report: ExportReport,
    *,
    name: str,
    folder: Path | None,
    timm: Fitted | None,
    address: str,
    license: str | None,
) -> str:
    """Return the text of the card.

    Args:
        exported, report: the model, and what its JSON file says.
        name: of the model. folder: of its run; None: of no run of sscl.
        timm: the model of timm. address: what `timm.create_model` is given.
        license: the hub's name of it; None: not said.
    """
    evaluations = evaluations_of(folder, epoch=report.epoch) if report.what == "classifier" and folder else []
    lines = [
        "---",
        to_yaml(head(report, evaluations, name=name, timm=timm, license=license)).rstrip("\n"),
        "---",
        "",
        f"# {escaped(name)}",
        "",
        f"A {code(report.encoder)}, "
        + (f"which tells {listed([code(label) for label in exported.classes])} apart on" if exported.classes else "for")
        + f" tiles of H&E-stained tissue, {report.size_px} px a side, {exported.scale}. "
        "**Research software, not a medical device: do not base a diagnosis on it.**",
        "",
        *_training(report),
        *(_loading(exported, timm, address=address) if timm is not None else []),
        *(["Before using it:", "", *(f"- {escaped(note)}" for note in report.notes), ""] if report.notes else []),
    ]
    run = _of_the_run(folder) if report.what == "classifier" and folder else ""
    return "\n".join([*lines, run] if run else lines)


def head(
    report: ExportReport, evaluations: Sequence[Evaluation], *, name: str, timm: Fitted | None, license: str | None
) -> dict[str, object]:
    """Return the YAML head; metrics are in it where `sscl eval` has measured them."""
    one = PUBLISHED.get(report.encoder)
    task = "image-classification" if report.what == "classifier" else "image-feature-extraction"
    found: dict[str, object] = {} if license is None else {"license": license}
    found |= {} if timm is None else {"library_name": "timm"}
    found |= {} if one is None else {"base_model": one.hub}
    tags = [*(["timm"] if timm is not None else []), task, "histopathology", "sscl"]
    found |= {"pipeline_tag": task, "tags": tags}
    results = [
        {
            "task": {"type": task, "name": task.replace("-", " ").capitalize()},
            "dataset": {"name": _set(evaluated), "type": evaluated.data.source, "split": evaluated.split},
            "metrics": _metrics(evaluated),
        }
        for evaluated in evaluations
    ]
    return found | ({"model-index": [{"name": name, "results": results}]} if results else {})


def evaluations_of(folder: Path, *, epoch: int | None) -> list[Evaluation]:
    """Return what `sscl eval` found for the checkpoint of this epoch of a run.

    Raises:
        ValueError: a file is not as this version writes it.
    """
    files = sorted(folder.glob(f"eval_*/{records.FILE}"))
    found = [read_record(Evaluation, file, made_by="sscl eval") for file in files]
    return [evaluated for evaluated in found if evaluated.epoch == epoch]


def _set(evaluated: Evaluation) -> str:
    """Return the name of a set, and what makes it another one than it sounds."""
    marks = ["drawn by a program"] if evaluated.synthetic else []
    marks += ["another set than that of training"] if evaluated.external else []
    return card_results.last_part(evaluated.data.root) + (f" ({', '.join(marks)})" if marks else "")


def _metrics(evaluated: Evaluation) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for key in SHOWN:
        value, interval = getattr(evaluated.metrics, key), getattr(evaluated.intervals, key)
        if value is not None:
            ends = "no interval" if interval is None else f"95% interval {ends_text(interval)}"
            of = f"{evaluated.tiles} tiles" + (f" of {evaluated.groups} slides" if evaluated.groups else "")
            name = f"{display_name(key)} ({ends}; {of})"
            rows.append({"type": METRICS.get(key, key), "value": round(value, 4), "name": name})
    return rows


def _training(report: ExportReport) -> list[str]:
    """Return what an encoder was trained on; the card of a classifier's run says it."""
    if report.kind is None or report.what == "classifier":
        return []
    sets = listed([code(card_results.last_part(str(section.root))) for section in report.history])
    how = "Pretrained without labels" if report.kind == "pretrain" else "Trained with labels"
    chosen = "" if report.epoch is None else f" ({name_of_row(report.epoch, report.c)})"
    return [f"{how}{chosen}; the tiles behind its weights: {sets}.", ""]


def _loading(exported: Exported, timm: Fitted, *, address: str) -> list[str]:
    """Return how to use the model with timm, as code that runs."""
    layers = {key: named(value) for key, value in timm.in_code.items()}
    given = "".join(f", {key}={name}" for key, name in layers.items())
    lines = [
        "import timm",
        "import torch",
        "from PIL import Image",
        *([f"from timm.layers import {', '.join(layers.values())}"] if layers else []),
        "",
        f'model = timm.create_model("{address}", pretrained=True{given}).eval()',
        "config = timm.data.resolve_model_data_config(model)",
        "transform = timm.data.create_transform(**config, is_training=False)",
        'tile = transform(Image.open("tile.png").convert("RGB"))',
        "with torch.inference_mode():",
        f"    {'logits' if exported.classes else 'tokens' if timm.tokens else 'features'} = model(tile[None])",
    ]
    if exported.decisions is not None:
        lines.append(f"probabilities = torch.softmax(logits / {exported.decisions.temperature:.6g}, dim=1)")
        lines.append("print(dict(zip(model.pretrained_cfg['label_names'], probabilities[0].tolist())))")
    if timm.tokens:
        patches = f"tokens[:, {timm.net.num_prefix_tokens} :]"
        lines.append(f"features = torch.cat([tokens[:, 0], {patches}.mean(1)], dim=1)")
    return [*code_block("python", lines), ""]


def _of_the_run(folder: Path) -> str:
    """Return the model card of a run without its first words and its last part, how sscl uses the run."""
    file = folder / card_results.FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]
    return "".join(part for part in parts if not part.startswith("## Use\n"))
