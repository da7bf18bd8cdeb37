"""sscl report: what runs have found on one page, with a gallery of tiles to review."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sscl import run, writing
from sscl.config import DataConfig, GradcamConfig, ReportConfig, plain, validate
from sscl.data.load import has_validation, load_tiles, merge_data, split_changes
from sscl.evaluate import predictions
from sscl.evaluate.metrics import confusion_matrix
from sscl.explain.targets import resolve_target
from sscl.models import checkpoint
from sscl.models.checkpoint import run_of
from sscl.report import classifier, page, studies
from sscl.report.blocks import Section
from sscl.report.classifier import Subject
from sscl.report.folders import (
    Damaged,
    Sources,
    add_own_folders,
    config_of,
    read_json,
    reading,
    sort_folders,
    started_from,
)
from sscl.report.tiles import build_gallery
from sscl.train.health import collapse_warning

OF_MAPS = ("target", "method", "layer", "fuse", "threshold")  # keys of gradcam that decide about maps and boxes


def main(config: ReportConfig, *, overwrite: bool = False) -> None:
    """Write the page, whole or not at all.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, one line a fault; then no page is written.
    """
    sources = sort_folders(config.runs)
    own = next(iter(sources.get("finetune", [])), None)  # what the page is about
    out = Path(config.out) if config.out is not None else Path(own or config.runs[0]) / "report.html"
    check_page(out, overwrite=overwrite)
    environment = run.environment()
    made_on = f"{environment['date'][:16].replace('T', ' ')} UTC"
    content: dict[str, Any] = {
        "title": "Report",
        "subtitle": ", ".join(Path(name).resolve().name for name in config.runs),
        "made": f"Made by sscl report {environment['sscl']} on {made_on}: {environment['command']}",
        "id": hashlib.sha256("\n".join(config.runs).encode()).hexdigest()[:16],
        "sections": [],
        "gallery": None,
    }
    subject = None
    if own is not None:
        evaluate_where_missing(own, config, overwrite=overwrite)
        subject = read_subject(own, config.split)
        add_own_folders(sources, subject)
        content |= about_classifier(subject, sources, config)
    content["sections"] += about_studies(sources, subject)
    content["sections"].append(studies.provenance(provenance_of(sources, subject)))
    html = page.render(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    writing.write_text(out, html)
    shown = 0 if content["gallery"] is None else len(content["gallery"]["tiles"])
    print(
        f"wrote {out} ({len(html.encode()) / 1e6:.1f} MB, {shown:,} tiles): open it in a browser; it needs no network"
    )


def check_page(out: Path, *, overwrite: bool) -> None:
    """Raise ValueError where something is there that may not be replaced."""
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder; name a file that ends in .html")
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: exists; give --overwrite to replace it, or another file with out=")
    if out.exists() and page.MARK not in out.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{out}: not written by sscl report, so --overwrite leaves it alone; name another file")


# --- the classifier ---


def evaluate_where_missing(folder: Path, config: ReportConfig, *, overwrite: bool) -> None:
    """Run `sscl eval` where a run has no evaluation of its checkpoint on the split.

    Raises:
        ValueError: there is one of another checkpoint, and without `overwrite` it is left alone; the command failed.
    """
    there = folder / f"eval_{config.split}"
    words = ["eval", f"checkpoint={folder}", f"split={config.split}", f"device={config.device}"]
    words += [f"data.{key}={json.dumps(value)}" for key, value in config.data.items()]
    words += [] if config.progress else ["progress=false"]
    if (there / "predictions.csv").is_file() and (there / "metrics.json").is_file():
        with reading(there / "metrics.json"):
            epoch = read_json(there / "metrics.json")["epoch"]
        if epoch == checkpoint.load_checkpoint(folder, kind="finetune")["epoch"]:
            return
        if not overwrite:
            raise ValueError(f"{there}: is of another checkpoint; give --overwrite to evaluate again")
        words.append("--overwrite")
    print(f"$ sscl {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, "-m", "sscl", *words], check=False).returncode != 0:
        raise ValueError("report: `sscl eval` failed, see above")
    print()


def read_subject(folder: Path, split: str) -> Subject:
    """Return the classifier of a run with its evaluation.

    Raises:
        ValueError, FileNotFoundError: a file is missing or not as sscl writes it.
    """
    there = folder / f"eval_{split}"
    content = checkpoint.load_checkpoint(folder, kind="finetune")
    log = folder / "metrics.jsonl"
    subject = Subject(
        folder=folder,
        content={key: value for key, value in content.items() if key not in ("encoder", "head")},
        log=run.read_metrics(log) if log.is_file() else [],
        evaluated=there,
        report=read_json(there / "metrics.json"),
        found=predictions.read_predictions(there / "predictions.csv"),
    )
    with reading(there / "metrics.json"):  # what is used everywhere is looked at here, where the file can be named
        report = subject.report
        _ = subject.positive, subject.decided_from, report["data"]["root"], report["data_fingerprint"]
        if report["split"] != split:
            raise Damaged(f"{there}: metrics.json is of the split {report['split']!r}; evaluate it again")
        counted = confusion_matrix(subject.found.labels, subject.found.predictions, num_classes=len(content["classes"]))
        same = list(subject.found.classes) == content["classes"] and counted.tolist() == report["confusion_matrix"]
        if not same or len(subject.found.ids) != report["tiles"]:
            raise Damaged(f"{there}: predictions.csv and metrics.json are not of this classifier; evaluate it again")
    return subject


def about_classifier(subject: Subject, sources: Sources, config: ReportConfig) -> dict[str, Any]:
    """Return title, sections and gallery of a classifier."""
    caveats = interrupted(subject)
    settings, checks = map_settings(subject, sources, config)
    data = merge_data(subject.report["data"], config.data)
    counts, groups = count_tiles(subject, data, caveats=caveats, progress=config.progress)
    shown = None
    if config.tiles:
        shown = build_gallery(subject, data, settings, config, checks=checks, caveats=caveats)
    with reading(subject.evaluated / "metrics.json"):
        sections = [
            classifier.summary(
                subject,
                training_tiles=sum(counts["train"].values()) if "train" in counts else None,
                audits=[read_json(folder / "audit.json") for folder in audits_of(data, sources)],
                checks=checks or {},
            ),
            classifier.data(subject, counts=counts, groups=groups),
            classifier.training(subject),
            classifier.results(subject),
            classifier.errors(subject, shown=0 if shown is None else len(shown["tiles"])),
            classifier.probabilities(subject),
            classifier.decisions(subject),
            classifier.caveats(subject, caveats),
        ]
    return {
        "title": f"{subject.folder.resolve().name}: {classifier.listed(subject.found.classes)}",
        "subtitle": f"{subject.content['encoder_name']}, on {subject.report['tiles']:,} tiles of the {subject.split}",
        "id": worksheet_id(subject),
        "sections": [section for section in sections if section is not None],
        "gallery": shown,
    }


def audits_of(data: DataConfig, sources: Sources) -> list[Path]:
    """Return the audits of this very split; one of another set or another split says nothing of it."""
    found = []
    for folder in sources.get("audit", []):
        with reading(folder / "config.yaml"):
            own = config_of(folder)["data"]
            if Path(own["root"]).resolve() == Path(data.root).resolve() and not split_changes(data, own):
                found.append(folder)
    return found


def worksheet_id(subject: Subject) -> str:
    """Return the key under which the browser keeps a review: equal for equal weights and tiles, whatever is shown."""
    digest = hashlib.sha256(checkpoint.checkpoint_file(subject.folder).read_bytes())
    digest.update(f"{subject.report['split']} {subject.report['data_fingerprint']}".encode())
    return digest.hexdigest()[:16]


def interrupted(subject: Subject) -> list[str]:
    """Return a sentence where training did not come to its end."""
    train, epochs = subject.content["config"]["train"], len(subject.log)
    if not epochs or epochs >= train["epochs"] or epochs - subject.content["epoch"] >= train["patience"]:
        return []
    return [f"training ended after epoch {epochs} of {train['epochs']}: it was interrupted"]


def count_tiles(
    subject: Subject, data: DataConfig, *, caveats: list[str], progress: bool
) -> tuple[dict[str, dict[str, int]], dict[str, int | None]]:
    """Return tiles by class, and slides or patients, of the training split, of validation's own and of the evaluated.

    Training tiles that are not there any more are not counted, which `caveats` then says.
    """
    counts: dict[str, dict[str, int]] = {}
    groups: dict[str, int | None] = {}
    trained = subject.content["config"]["data"]
    moved = trained["root"] == subject.report["data"]["root"]
    changes = {"root": data.root, "cache_dir": data.cache_dir} if moved else {}
    try:
        before = merge_data(trained, changes)
        for split in ("train", "validation") if has_validation(before) else ("train",):
            tiles = load_tiles(before, split=split, progress=progress)
            counts[split] = tiles.class_counts()
            groups[split] = None if tiles.groups is None else len(np.unique(tiles.groups))
    except (ValueError, FileNotFoundError) as error:
        caveats.append(f"the training tiles are not counted: {str(error).splitlines()[0]}")
    split = subject.report["split"]
    counts[split] = subject.report["class_counts"]
    groups[split] = None if subject.found.groups is None else len(set(subject.found.groups))
    return counts, groups


def map_settings(
    subject: Subject, sources: Sources, config: ReportConfig
) -> tuple[GradcamConfig, Mapping[str, Any] | None]:
    """Return how the gallery's maps are made, and what `sscl gradcam checks=true` found of maps made so, if anything.

    Raises:
        ValueError: a key of `gradcam` is not as it takes it.
    """
    of_run = [folder for folder in sources.get("gradcam", []) if _explains(folder, subject)]
    kept = {} if not of_run else config_of(of_run[0])
    found = {key: kept[key] for key in OF_MAPS if key in kept} | config.gradcam
    try:
        settings = validate(GradcamConfig, {"checkpoint": str(subject.folder), **found}, source="sscl gradcam")
        resolve_target(settings.target, subject.found.classes)
    except ValueError as error:
        raise ValueError("\n".join(f"gradcam.{line}" for line in str(error).splitlines())) from None
    of_maps = {key: value for key, value in plain(settings).items() if key in OF_MAPS}
    for folder in of_run:
        own = validate(GradcamConfig, {"checkpoint": "-", **_of_maps(config_of(folder))}, source="")
        if _of_maps(plain(own)) == of_maps and (folder / "checks.json").is_file():
            with reading(folder / "checks.json"):
                checks: Mapping[str, Any] = read_json(folder / "checks.json")
                _ = [(checks[name]["passed"], checks[name]["verdict"]) for name in studies.QUESTIONS]
            return settings, checks
    return settings, None


def _of_maps(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: keys[key] for key in OF_MAPS if key in keys}


def _explains(folder: Path, subject: Subject) -> bool:
    """Return whether a gradcam folder is of this classifier."""
    if folder.resolve().parent == subject.folder.resolve():
        return True
    try:
        return run_of(str(config_of(folder).get("checkpoint"))).resolve() == subject.folder.resolve()
    except FileNotFoundError:
        return False


# --- everything else ---


def about_studies(sources: Sources, subject: Subject | None) -> list[Section]:
    """Return a section for each other folder, in an order that a reader follows."""
    sections: list[Section] = []
    start = None if subject is None else started_from(subject)
    for name, folder in _numbered("audit", sources):
        with reading(folder / "audit.json"):
            pairs = folder / "pairs.png"
            report = read_json(folder / "audit.json")
            sections.append(studies.audit(name, report, pairs=pairs if pairs.is_file() else None))
    for name, folder in _numbered("gradcam", sources):
        with reading(folder):
            found = studies.heatmaps(
                name,
                config=config_of(folder),
                checks=read_json(folder / "checks.json"),
                localised=read_json(folder / "localisation.json"),
            )
        sections.append(found)
    for name, folder in _numbered("pretrain", sources):
        log, used = folder / "metrics.jsonl", start is not None and folder.resolve() == start.resolve()
        with reading(log):
            rows = run.read_metrics(log) if log.is_file() else []
            section = studies.pretraining(
                name,
                config=config_of(folder),
                log=rows,
                warning=collapse_warning(rows[-1]) if rows else None,
                note=f"{folder}: its encoder is what this classifier started from." if used else str(folder),
            )
        sections.append(section)
    for name, folder in _numbered("cross-validation", sources):
        with reading(folder / "folds.json"):
            sections.append(studies.folds(name, read_json(folder / "folds.json")))
    for name, folder in _numbered("comparison", sources):
        with reading(folder / "compare.json"):
            report = read_json(folder / "compare.json")
            logs = logs_of(folder, report)
            sections.append(studies.compared(name, report, logs=logs))
    for kind in ("gradcam", "pretrain", "cross-validation", "comparison"):
        folders = dict(_numbered(kind, sources))
        if len(folders) > 1:
            for section in sections:
                if section["id"] in folders:
                    section["title"] += f": {folders[section['id']].resolve().name}"
    more = [folder for folder in sources.get("finetune", []) if subject is None or folder != subject.folder]
    if more:
        split = "test" if subject is None else subject.report["split"]
        sections.append(further_runs(more, split))
    return sections


def _numbered(kind: str, sources: Sources) -> list[tuple[str, Path]]:
    """Return the folders of a kind, each with the id of its section."""
    folders = sources.get(kind, [])
    return [(kind if at == 0 else f"{kind}-{at + 1}", folder) for at, folder in enumerate(folders)]


def logs_of(folder: Path, report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the logs of a comparison's runs that are there, by their folders as the comparison names them."""
    found = {}
    for name in (one["folder"] for row in report["rows"] for one in row["runs"]):
        for where in (Path(name), folder / "runs" / Path(name).name):
            if (where / "metrics.jsonl").is_file():
                found[name] = run.read_metrics(where / "metrics.jsonl")
                break
    return found


def further_runs(folders: Sequence[Path], split: str) -> Section:
    """Return a table of the other finetune runs.

    Raises:
        FileNotFoundError: one is not evaluated.
    """
    rows = {}
    for folder in folders:
        file = folder / f"eval_{split}" / "metrics.json"
        if not file.is_file():
            raise FileNotFoundError(f"runs: {folder}: not evaluated; run `sscl eval checkpoint={folder}` first")
        rows[str(folder)] = read_json(file)
    with reading(folders[0]):
        return studies.others(rows)


def provenance_of(sources: Sources, subject: Subject | None) -> dict[str, tuple[dict[str, Any], str]]:
    """Return env.json and config.yaml of every folder, by its path."""
    folders = [folder for of in sources.values() for folder in of]
    if subject is not None:
        folders = [subject.folder, subject.evaluated, *(folder for folder in folders if folder != subject.folder)]
    found = {}
    for folder in folders:
        config = folder / "config.yaml"
        with reading(config):
            text = config.read_text(encoding="utf-8") if config.is_file() else "there is none"
        environment = read_json(folder / "env.json") or {}
        if not isinstance(environment, dict):
            raise Damaged(f"{folder / 'env.json'}: not as this version of sscl writes it; make {folder} again")
        found[str(folder)] = environment, text
    return found
