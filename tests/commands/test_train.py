"""sscl train: all stages of sscl init, skipped where finished, gone on with where not; here in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sscl.cli import main
from sscl.project.stages import read_project, result_stage, training_stages

FILES = {
    "pretrain": "{{run: {out}/pretrain, data: {{root: {tiles}, size_px: 32{labels}}}, health: {{tiles: 8}}, "
    "model: {{name: 'timm:test_resnet'}}, train: {{epochs: {epochs}, batch_size: 8}}, device: cpu}}",
    "finetune": "{{run: {out}/finetune, data: {{root: {tiles}}}, model: {{weights: {out}/pretrain}}, "
    "train: {{epochs: 1, batch_size: 8}}, device: cpu}}",
    "eval": "{{checkpoint: {out}/finetune, device: cpu}}",
    "gradcam": "{{checkpoint: {out}/finetune, device: cpu, per_class: 1}}",
    "report": "{{runs: [{out}/finetune, {out}/pretrain], out: {out}/report.html, device: cpu}}",
}


@pytest.fixture
def project(tmp_path: Path, tiles: Path) -> Callable[..., Path]:
    """Return a function that writes the files of a project."""

    def write(root: Path = tiles, *, epochs: int = 1, stages: str = "", labels: bool = False) -> Path:
        out = tmp_path / "a project"
        out.mkdir(exist_ok=True)
        (out / "env.json").write_text('{"sscl": "0"}')
        for name in stages.split() or FILES:
            given = {"out": out, "tiles": root, "epochs": epochs, "labels": ", labels: true" if labels else ""}
            (out / f"{name}.yaml").write_text(FILES[name].format(**given))
        return out

    return write


@pytest.fixture
def steps(wrap: Any) -> list[list[str]]:
    """The commands that were run, in this process instead of one of their own; the page has no charts."""
    called: list[list[str]] = []

    def run(real: object, words: list[str], **_: object) -> int:
        called.append(words)
        return main(words)

    wrap(project_step=run, svg=lambda inline, draw, prefix: f'<svg id="{prefix}"></svg>')
    return called


def names(steps: list[list[str]]) -> list[str]:
    """The commands, with their flags, since this was asked last."""
    found = [" ".join([words[0], *(word for word in words if word.startswith("--"))]) for words in steps]
    steps.clear()
    return found


def test_a_project_runs_to_its_page_and_then_nothing_is_left_to_do(
    cli: Any, project: Callable[..., Path], steps: list[list[str]]
) -> None:
    folder = project()
    first = cli("train", folder, "progress=false")
    assert (first.code, first.err) == (0, "")
    assert names(steps) == ["pretrain", "finetune", "eval", "gradcam", "report"]
    assert first.out.splitlines()[-2] == f"everything on one page: {folder}/report.html"
    assert (folder / "report.html").is_file()

    again = cli("train", folder)
    assert (again.code, names(steps)) == (0, [])
    assert again.out.count("finished before") == 5
    unchanged = cli("train", folder, "progress=false", "--overwrite")
    assert (unchanged.code, len(unchanged.err.splitlines()), names(steps)) == (2, 1, [])
    assert f"{folder}/pretrain.yaml --overwrite" in unchanged.err

    # The classifier stays; what is made of it follows its settings.
    (folder / "eval.yaml").write_text(FILES["eval"].format(out=folder)[:-1] + ", tta: true}")
    assert cli("train", folder).code == 0
    assert names(steps) == ["eval --overwrite", "report --overwrite"]

    # Another pretraining is asked for.
    project(epochs=2, stages="pretrain")
    refused = cli("train", folder)
    assert (refused.code, names(steps), refused.err.count("\n")) == (2, [], 1)
    assert "train.epochs=1 (now 2)" in refused.err
    words = [stage.words for stage in training_stages(read_project(folder), overwrite=True)]
    assert [(name, flag) for name, _, flag in words] == [("pretrain", "--overwrite"), ("finetune", "--overwrite")]


def test_an_interrupted_training_goes_on(cli: Any, project: Callable[..., Path], steps: list[list[str]]) -> None:
    folder = project(epochs=2, stages="pretrain")
    assert cli("pretrain", folder / "pretrain.yaml", "train.stop_after_epoch=1").code == 0
    done = cli("train", folder)
    assert (done.code, names(steps)) == (0, ["pretrain --resume"])
    assert "left out" in done.out
    assert "note: " not in done.out.partition("$ sscl")[0]
    assert done.out.splitlines()[-1].startswith("next: sscl finetune LABELLED_TILES ")
    (folder / "pretrain/training.json").unlink()
    shutil.rmtree(folder / "pretrain/checkpoints")  # killed before the end of its first epoch
    assert cli("train", folder).code == 0
    assert names(steps) == ["pretrain --overwrite"]


def test_a_copied_project_says_where_it_writes(project: Callable[..., Path], tmp_path: Path) -> None:
    folder = project(stages="pretrain")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert read_project(folder).elsewhere == []
    (line,) = read_project(copy).elsewhere
    assert str(folder / "pretrain") in line


def test_without_test_tiles_it_is_said_what_is_left_out(
    cli: Any, project: Callable[..., Path], steps: list[list[str]], folder3: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder3 / "train", tmp_path / "tiles/train")
    done = cli("train", project(tmp_path / "tiles", labels=True))
    assert (done.code, names(steps)) == (0, ["pretrain", "finetune"])
    assert "no test split: eval, gradcam and report" in " ".join(done.out.split())
    assert done.out.splitlines()[-1].startswith("next: sscl predict ")


def test_a_stage_that_fails_ends_it_in_one_line(
    cli: Any, project: Callable[..., Path], tmp_path: Path, wrap: Any
) -> None:
    folder = project()
    wrap(project_step=lambda real, words, **_: 2)
    failed = cli("train", folder)
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert failed.err.startswith("sscl: train: pretrain failed")

    def interrupt(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    wrap(project_step=interrupt)
    stopped = cli("train", folder)
    assert (stopped.code, stopped.err.count("\n")) == (130, 1)
    assert "run it again" in stopped.err


@pytest.mark.parametrize(
    ("files", "key"),
    [
        ({}, "has no pretrain.yaml"),
        ({"pretrain.yaml": "{run: r}"}, "data.root: missing"),
        ({"finetune.yaml": "{run: r, data: {root: .}, model: {nam: x}}"}, "model.nam: unknown key"),
        ({"finetune.yaml": "{run: r, data: {root: .}, train: {folds: 3}}"}, "train.folds"),
        (
            {
                "pretrain.yaml": "{run: r, data: {root: .}}",
                "finetune.yaml": "{run: ./r, data: {root: .}, model: {name: resnet18}}",
            },
            "finetune.yaml",
        ),
        ({"pretrain.yaml": "{run: r, data: {root: .}}", "eval.yaml": "{checkpoint: other}"}, "eval.yaml"),
        ({"pretrain.yaml": "{run: r, data: {root: .}}", "report.yaml": "{runs: [r, other]}"}, "runs: other"),
    ],
)
def test_a_project_that_cannot_run_is_one_line(files: dict[str, str], key: str, cli: Any, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    result = cli("train", tmp_path)
    assert (result.code, result.err.count("\n"), key in result.err) == (2, 1, True), result.err


def test_what_was_made_of_other_tiles_is_found_again(project: Callable[..., Path], tmp_path: Path) -> None:
    folder = project()
    other, images = tmp_path / "other", tmp_path / "images"
    (folder / "finetune/checkpoints").mkdir(parents=True)
    (folder / "finetune/checkpoints/best.pt").touch()
    (folder / "eval.yaml").write_text(FILES["eval"].format(out=folder)[:-1] + f", data: {{root: {other}}}}}")
    (folder / "gradcam.yaml").write_text(FILES["gradcam"].format(out=folder)[:-1] + f", images: {images}}}")
    read = read_project(folder)
    for name, place in {"eval": "eval_other_all", "gradcam": "gradcam_images"}.items():
        assert result_stage(read, name).words
        there = folder / "finetune" / place
        there.mkdir()
        shutil.copy(folder / f"{name}.yaml", there / "config.yaml")
        (there / "env.json").write_text("{}")
        assert not result_stage(read, name).words


def test_the_folder_is_found_where_none_is_named(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nowhere = cli("train")
    assert (nowhere.code, "sscl-run" in nowhere.err) == (2, True)
    (tmp_path / "pretrain.yaml").write_text("{run: r}")  # here
    assert "data.root: missing" in cli("train").err
    (tmp_path / "sscl-run").mkdir()
    assert "sscl-run: has no pretrain.yaml" in cli("train").err
