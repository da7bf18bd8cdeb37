"""What is on the page: its sections and its gallery, put together from the folders that sscl report was given."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from sscl import metrics_log
from sscl.config import AuditConfig, DataConfig, GradcamConfig, MapConfig, PretrainConfig, ReportConfig, plain, validate
from sscl.data.audit import Audit
from sscl.data.load import has_validation, merge_data, split_changes
from sscl.evaluate.comparison import Comparison
from sscl.evaluate.records import Evaluation
from sscl.explain.choice import asked_maps, changed
from sscl.explain.records import CHECKED_BY, Localisation, MapChecks
from sscl.metrics_log import MetricsRow
from sscl.models.checkpoint import run_of
from sscl.records import read_record
from sscl.report import classifier, comparisons, decisions, heatmaps, predicted_slides, studies, summary
from sscl.report.blocks import Section, name_of
from sscl.report.folders import Sources, reading, record_of, settings_of
from sscl.report.page.content import Content, Gallery
from sscl.report.subject import Subject, count_tiles, interrupted, started_from, worksheet_id
from sscl.report.tiles import build_gallery
from sscl.train.fold_report import FoldsReport
from sscl.train.health import collapse_warning


def page_content(sources: Sources, subject: Subject | None, config: ReportConfig, *, out: Path, made: str) -> Content:
    """Return what the page shows: the classifier first, if there is one, then a section for each other folder.

    Args:
        out: the file of the page, from which links lead to those of slides.
    """
    if subject is None:
        title, subtitle = "Report", ", ".join(Path(name).resolve().name for name in config.runs)
        key = hashlib.sha256("\n".join(config.runs).encode()).hexdigest()[:16]
        sections: list[Section] = []
        shown = None
    else:
        learned_on = name_of(subject.trained.finetune_config.data.root)
        title = f"{summary.titled(subject.found.classes)}, learned on {learned_on}"
        name, encoder = subject.folder.resolve().name, subject.trained.encoder_name
        subtitle = f"{name}: {encoder}, on {subject.report.tiles:,} tiles of the {subject.split}"
        key = worksheet_id(subject)
        sections, shown = about_classifier(subject, sources, config)
    about = about_studies(sources, subject, out=out, blind=config.blind)
    for section in about if subject is None else ():
        section["folded"] = False  # they are all that the page has
    sections += [*about, studies.provenance(all_folders(sources, subject))]
    return {"title": title, "subtitle": subtitle, "made": made, "id": key, "sections": sections, "gallery": shown}


def training_tiles(subject: Subject, counts: Mapping[str, Mapping[str, int]]) -> int | None:
    """Return how many tiles of its training split a classifier did not keep for validation; None where not counted."""
    if "train" not in counts:
        return None
    own = has_validation(subject.trained.finetune_config.data)
    return sum(counts["train"].values()) - (0 if own else subject.trained.fitted.tiles)


def about_classifier(subject: Subject, sources: Sources, config: ReportConfig) -> tuple[list[Section], Gallery | None]:
    """Return the sections and the gallery of the classifier."""
    caveats = interrupted(subject)
    settings, checks = map_settings(subject, sources, config)
    data = merge_data(subject.report.data, config.data)
    counts, groups = count_tiles(subject, data, caveats=caveats, progress=config.progress)
    shown = None
    if config.tiles:
        shown = build_gallery(subject, data, settings, config, checks=checks, caveats=caveats)
    with reading(subject.folder / "metrics.jsonl"):
        learned = classifier.training(subject)
    checked = summary.check_all(
        subject, audits=[read_audit(folder) for folder in audits_of(data, sources)], checks=checks
    )
    sections = [
        summary.summary(
            subject,
            training_tiles=training_tiles(subject, counts),
            checks=checked,
            unfinished=bool(interrupted(subject)),
        ),
        summary.checks_section(subject, checked),
        classifier.data(subject, counts=counts, groups=groups),
        learned,
        classifier.results(subject),
        classifier.errors(subject, shown=0 if shown is None else len(shown["tiles"])),
        decisions.probabilities(subject),
        decisions.decisions(subject),
        decisions.caveats(subject, caveats),
    ]
    return sections, shown


def audits_of(data: DataConfig, sources: Sources) -> list[Path]:
    """Return the audits of exactly this split; audits of other sets or splits do not apply."""
    found = []
    for folder in sources.get("audit", []):
        with reading(folder / "config.yaml"):
            own = settings_of(AuditConfig, folder).data
            if Path(own.root).resolve() == Path(data.root).resolve() and not split_changes(data, own):
                found.append(folder)
    return found


def read_audit(folder: Path) -> Audit:
    """Return what an audit found."""
    return read_record(Audit, folder / "audit.json", made_by="sscl data audit")


def map_settings(subject: Subject, sources: Sources, config: ReportConfig) -> tuple[GradcamConfig, MapChecks | None]:
    """Return how the gallery's maps are made, and what `sscl gradcam checks=true` found of maps made so, if anything.

    Raises:
        ValueError: a key of `gradcam` is not as it takes it.
    """
    of_run = [folder for folder in sources.get("gradcam", []) if _explains(folder, subject)]
    kept = [maps_of(settings_of(GradcamConfig, folder)) for folder in of_run]
    found = {"checkpoint": str(subject.folder), **changed(plain(kept[0]) if kept else {}, config.gradcam)}
    try:
        settings = validate(GradcamConfig, found, source="sscl gradcam")
        asked_maps(settings, subject.found.classes)
    except ValueError as error:
        raise ValueError("\n".join(f"gradcam.{line}" for line in str(error).splitlines())) from None
    for folder, own in zip(of_run, kept, strict=True):
        if own == maps_of(settings):
            checks = record_of(MapChecks, folder / "checks.json", made_by=CHECKED_BY)
            if checks is not None:
                return settings, checks
    return settings, None


def maps_of(config: GradcamConfig) -> MapConfig:
    """Return the settings of `sscl gradcam` that decide about maps and boxes."""
    return MapConfig(**{key: getattr(config, key) for key in MapConfig.model_fields})


def _explains(folder: Path, subject: Subject) -> bool:
    """Return whether a gradcam folder is of this classifier."""
    if folder.resolve().parent == subject.folder.resolve():
        return True
    try:
        return run_of(settings_of(GradcamConfig, folder).checkpoint).resolve() == subject.folder.resolve()
    except FileNotFoundError:
        return False


def about_studies(sources: Sources, subject: Subject | None, *, out: Path, blind: bool) -> list[Section]:
    """Return a section for each other folder, in an order that a reader follows."""
    sections: list[Section] = []
    start = None if subject is None else started_from(subject)
    for name, folder in _numbered("slides", sources):
        sections.append(predicted_slides.slides_section(name, folder, out=out, blind=blind))
    for name, folder in _numbered("audit", sources):
        pairs = folder / "pairs.png"
        sections.append(studies.audit(name, read_audit(folder), pairs=pairs if pairs.is_file() else None))
    for name, folder in _numbered("gradcam", sources):
        with reading(folder):
            found = heatmaps.heatmaps(
                name,
                config=settings_of(GradcamConfig, folder),
                checks=record_of(MapChecks, folder / "checks.json", made_by=CHECKED_BY),
                localised=record_of(Localisation, folder / "localisation.json", made_by="sscl gradcam"),
            )
        sections.append(found)
    for name, folder in _numbered("pretrain", sources):
        log, used = folder / "metrics.jsonl", start is not None and folder.resolve() == start.resolve()
        with reading(log):
            rows = metrics_log.read_metrics(log, needs=metrics_log.PRETRAIN_ROW) if log.is_file() else []
            section = studies.pretraining(
                name,
                config=settings_of(PretrainConfig, folder),
                log=rows,
                warning=collapse_warning(rows[-1]) if rows else None,
                note=f"{folder}: the classifier above started from this encoder." if used else str(folder),
            )
        sections.append(section)
    for name, folder in _numbered("cross-validation", sources):
        validated = read_record(FoldsReport, folder / "folds.json", made_by="sscl finetune --folds")
        sections.append(comparisons.folds(name, validated))
    for name, folder in _numbered("comparison", sources):
        compared = read_record(Comparison, folder / "compare.json", made_by="sscl compare")
        sections.append(comparisons.compared(name, compared, logs=logs_of(folder, compared)))
    for kind in ("gradcam", "pretrain", "cross-validation", "comparison"):
        folders = dict(_numbered(kind, sources))
        if len(folders) > 1:
            for section in sections:
                if section["id"] in folders:
                    section["title"] += f": {folders[section['id']].resolve().name}"
    more = [folder for folder in sources.get("finetune", []) if subject is None or folder != subject.folder]
    if more:
        sections.append(further_runs(more, "eval_test" if subject is None else subject.evaluated.name))
    return sections


def _numbered(kind: str, sources: Sources) -> list[tuple[str, Path]]:
    """Return the folders of a kind, each with the id of its section."""
    folders = sources.get(kind, [])
    return [(kind if at == 0 else f"{kind}-{at + 1}", folder) for at, folder in enumerate(folders)]


def logs_of(folder: Path, report: Comparison) -> dict[str, list[MetricsRow]]:
    """Return the logs of a comparison's runs that are there, by their folders as the comparison names them."""
    found = {}
    for name in (one.folder for row in report.rows for one in row.runs):
        for where in (Path(name), folder / "runs" / Path(name).name):
            if (where / "metrics.jsonl").is_file():
                found[name] = metrics_log.read_metrics(where / "metrics.jsonl")
                break
    return found


def further_runs(folders: Sequence[Path], evaluated: str) -> Section:
    """Return a table of the other finetune runs. evaluated: the folder in each, as in eval_test.

    Raises:
        FileNotFoundError: one is not evaluated.
    """
    rows = {}
    for folder in folders:
        file = folder / evaluated / "metrics.json"
        if not file.is_file():
            raise FileNotFoundError(f"runs: {folder}: not evaluated; run sscl eval {folder} first")
        rows[str(folder)] = read_record(Evaluation, file, made_by="sscl eval")
    return comparisons.others(rows)


def all_folders(sources: Sources, subject: Subject | None) -> list[Path]:
    """Return every folder that the page is about, the classifier's own first."""
    folders = [folder for of in sources.values() for folder in of]
    if subject is None:
        return folders
    return [subject.folder, subject.evaluated, *(folder for folder in folders if folder != subject.folder)]
