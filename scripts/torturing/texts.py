"""Poisoned texts and their readers: configurations, tables, records, metrics."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sscl import config as configs
from sscl.cli.table import COMMANDS
from sscl.commands.embed import EmbedReport
from sscl.config import shipped
from sscl.data.audit import Audit
from sscl.data.files import find_images
from sscl.data.folder import load_folder
from sscl.data.mhist import load_mhist
from sscl.data.table import load_table
from sscl.evaluate.comparison import Comparison
from sscl.evaluate.predictions import read_predictions
from sscl.evaluate.probe_report import ProbeReport
from sscl.evaluate.records import Evaluation
from sscl.explain.records import Localisation, MapChecks
from sscl.metrics_log import read_metrics
from sscl.models.exports import ExportReport
from sscl.records import read_record
from sscl.report.predicted import Summary
from sscl.run import Ending, Environment, unfinished
from sscl.train.fold_report import FoldsReport
from torturing import bombs, poison
from torturing.fed import Fed, strange
from torturing.poison import Random, pick

SHIPPED = {  # the class of a configuration by a part of its name
    **{"pretrain": "PretrainConfig", "finetune": "FinetuneConfig", "eval": "EvalConfig", "audit": "AuditConfig"},
    **{"gradcam": "GradcamConfig", "inspect": "InspectConfig", "labels": "CompareConfig", "compare": "CompareConfig"},
    **{"probe": "ProbeConfig", "tiles": "ProbeConfig", "report": "ReportConfig", "synth": "SynthConfig"},
}
WRITTEN = {  # and by the folder that its command wrote
    **{"pre": "PretrainConfig", "fine": "FinetuneConfig", "cam": "GradcamConfig", "said": "PredictConfig"},
    **{"probe": "ProbeConfig", "tiles": "ProbeConfig", "embed": "EmbedConfig", "export": "ExportConfig"},
}


class Configs(Fed):
    """YAML files and KEY=VALUE words."""

    name, number = "configs", 1

    def prepare(self) -> None:
        self.seeds = self._seeds()

    def _seeds(self) -> list[tuple[Any, list[str]]]:
        """Configurations by their class: those of the runs, and those that ship."""
        found = []
        for name in shipped.names():
            kind = next((SHIPPED[word] for word in SHIPPED if word in name.rpartition("/")[2]), None)
            if kind is not None:
                found.append((getattr(configs, kind), shipped.find(name).read_text().splitlines()))
        for run, kind in WRITTEN.items():
            if (file := self.runs / run / "config.yaml").is_file():
                found.append((getattr(configs, kind), file.read_text().splitlines()))
        return found

    def make(self, rng: Random, folder: Path) -> Path:
        path = folder / "poisoned.yaml"
        self.kind, lines = pick(rng, self.seeds)
        path.write_bytes(bombs.yaml_text(rng, lines))
        return path

    def read(self, rng: Random, path: Path) -> None:
        which = int(rng.integers(4))
        if which == 0:
            configs.read_yaml(path)
        elif which < 3:
            configs.load_config(self.kind, path)
        else:  # a word names its key; the line says where it was given
            key = pick(rng, list(configs.keys(self.kind)))
            value = bombs.bomb(rng) if rng.random() < 0.5 else poison.text(rng)
            try:
                configs.load_config(self.kind, overrides=[f"{key}={value}"])
            except ValueError as error:
                lines = str(error).splitlines()
                if not all("(command line)" in line or key.split(".")[0] in line for line in lines):
                    raise
                if any(len(line) > 4000 or any(ord(letter) < 32 for letter in line) for line in lines):
                    raise

    def words(self, rng: Random, path: Path) -> list[str]:
        command = next(name for name, of in COMMANDS.items() if of.config == self.kind.__name__)
        return [*command.split(), str(path), *(["data.root=none"] if "data" in self.kind.model_fields else [])]


class Tables(Fed):
    """CSV files: of tiles, MHIST's, of groups, of files to classify, of predictions."""

    name, number = "tables", 2
    kinds = ("table", "mhist", "groups", "list", "predictions")

    def make(self, rng: Random, folder: Path) -> Path:
        self.kind = pick(rng, self.kinds)
        data = self.material.folder / "data"
        if self.kind == "predictions":
            rows = read_rows(self.runs / "fine" / "eval_test" / "predictions.csv")
            path = folder / "poisoned.csv"
        elif self.kind == "mhist":
            (folder / "images").symlink_to(data / "images")
            rows, path = read_rows(data / "annotations.csv"), folder / "annotations.csv"
        else:
            names = [f"{kind}/{i}.png" for kind in "ab" for i in range(4)]
            sources = sorted((data / "images").iterdir())
            for name, source in zip(names, sources, strict=False):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).symlink_to(source)
            strange(folder)
            split = ["train", "train", "val", "test"] * 2
            rows = [["path", "label", "group", "split", "mpp"]]
            rows += [[name, name[0], f"g{i}", split[i], "0.5"] for i, name in enumerate(names)]
            path = folder / "poisoned.csv"
        path.write_bytes(poison.table(rng, rows))
        return path

    def read(self, rng: Random, path: Path) -> None:
        split = pick(rng, ("train", "validation", "test", "all"))
        if self.kind == "predictions":
            read_predictions(path)
        elif self.kind == "mhist":
            with names_folder(path):
                load_mhist(
                    path.parent, protocol="official", split="train", published=False, size_px=32, cache_dir="cache"
                )
        elif self.kind == "groups":
            load_folder(path.parent / "a", split="all", groups_csv=path, size_px=32, cache_dir="cache", whole=False)
        elif self.kind == "list":
            find_images([path])
        else:
            whole = bool(rng.random() < 0.3)
            with names_folder(path):
                load_table(path, split=split, whole=whole, size_px=32, cache_dir="cache")

    def words(self, rng: Random, path: Path) -> list[str]:
        if self.kind == "predictions":
            return ["compare", str(path.parent), str(self.runs / "fine"), "out=out"]
        if self.kind == "list":
            return ["predict", str(self.runs / "fine"), str(path), "out=out", "progress=false", "device=cpu"]
        root = path.parent if self.kind in ("mhist", "groups") else path
        return ["data", "audit", f"data.root={root}", "data.size_px=32", "out=out", "progress=false", "device=cpu"]


@contextlib.contextmanager
def names_folder(path: Path) -> Any:
    """Let an error name a file beside the table instead of the table: an image that it lists."""
    try:
        yield
    except (ValueError, OSError) as error:
        if str(path.parent) in str(error) and path.name not in str(error):
            raise type(error)(f"{path.name}: {error}") from None
        raise


def read_rows(path: Path) -> list[list[str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))


class Records(Fed):
    """JSON files."""

    name, number = "json", 6
    kinds: Sequence[tuple[str, Any]] = (
        ("fine/eval_test/metrics.json", Evaluation),
        ("fine/env.json", Environment),
        ("fine/training.json", Ending),
        ("audit/audit.json", Audit),
        ("compared/compare.json", Comparison),
        ("folds/folds.json", FoldsReport),
        ("probe/probe.json", ProbeReport),
        ("embed/embed.json", EmbedReport),
        ("export/encoder.json", ExportReport),
        ("cam/localisation.json", Localisation),
        ("checked/checks.json", MapChecks),
        ("said/summary.json", Summary),
    )

    def prepare(self) -> None:
        self.seeds = self._seeds()

    def _seeds(self) -> list[tuple[Path, Any, Any]]:
        """File, class and content of each record that there is."""
        found = [(self.runs / name, kind) for name, kind in self.kinds]
        return [(path, kind, json.loads(path.read_text())) for path, kind in found if path.is_file()]

    def make(self, rng: Random, folder: Path) -> Path:
        self.source, self.kind, content = pick(rng, self.seeds)
        path = folder / "run" / self.source.name
        path.parent.mkdir()
        path.write_bytes(poison.json_text(rng, content))
        return path

    def read(self, rng: Random, path: Path) -> None:
        read_record(self.kind, path, made_by="sscl")

    def words(self, rng: Random, path: Path) -> list[str]:
        for other in self.source.parent.iterdir():
            if other.name != path.name:
                (path.parent / other.name).symlink_to(other)
        return ["report", str(self.runs / "fine"), str(path.parent), "out=out.html", "tiles=0", "progress=false"]


class Rows(Fed):
    """metrics.jsonl."""

    name, number = "metrics", 7

    def make(self, rng: Random, folder: Path) -> Path:
        source = self.runs / pick(rng, ("pre", "fine"))
        path = folder / "metrics.jsonl"
        shutil.copy(source / "config.yaml", folder)
        rows = [json.loads(line) for line in (source / "metrics.jsonl").read_text().splitlines()] * 2
        lines = [json.dumps(row).encode() for row in rows]
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(len(lines)))
            kinds = (b"", b" ", b"null", b"[]", b"1", b'"a"', b"{}", b"\0", b'{"epoch": 1', b'{"epoch": null}')
            lines[at] = pick(rng, kinds) if rng.random() < 0.4 else poison.json_text(rng, rows[at])
        path.write_bytes(b"\n".join(lines) + pick(rng, (b"\n", b"", b"\r\n", b"\n\n")))
        return path

    def read(self, rng: Random, path: Path) -> None:
        if rng.random() < 0.5:
            read_metrics(path)
        else:
            unfinished(path.parent)

    def words(self, rng: Random, path: Path) -> list[str]:
        (path.parent / "checkpoints").symlink_to(self.runs / "fine" / "checkpoints")
        for name in ("eval_test", "env.json", "training.json"):
            (path.parent / name).symlink_to(self.runs / "fine" / name)
        shutil.copy(self.runs / "fine" / "config.yaml", path.parent)
        return ["report", str(path.parent), "out=out.html", "tiles=0", "progress=false"]
