"""Train a head on a frozen encoder with the encoder in each epoch, and on features that are computed once, in turn.

    python scripts/benchmarks/frozen.py TILES [--encoder efficientnet_lite0 --weights imagenet --size-px 96 ...]

TILES is an image folder with a training split. Of its labels a part is used; the others measure the heads once more:
they are no test tiles, and chose nothing. As a topic of main.py it draws tiles and takes a random encoder, which says
something about time alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from table import Row

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))  # this checkout is measured, installed or not
from sscl.config import FinetuneConfig  # noqa: E402
from sscl.data.load import load_tiles  # noqa: E402
from sscl.data.synthetic import write_synthetic  # noqa: E402
from sscl.data.tiles import UNLABELLED, place_store  # noqa: E402
from sscl.metrics_log import read_metrics  # noqa: E402
from sscl.models import features  # noqa: E402
from sscl.models.classifier import load_classifier  # noqa: E402
from sscl.models.pixels import normalisation  # noqa: E402
from sscl.train.finetune import train_classifier  # noqa: E402
from sscl.train.labelled import used_labels  # noqa: E402

# The first is the way to compare with: the encoder runs in each epoch.
WAYS: dict[str, dict[str, Any]] = {
    "each_epoch": {"frozen_views": "each_epoch"},
    "none": {"frozen_views": "none"},
    "symmetries": {"frozen_views": "symmetries"},
    "random, 8 views": {"frozen_views": "random", "view_count": 8},
    "logistic, none": {"head": "logistic"},
}


def measure(*, quick: bool, device: torch.device) -> list[Row]:
    """Return the rows of the topic."""
    with tempfile.TemporaryDirectory() as folder:
        tiles = Path(folder) / "tiles"
        write_synthetic(tiles, count=48 if quick else 480, size_px=32 if quick else 96, workers=1)
        given = {
            "data": {"root": str(tiles), "source": "mhist", "published": False, "size_px": 32 if quick else 96},
            "model": {"name": "resnet18"},
            "device": str(device),
        }
        found = compare(given, epochs=2 if quick else 50, seeds=[0], folder=Path(folder))
    theirs = found["each_epoch"][0]["cpu"]
    return [
        {
            "what": f"frozen fine-tuning at {2 if quick else 50} epochs, {name}",
            "ours": runs[0]["cpu"],
            "peer": "the encoder in each epoch",
            "theirs": theirs,
            "unit": "CPU s",
            "ratio": theirs / runs[0]["cpu"],
            "target": ">= 10" if name in ("none", "logistic, none") else "",
            "note": "drawn tiles, a random ResNet18: of time alone",
        }
        for name, runs in found.items()
        if name != "each_epoch"
    ]


def compare(
    given: dict[str, Any], *, epochs: int, seeds: list[int], folder: Path, **train: Any
) -> dict[str, list[dict[str, float]]]:
    """Return what each way took and gave, a dictionary a seed: CPU and wall seconds, metrics of the best epoch, and
    the accuracy on labelled tiles of the training split that were not used.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    every: dict[int, torch.Tensor] = {}

    def trained(name: str, seed: int, epochs: int) -> tuple[FinetuneConfig, float, float]:
        out, cache = folder / "run", folder / "cache"
        for kept in cache.glob("features-*.npy"):
            kept.unlink()
        data = {**given["data"], "cache_dir": str(cache)}
        settings = {"epochs": epochs, "patience": epochs, "freeze_encoder": True, **train, **WAYS[name]}
        config = FinetuneConfig(**{**given, "run": str(out), "seed": seed, "data": data, "train": settings})
        config = config.model_copy(update={"progress": False})
        with contextlib.redirect_stdout(io.StringIO()):
            for split in ("train", "test"):  # decoded before the clock starts
                load_tiles(config.data, split=split, progress=False)
            wall, cpu = time.perf_counter(), time.process_time()
            train_classifier(config, overwrite=True)
        return config, time.process_time() - cpu, time.perf_counter() - wall

    trained("none", 0, 1)  # imports
    trained("logistic, none", 0, 1)
    for seed in seeds:
        for name in WAYS:
            config, cpu, wall = trained(name, seed, epochs)
            out = Path(config.run)
            rows = {int(row["epoch"]): row for row in read_metrics(out / "metrics.jsonl")}
            model, kept = load_classifier(out, device=torch.device("cpu"))
            tiles = load_tiles(config.data, split="train", progress=False)
            if seed not in every and (config.model.weights is None or not every):
                mean, std = normalisation(kept, torch.device("cpu"))
                store = place_store(tiles.images, device="cpu", budget_gb=None)
                every[seed] = features.outputs(model.encoder, store, np.arange(len(tiles)), mean=mean, std=std)
            values = every.get(seed, next(iter(every.values())))
            others = np.setdiff1d(np.flatnonzero(tiles.labels != UNLABELLED), used_labels(tiles, config))
            with torch.inference_mode():
                right = model.head(values[torch.from_numpy(others)]).argmax(1).numpy() == tiles.labels[others]
            best = rows[kept.epoch]
            found[name].append(
                {
                    "seed": seed,
                    "cpu": cpu,
                    "wall": wall,
                    "epochs": len(rows),
                    **{key: best[f"validation_{key}"] for key in ("accuracy", "balanced_accuracy", "loss")},
                    "others": float(right.mean()) if len(others) else float("nan"),
                    "other_tiles": len(others),
                }
            )
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Compare on a folder of tiles, and print a line a run, then a table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--encoder", default="efficientnet_lite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--label-fraction", type=float, default=0.2)
    parser.add_argument("--validation-fraction", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    words = parser.parse_args()
    given = {
        "data": {"root": str(words.tiles), "source": "folder", "size_px": words.size_px},
        "model": {"name": words.encoder, "weights": words.weights},
        "device": words.device,
    }
    with tempfile.TemporaryDirectory() as folder:
        found = compare(
            given,
            epochs=words.epochs,
            seeds=words.seeds,
            folder=Path(folder),
            label_fraction=words.label_fraction,
            validation_fraction=words.validation_fraction,
        )
    theirs = np.mean([run["cpu"] for run in found["each_epoch"]])
    print("\n| way | CPU s | times as fast | validation accuracy | on the tiles that were not used |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        cpu, accuracy, others = (np.mean([run[key] for run in runs]) for key in ("cpu", "accuracy", "others"))
        print(f"| {name} | {cpu:.1f} | {theirs / cpu:.1f} | {accuracy:.3f} | {others:.3f} |")


if __name__ == "__main__":
    main()
