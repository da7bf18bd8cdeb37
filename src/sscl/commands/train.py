"""sscl train: the stages that sscl init has written, each a command in a process of its own."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from sscl import children, run
from sscl.config import TrainConfig
from sscl.config.project import FOLDER
from sscl.places import missing
from sscl.project import stages
from sscl.project.stages import Stage
from sscl.words import listed, next_command, wrapped


def main(config: TrainConfig, *, overwrite: bool = False) -> None:
    """Run what is not finished of pretrain, finetune, eval, gradcam and report.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything runs; a stage failed.
    """
    folder = project_folder(config.folder)
    project = stages.read_project(folder)
    begun = time.perf_counter()
    with run.holding(folder):
        trainings = stages.training_stages(project, overwrite=overwrite)
        print(f"{folder}: {listed(list(project.stages))}")
        for line in project.left_out:
            print(wrapped(f"left out: {line}"))
        for line in project.elsewhere:
            print(wrapped(f"note: {line}"))
        done = [call(stage, project, config) for stage in trainings]
        done += [call(stages.result_stage(project, name), project, config) for name in project.results]
        if project.page is not None:
            done.append(call(stages.page_stage(project, changed=any(done)), project, config))
    if overwrite and not any(done):
        first = project.steps[0].entry.command
        raise ValueError(
            f"--overwrite: nothing has changed since, so no stage runs again; sscl {first} {project.file_of[first]} "
            f"--overwrite does it again, and sscl train {folder} what comes after it"
        )
    minutes = (time.perf_counter() - begun) / 60
    print(f"\ndone in {minutes:.1f} minutes" if any(done) else "\nnothing was left to do")
    last = project.steps[-1]
    if project.page_file is not None:
        print(f"everything on one page: {project.page_file}")
    if last.entry.command == "pretrain":
        print(next_command("finetune", "LABELLED_TILES", f"from={last.folder}", f"run={folder / 'finetune'}"))
    else:
        print(next_command("predict", last.folder, "NEW_TILES_OR_SLIDES"))


def project_folder(given: str | None) -> Path:
    """Return the folder of the YAML files: the one given, else sscl-run, else the working folder if they are there."""
    here = Path()
    folder = Path(given) if given is not None else Path(FOLDER)
    if given is None and not folder.is_dir() and any((here / f"{name}.yaml").is_file() for name in stages.STAGES[:2]):
        return here
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: {missing(folder, 'folder')}; sscl init TILES writes it")
    return folder


def call(stage: Stage, project: stages.Project, config: TrainConfig) -> bool:
    """Run a stage in a process of its own, or say that it is finished; return whether it ran."""
    number = f"{project.stages.index(stage.name) + 1} of {len(project.stages)}"
    if stage.words:
        print()
    print(wrapped(f"{number}: {stage.name}{f', {stage.why}' if stage.why else ''}"), flush=True)
    if not stage.words:
        return False
    words = [*stage.words, *([] if config.progress else ["progress=false"])]
    print(f"$ sscl {shlex.join(words)}", flush=True)
    if children.run_command(words, stage=True) != 0:
        again = next_command("train", project.folder).removeprefix("next: ")
        raise ValueError(f"train: {stage.name} failed, its message is above; {again} continues there")
    return True
