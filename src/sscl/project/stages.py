"""The stages of a project: which are finished, which go on, which are left out, and their commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sscl import run
from sscl.config import (
    CompareEntry,
    EvalConfig,
    FinetuneConfig,
    GradcamConfig,
    PretrainConfig,
    ReportConfig,
    Section,
    load_config,
    plain,
)
from sscl.data.load import has_test
from sscl.evaluate.lineage import folder_of
from sscl.models.start import facts_to_be, inherit
from sscl.places import missing
from sscl.train.plan import Step
from sscl.train.reuse import FLAGS, Action, Decision, decide, modified
from sscl.words import count, listed

STAGES = ("pretrain", "finetune", "eval", "gradcam", "report")
RESULTS: dict[str, type[EvalConfig] | type[GradcamConfig]] = {"eval": EvalConfig, "gradcam": GradcamConfig}
SAME_RESULT = ("device", "progress", "batch_size")  # keys of eval and gradcam that change nothing that is written

Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True)
class Project:
    """The YAML files of a project, read and checked.

    Attributes:
        folder: where they are. file_of: of each stage that has one.
        steps: the trainings. results: eval and gradcam. page: the report.
        left_out: why stages are not run, a sentence each.
    """

    folder: Path
    file_of: Mapping[str, Path]
    steps: tuple[Step, ...]
    results: Mapping[str, EvalConfig | GradcamConfig]
    page: ReportConfig | None
    left_out: tuple[str, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are run, in order."""
        there = {*(step.entry.command for step in self.steps), *self.results, *(["report"] if self.page else [])}
        return tuple(stage for stage in STAGES if stage in there)

    @property
    def elsewhere(self) -> list[str]:
        """Return which runs are not written into this folder, as after it was moved, a sentence each."""
        here = self.folder.resolve()
        return [
            f"{self.file_of[step.entry.command]} writes to {step.folder}, which is not in {self.folder}; change its "
            f"run, and where the other files name it, if {self.folder} was moved or copied"
            for step in self.steps
            if not step.folder.resolve().is_relative_to(here)
        ]

    @property
    def page_file(self) -> Path | None:
        if self.page is None:
            return None
        return Path(self.page.out) if self.page.out is not None else Path(self.page.runs[0]) / "report.html"


def read_project(folder: Path) -> Project:
    """Return the project of a folder.

    Raises:
        FileNotFoundError: it has no YAML file of a training.
        ValueError: a file is not valid, or names other runs than the others; one line a fault, all at once.
    """
    files = {stage: file for stage in STAGES if (file := folder / f"{stage}.yaml").is_file()}
    if not {"pretrain", "finetune"} & files.keys():
        raise FileNotFoundError(
            f"{folder}: has no pretrain.yaml and no finetune.yaml; sscl init TILES out={folder} writes them, or, if "
            f"these are the tiles, sscl init {folder}"
        )
    faults: list[str] = []

    def read(kind: type[Config], stage: str) -> Config | None:
        try:
            return load_config(kind, files[stage]) if stage in files else None
        except (ValueError, FileNotFoundError) as error:
            faults.extend(str(error).splitlines())
            return None

    pretrain, finetune = read(PretrainConfig, "pretrain"), read(FinetuneConfig, "finetune")
    results = {stage: found for stage, kind in RESULTS.items() if (found := read(kind, stage)) is not None}
    page = read(ReportConfig, "report")
    if finetune is not None and finetune.train.folds is not None:
        faults.append(f"train.folds: cross-validation has a command of its own: sscl finetune {files['finetune']}")
    if faults:
        raise ValueError("\n".join(faults))
    steps = _steps(pretrain, finetune, files)
    faults = _other_runs([step.folder for step in steps], results, page, files)
    if faults:
        raise ValueError("\n".join(faults))
    left_out = []
    if finetune is None:
        left_out.append(f"no {folder / 'finetune.yaml'}, so no classifier: finetune, eval, gradcam and report")
    elif not has_test(finetune.data):
        left_out.append(f"{finetune.data.root} has no test split: eval, gradcam and report")
    if left_out:
        results, page = {}, None
    return Project(folder, files, steps, results, page, tuple(left_out))


def _other_runs(
    trained: Sequence[Path],
    results: Mapping[str, EvalConfig | GradcamConfig],
    page: ReportConfig | None,
    files: Mapping[str, Path],
) -> list[str]:
    """Return the faults of paths of runs, so that none is found after hours of training.

    Args:
        trained: the runs that the project writes.
    """
    found = []
    if len({folder.resolve() for folder in trained}) < len(trained):
        found.append(f"run: {trained[0]} is that of {files['pretrain']} too; name another ({files['finetune']})")
    named = [("checkpoint", config.checkpoint, files[stage]) for stage, config in results.items()]
    named += [("runs", path, files["report"]) for path in (page.runs if page is not None else ())]
    for key, path, file in named:
        if not Path(path).exists() and not any(_same(path, folder) for folder in trained):
            runs = listed([str(folder) for folder in trained])
            found.append(f"{key}: {missing(path, 'run')}, and none that is trained here ({runs}) ({file})")
    return found


def _steps(
    pretrain: PretrainConfig | None, finetune: FinetuneConfig | None, files: Mapping[str, Path]
) -> tuple[Step, ...]:
    """Return the trainings; the second starts from the first if its file says so."""
    found: list[Step] = []
    for config in (pretrain, finetune):
        if config is None:
            continue
        command: str = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
        file, start = files[command], None
        if isinstance(config, FinetuneConfig):
            start = next((step for step in found if _same(config.model.weights, step.folder)), None)
        try:
            config = inherit(config, facts=None if start is None else facts_to_be(start.config))[0]
        except ValueError as error:
            raise ValueError(f"{error} ({file})") from None
        entry = CompareEntry.model_validate({"name": command, "command": command, "config": str(file)})
        found.append(Step(entry, config.seed, None, Path(config.run), [command, str(file)], config, start))
    return tuple(found)


def _same(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).resolve() == folder.resolve()


@dataclass(frozen=True)
class Stage:
    """What happens to a stage: its words after `sscl`, none where it is finished; and why, in words."""

    name: str
    words: tuple[str, ...] = ()
    why: str = ""


def training_stages(project: Project, *, overwrite: bool) -> list[Stage]:
    """Return what happens to the trainings.

    Raises:
        ValueError: a run is there with other settings than the file's, and `overwrite` is not given.
    """
    decisions = decide(project.steps, overwrite=overwrite)
    return [_training(step, decisions[step.folder]) for step in project.steps]


def _training(step: Step, decision: Decision) -> Stage:
    name = step.entry.command
    if decision.action is Action.REUSED:
        ending = run.ending_of(step.folder)
        regression = isinstance(step.config, FinetuneConfig) and step.config.train.head == "logistic"
        epochs = "" if ending is None or regression else f", {count(ending.epochs, 'epoch')}"
        return Stage(name, why=f"finished before ({step.folder}{epochs})")
    why = {Action.RESUME: "goes on after its last epoch", Action.AGAIN: f"again: {decision.reason}"}
    return Stage(name, (*step.words, *FLAGS[decision.action]), why.get(decision.action, ""))


def result_stage(project: Project, name: str) -> Stage:
    """Return what happens to eval or gradcam, once the classifier is trained."""
    config, file = project.results[name], project.file_of[name]
    out = _result_folder(config, name)
    words = (name, str(file))
    if not (out / "config.yaml").is_file():
        return Stage(name, words)
    if modified(out / "env.json") < modified(Path(config.checkpoint) / "checkpoints" / "best.pt"):
        return Stage(name, (*words, "--overwrite"), "again: the classifier is newer")
    try:
        before = plain(load_config(type(config), out / "config.yaml"))
    except ValueError:  # of another version
        before = {}
    now = plain(config)
    changed = [key for key in now if key not in SAME_RESULT and before.get(key) != now[key]]
    if changed:
        return Stage(name, (*words, "--overwrite"), f"again: {listed(changed)} changed")
    return Stage(name, why=f"finished before ({out})")


def page_stage(project: Project, *, changed: bool) -> Stage:
    """Return what happens to the page. changed: whether an earlier stage was run just now."""
    out, file = project.page_file, project.file_of["report"]
    assert out is not None
    words = ("report", str(file))
    if not out.exists():
        return Stage("report", words)
    made = [_result_folder(config, name) / "env.json" for name, config in project.results.items()]
    if changed or any(modified(path) > modified(out) for path in (file, *filter(Path.is_file, made))):
        return Stage("report", (*words, "--overwrite"), "again: what it shows is newer")
    return Stage("report", why=f"finished before ({out})")


def _result_folder(config: EvalConfig | GradcamConfig, name: str) -> Path:
    """Return the folder that eval or gradcam writes, or has written."""
    if config.out is not None:
        return Path(config.out)
    if isinstance(config, GradcamConfig) and config.images is not None:
        return Path(config.checkpoint) / "gradcam_images"
    return folder_of(Path(config.checkpoint), name, config.data, config.split)
