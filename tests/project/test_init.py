"""sscl init: what it sees in tiles, and that the files it writes are accepted and fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from npz_files import write_npz
from sscl.cli import main
from sscl.config import EvalConfig, FinetuneConfig, GradcamConfig, PretrainConfig, ReportConfig, load_config
from sscl.data.synthetic import write_synthetic
from sscl.project import settings
from sscl.project.look import Sizes

KINDS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "eval": EvalConfig,
    "gradcam": GradcamConfig,
    "report": ReportConfig,
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrap: Any) -> None:
    """Work in an empty folder with a cache of its own; a tile takes 10 ms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSCL_CACHE", str(tmp_path / "cache"))
    wrap(
        init_seconds=lambda real, *given, **named: 0.01 / settings.BESIDES_STEPS,
        init_bytes=lambda real, *given: 2**20,
    )


@pytest.fixture
def write() -> Callable[..., None]:
    """Return a function that writes some tiles of noise into a folder, numbered from `first`."""
    rng = np.random.default_rng(0)

    def tiles(folder: str, number: int, *, width: int = 48, height: int = 48, first: int = 0) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + number):
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(f"{folder}/{i}.png")

    return tiles


def init(*words: str) -> int:
    return main(["init", *words, "progress=false", "device=cpu"])


def files(folder: str = "sscl-run") -> dict[str, Any]:
    """The files that are there, loaded as their commands load them."""
    return {
        path.stem: load_config(KINDS[path.stem], path)  # type: ignore[type-var]
        for path in sorted(Path(folder).glob("*.yaml"))
    }


def test_every_file_is_accepted_and_every_line_says_why(write: Callable[..., None]) -> None:
    for part, number in (("train", 24), ("test", 12)):
        for name in ("HP", "SSA"):
            write(f"tiles/{part}/{name}", number if name == "HP" else 10)
    assert init("tiles") == 0
    found = files()
    assert found.keys() == KINDS.keys()
    (source,) = found["pretrain"].data
    assert (source.root, source.size_px, source.labels) == (str(Path("tiles").resolve()), 48, True)
    assert Path(found["finetune"].model.weights) == Path(found["pretrain"].run) == Path("sscl-run/pretrain").resolve()
    assert found["eval"].checkpoint == found["gradcam"].checkpoint == found["finetune"].run == found["report"].runs[0]
    assert found["finetune"].train.loss == "weighted_cross_entropy"
    assert f"sscl predict {Path('sscl-run/finetune').absolute()} SLIDES" in Path("sscl-run/report.yaml").read_text()
    for name in KINDS:
        lines = Path(f"sscl-run/{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not re.search(r"^\w+:$|#", line)] == []
        assert not any(line.strip().startswith("mpp:") for line in lines)  # which nobody gave


def test_without_classes_it_is_pretraining_alone(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("flat", 12)
    Path("flat/slide.svs").touch()
    assert init("flat") == 0
    assert files().keys() == {"pretrain"}
    said = capsys.readouterr().out
    assert ("pretraining alone" in said, "1 .svs file" in said) == (True, True)


def test_classes_may_be_left_alone(write: Callable[..., None]) -> None:
    for name in ("a", "b"):
        write(f"tiles/{name}", 10)
    assert init("tiles") == 0
    assert init("tiles", "labels=false", "--overwrite") == 0
    assert files().keys() == {"pretrain"}
    assert files()["pretrain"].data[0].labels is False


@pytest.mark.parametrize(
    ("folders", "key"),
    [
        ({"tiles/one": 12}, "one class"),
        ({"tiles/a": 3, "tiles/b": 3}, "at least 8"),
        ({"tiles": 5, "tiles/sub": 5}, "labels=false"),
        ({"tiles": 0}, "no images"),
    ],
)
def test_what_is_no_task_is_one_line_and_nothing_is_written(
    folders: dict[str, int], key: str, write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, number in folders.items():
        write(folder, number)
    assert init("tiles") == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), key in err) == (1, True)
    assert not Path("sscl-run").exists()


def test_a_task_that_cannot_be_measured_is_warned_of(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b", "c", "d"):
        write(f"tiles/{name}", 3)
    assert init("tiles") == 0
    assert "warning: the test has 1 tile of a" in capsys.readouterr().out
    write("other/train/a", 10)
    write("other/train/b", 10)
    assert init("other", "out=other-run") == 0
    assert "no test split" in capsys.readouterr().out


def test_text_is_written_as_typed(write: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = ["a #1", "é: [x]", "~", "1e-4", "null", "'q' \"r\"", "x" * 150]
    monkeypatch.setenv("HOME", str(tmp_path))
    for i, name in enumerate(names):
        write(f"{name}/tiles", 8, first=i)
        assert init(f"./{name}/tiles", f"out=./{name}/out") == 0
        assert files(f"{name}/out")["pretrain"].data[0].root == str(tmp_path / name / "tiles")
    assert init("~/null/tiles", "out=home") == 0
    assert files("home")["pretrain"].data[0].root == str(tmp_path / "null" / "tiles")
    raw = yaml.safe_load(Path("home/pretrain.yaml").read_text(encoding="utf-8"))
    assert raw["run"] == str(tmp_path / "home" / "pretrain")


def test_nothing_is_overwritten_without_being_asked(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write("tiles", 8)
    Path("sscl-run").mkdir()
    Path("sscl-run/notes.txt").write_text("mine")
    Path("sscl-run/eval.yaml").write_text("checkpoint: mine\n")
    assert init("tiles") == 2
    assert "eval.yaml" in capsys.readouterr().err
    assert sorted(path.name for path in Path("sscl-run").iterdir()) == ["eval.yaml", "notes.txt"]
    assert init("tiles", "overwrite=true") == 0
    assert Path("sscl-run/notes.txt").read_text() == "mine"
    assert init("tiles", "out=tiles") == 2
    Path("link").symlink_to("nowhere")
    assert init("tiles", "out=link") == 2
    assert "link is no folder" in capsys.readouterr().err


def test_the_layouts_of_mhist_and_medmnist_are_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    write_synthetic(Path("polyps"), count=24, size_px=32)
    for path in Path("polyps").rglob("syn_*"):
        path.rename(path.with_name(path.name.replace("syn_", "own_")))
    for table in ("annotations.csv", "slides.csv"):
        text = Path(f"polyps/{table}").read_text()
        Path(f"polyps/{table}").write_text(text.replace("syn_", "own_"))
    assert init("polyps") == 0
    assert (files()["finetune"].data.source, files()["finetune"].data.published) == ("mhist", False)

    rng = np.random.default_rng(0)
    parts = {
        part: (rng.integers(0, 256, (number, 28, 28, 3), dtype=np.uint8), np.arange(number) % 2, None)
        for part, number in (("train", 40), ("val", 20), ("test", 20))
    }
    write_npz("set.npz", parts, classes=["a", "b"])
    assert init("set.npz", "out=npz") == 0
    (source,) = files("npz")["pretrain"].data
    assert (source.source, source.size_px, files("npz")["pretrain"].model.name) == (
        "pathmnist",
        28,
        "resnet18_pathmnist",
    )
    assert init("set.npz", "out=npz-all", "labels=false") == 0
    assert files("npz-all").keys() == {"pretrain"}


def test_a_table_gives_the_scale(write: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    write("tiles", 24)
    rows = [f"tiles/{i}.png,{'ab'[i % 2]},0.25" for i in range(24)]
    Path("table.csv").write_text("\n".join(["path,label,mpp", *rows]))
    assert init("table.csv") == 0
    assert "0.25 µm per pixel" in capsys.readouterr().out
    assert files()["finetune"].data.source == "table"


def test_copies_stay_on_one_side(write: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Path(f"tiles/{name}").mkdir(parents=True)
        for i in range(12):
            tile = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((48, 48), Image.BICUBIC)
            tile.save(f"tiles/{name}/{i}.png")
            tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(f"tiles/{name}/{i}f.png")
    assert init("tiles") == 0
    assert "copies: 24 pairs" in capsys.readouterr().out
    assert files()["finetune"].data.group_near_duplicates is True
    assert files()["pretrain"].data[0].group_near_duplicates is True


def test_images_that_are_not_square_are_cut_and_that_is_said_once(
    write: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write(f"tiles/{name}", 20, width=64)
    assert init("tiles", "data.split_seed=3") == 0
    assert capsys.readouterr().out.count("fit=crop") == 1
    assert (files()["finetune"].data.fit, files()["finetune"].data.split_seed) == ("crop", 3)


def test_a_project_inside_the_tiles_is_not_taken_for_tiles(
    write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write(f"tiles/{name}", 10)
    monkeypatch.chdir("tiles")
    assert init(".") == 0
    assert init(".", "--overwrite") == 0


def test_encoder_and_size_fit_the_machine() -> None:
    cpu = settings.Machine(torch.device("cpu"), "fp32", 2**34)
    gpu = settings.Machine(torch.device("cuda"), "bf16", 2**34)
    small_gpu = settings.Machine(torch.device("cuda"), "bf16", 2**32)
    large, tiny = Sizes(512, 512, 512, 1), Sizes(28, 28, 28, 1)

    def chosen(sizes: Sizes, machine: settings.Machine, **given: int) -> tuple[str, int]:
        found = settings.choose_encoder(sizes, machine, **given)
        return found.name, found.size_px

    assert chosen(large, cpu) == ("resnet18", settings.CPU_PX)
    assert chosen(large, gpu) == ("resnet50", settings.GPU_PX)
    assert chosen(large, small_gpu) == ("resnet18", settings.GPU_PX)
    assert chosen(large, cpu, size_px=64) == ("resnet18", 64)
    few = Sizes(512, 512, 512, 1, files=settings.FEW_TILES)
    assert chosen(few, cpu) == ("resnet14_small", settings.CPU_PX)
    assert chosen(few, gpu) == ("resnet50", settings.GPU_PX)
    assert chosen(Sizes(28, 28, 28, 1, files=100), cpu) == ("resnet18_pathmnist", 28)
    assert chosen(tiny, gpu) == ("resnet18_pathmnist", 28)


def test_the_batch_fits_the_memory_and_epochs_the_time(wrap: Any, write: Callable[..., None]) -> None:
    write("tiles", 400)
    assert init("tiles", "minutes=1") == 0
    train = files()["pretrain"].train
    assert (train.batch_size, train.epochs) == (64, 15)  # 400 tiles of 10 ms
    wrap(init_bytes=lambda real, *given: 2**40)
    assert init("tiles", "minutes=1", "--overwrite") == 0
    assert files()["pretrain"].train.batch_size == settings.LEAST_BATCH


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, wrapped: Callable[..., Any]) -> Path:
    """A folder of 12 drawn slides of 6 patients, and beside it their table."""
    root = tmp_path_factory.mktemp("drawn") / "cohort"
    with wrapped(drawing_cores=lambda real: 1):
        assert main(["slides", "synth", str(root), "count=12", "size_px=256", "mpp=2", "progress=false"]) == 0
    return root


def test_slides_are_to_be_indexed_first(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slides = drawn / "slides"
    words = {"init": [], "pretrain": ["run=r"], "finetune": ["run=r"], "data inspect": ["out=o"]}
    for command, more in words.items():
        for given in (slides, next(slides.glob("*.svs"))):
            assert main([*command.split(), str(given), *more, "progress=false"]) == 2
            error = capsys.readouterr().err
            assert f"sscl slides tile {given} out=INDEX mpp=0.5" in error
            assert error.count("\n") == 1
    assert sorted(path.name for path in Path().iterdir()) == []


def test_an_index_of_slides_gets_settings_of_its_own(drawn: Path) -> None:
    words = ["size_px=32", f"slides_csv={drawn / 'slides.csv'}", "out=index", "mpp=2", "progress=false"]
    assert main(["slides", "tile", str(drawn / "slides"), *words]) == 0
    assert init("index") == 0
    found = files()
    assert found.keys() == KINDS.keys()
    (source,) = found["pretrain"].data
    assert (source.source, source.size_px, source.mpp, source.labels) == ("slides", 32, 2.0, True)
    assert source.tiles_per_slide is None
    assert found["finetune"].data.mpp == 2.0
    for name in KINDS:
        lines = Path(f"sscl-run/{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if not re.search(r"^\w+:$|#", line)] == []

    for path in sorted(Path("index/grids").glob("*.npy"))[1:]:  # all but a few tiles of all other slides are gone
        facts = Path("index/slides") / f"{path.stem}.json"
        np.save(path, np.load(path)[:4])
        facts.write_text(re.sub(r'"tiles": \d+', '"tiles": 4', facts.read_text()))
    assert init("index", "labels=false", "--overwrite") == 0
    (source,) = files()["pretrain"].data
    assert (source.tiles_per_slide, source.labels) == (4, False)
