"""Bad input: exit code 2, one line that names the file or key, nothing written and nothing lost."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sscl.config import DataConfig
from sscl.data.load import load_tiles

NAME, LABEL, VOTES, PARTITION = (
    "Image Name",
    "Majority Vote Label",
    "Number of Annotators who Selected SSA (Out of 7)",
    "Partition",
)
Row = dict[str, str]


def assert_refused(result: Any, *words: str) -> None:
    """Exit code 2, one line on standard error, with the words."""
    assert result.code == 2, result
    assert result.err.startswith("sscl: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.out + result.err


def change_rows(root: Path, change: Callable[[list[Row]], list[Row] | None]) -> None:
    """Rewrite annotations.csv with its rows changed in place, or replaced by what `change` returns."""
    path = root / "annotations.csv"
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    rows = change(rows) or rows
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def first_image(root: Path) -> Path:
    return min((root / "images").iterdir())


@pytest.fixture
def refuse_training(
    cli: Any, broken: Path, tmp_path: Path, snapshot: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> Callable[..., None]:
    """Return a check that pretrain and finetune refuse the broken tiles, write nothing and leave no half cache."""
    cache = tmp_path_factory.mktemp("cache_of_bad_tiles")
    monkeypatch.setenv("SSCL_CACHE", str(cache))

    def check(*words: str, decodable: bool = False) -> None:
        before = snapshot(tmp_path)
        for command in (cli.pretrain, cli.finetune):
            result = command(tmp_path / "run", f"data.root={broken}")
            assert_refused(result, *words)
        assert snapshot(tmp_path) == before  # the run folder is absent, the tiles are as they were
        assert decodable or list(cache.iterdir()) == []

    return check


# --- annotations.csv ---


def test_missing_column(broken: Path, refuse_training: Any) -> None:
    change_rows(broken, lambda rows: [{key: row[key] for key in (NAME, LABEL, PARTITION)} for row in rows])

    refuse_training("annotations.csv: line 1", f"column '{VOTES}' is missing")


def test_misspelt_column_is_named_with_its_nearest(broken: Path, refuse_training: Any) -> None:
    text = (broken / "annotations.csv").read_text()
    (broken / "annotations.csv").write_text(text.replace("Partition", "Partiton", 1))

    refuse_training("annotations.csv: line 1", "'Partition' is missing", "Partiton")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        (LABEL, "TA", ("label 'TA'", "HP, SSA")),
        (LABEL, "ssa", ("label 'ssa'", "HP, SSA")),
        (LABEL, "", ("label ''", "HP, SSA")),
        (VOTES, "8", ("'8' votes", "0 to 7")),
        (VOTES, "-1", ("'-1' votes", "0 to 7")),
        (VOTES, "3.5", ("'3.5' votes", "0 to 7")),
        (VOTES, "many", ("'many' votes", "0 to 7")),
        (PARTITION, "validation", ("partition 'validation'", "train, test")),
        (NAME, "../secret.png", ("'../secret.png'", "plain file name")),
        (NAME, "/etc/hosts.png", ("'/etc/hosts.png'", "plain file name")),
        (NAME, "sub/tile.png", ("'sub/tile.png'", "plain file name")),
        (NAME, "..\\secret.png", ("secret.png'", "plain file name")),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    broken: Path, refuse_training: Any, column: str, value: str, words: tuple[str, ...]
) -> None:
    def change(rows: list[Row]) -> None:
        rows[2][column] = value

    change_rows(broken, change)

    refuse_training(str(broken / "annotations.csv"), "line 4", *words)


@pytest.mark.parametrize(("label", "votes"), [("HP", "4"), ("HP", "7"), ("SSA", "3"), ("SSA", "0")])
def test_vote_against_its_label(broken: Path, refuse_training: Any, label: str, votes: str) -> None:
    change_rows(broken, lambda rows: rows[0].update({LABEL: label, VOTES: votes}))

    refuse_training("annotations.csv: line 2", f"label {label} contradicts {votes} of 7 votes")


def test_duplicate_image_name(broken: Path, refuse_training: Any) -> None:
    change_rows(broken, lambda rows: rows[5].update({NAME: rows[0][NAME]}))

    refuse_training("annotations.csv: line 7", "syn_00000.png", "occurs twice")


def test_empty_class(broken: Path, refuse_training: Any) -> None:
    change_rows(broken, lambda rows: [row for row in rows if row[LABEL] == "HP"])

    refuse_training("annotations.csv", "no tile of class SSA")


def test_no_annotations_and_no_folder(broken: Path, refuse_training: Any, cli: Any, tmp_path: Path) -> None:
    (broken / "annotations.csv").unlink()

    refuse_training("annotations.csv", "README")
    result = cli.pretrain(tmp_path / "run", f"data.root={broken}", "data.source=auto")
    assert_refused(result, str(broken), "has images/ and masks/")
    assert_refused(cli.pretrain(tmp_path / "run", f"data.root={tmp_path / 'nowhere'}"), "nowhere", "no such folder")
    assert not (tmp_path / "run").exists()


def test_tiles_that_are_not_mhist_while_mhist_is_expected(cli: Any, tiles: Path, tmp_path: Path) -> None:
    result = cli.pretrain(tmp_path / "run", "data.published=true")

    assert_refused(result, "annotations.csv", "MHIST has")
    assert not (tmp_path / "run").exists()


# --- image files ---


def test_missing_file(broken: Path, refuse_training: Any) -> None:
    for path in sorted((broken / "images").iterdir())[:2]:
        path.unlink()

    refuse_training("images", "2 of 48 images", "the first is syn_0000")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def save(mode: str, size: tuple[int, int] = (32, 32)) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, size).save(path, format="PNG")


def save_see_through(path: Path) -> None:
    Image.new("RGBA", (32, 32), (200, 100, 150, 128)).save(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated or damaged"),
        (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
        (lambda path: path.write_text("<html>access denied</html>"), "not a readable image"),
        (save("RGB", (40, 40)), "is 40×40 pixels, expected 32×32"),
        (save("RGB", (32, 31)), "is 32×31 pixels"),
        (save("I;16"), "is 16-bit grey"),
        (save_see_through, "transparent pixels"),
    ],
    ids=["truncated", "empty", "no image", "size", "not square", "16 bits", "transparent"],
)
def test_unusable_file(broken: Path, refuse_training: Any, damage: Callable[[Path], object], message: str) -> None:
    name = sorted((broken / "images").iterdir())[7]
    damage(name)

    refuse_training(str(name), message)


def test_grey_palette_and_opaque_rgba_are_converted_without_loss(broken: Path) -> None:
    """Pixels as such files hold them, and the same pixels as RGB, are equal tiles."""
    paths = sorted((broken / "images").iterdir())[:3]
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    palette = grey.convert("RGB").quantize(32)
    rgba = Image.merge("RGBA", [*Image.open(paths[2]).convert("RGB").split(), Image.new("L", (32, 32), 255)])
    assert [image.mode for image in (grey, palette, rgba)] == ["L", "P", "RGBA"]
    data = DataConfig(root=str(broken), published=False, size_px=32)

    loaded = []
    for convert in (False, True):
        for path, image in zip(paths, (grey, palette, rgba), strict=True):
            (image.convert("RGB") if convert else image).save(path)
        loaded.append(np.asarray(load_tiles(data, split="all", progress=False).images))

    assert np.array_equal(*loaded)


# --- splits and counts ---


def test_a_split_that_would_be_empty_in_the_annotations(
    cli: Any, broken: Path, finetuned: Path, refuse_training: Any, tmp_path: Path
) -> None:
    change_rows(broken, lambda rows: [row.update({PARTITION: "test"}) for row in rows] and None)

    refuse_training("annotations.csv", "partition train has no HP tile", decodable=True)

    change_rows(broken, lambda rows: [row.update({PARTITION: "train"}) for row in rows] and None)
    result = cli.evaluate(finetuned, f"data.root={broken}", f"out={tmp_path / 'out'}", "split=test")
    assert_refused(result, "annotations.csv", "partition test has no HP tile")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.label_fraction=0.05"], "train.validation_fraction: "),
        (["data.groups_csv=GROUPS"], "one group"),
    ],
)
def test_a_validation_split_that_would_be_empty(
    cli: Any, folder3: Path, folder3_words: list[str], tmp_path: Path, words: list[str], message: str
) -> None:
    groups = tmp_path / "groups.csv"
    names = [path.relative_to(folder3).as_posix() for path in folder3.rglob("*.png")]
    groups.write_text("path,group\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    words = [word.replace("GROUPS", str(groups)) for word in words]

    assert_refused(cli.finetune(tmp_path / "run", *folder3_words, *words), message)
    assert not (tmp_path / "run").exists()


def test_class_folders_that_are_empty_lonely_or_without_test(
    cli: Any, folder3: Path, finetuned3: Path, tmp_path: Path, snapshot: Any
) -> None:
    empty = Path(shutil.copytree(folder3, tmp_path / "empty"))
    for path in (empty / "train/cancer").iterdir():
        path.unlink()
    lonely = Path(shutil.copytree(folder3 / "train", tmp_path / "lonely"))
    for path in sorted((lonely / "cancer").iterdir())[1:]:
        path.unlink()
    no_test = Path(shutil.copytree(folder3, tmp_path / "no_test"))
    shutil.rmtree(no_test / "test")
    before = snapshot(tmp_path)

    result = cli.finetune(tmp_path / "run", f"data.root={empty}", "data.source=folder")
    assert_refused(result, "train/cancer", "without images")
    result = cli.finetune(tmp_path / "run", f"data.root={lonely}", "data.source=folder")
    assert_refused(result, "'cancer' has 1 tile")
    result = cli.evaluate(finetuned3, f"data.root={no_test}", f"out={tmp_path / 'run'}", "split=test")
    assert_refused(result, "but no test")
    assert snapshot(tmp_path) == before


def test_fewer_tiles_than_a_batch(cli: Any, tmp_path: Path) -> None:
    result = cli.pretrain(tmp_path / "run", "train.batch_size=25")  # 24 are left beside the health tiles

    assert_refused(result, "train.batch_size: got 25", "only 24 ")
    assert not (tmp_path / "run").exists()


# --- checkpoints ---


def not_ours(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def a_pickle_that_runs_code(path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (path.with_suffix(".ran"),)

    path.write_bytes(pickle.dumps(Evil(), protocol=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such"),
        (not_ours, "not an sscl checkpoint"),
        (lambda path: path.write_bytes(b""), "not a readable checkpoint"),
        (lambda path: path.write_text("hello"), "not a readable checkpoint"),
        (a_pickle_that_runs_code, "not a readable checkpoint"),
        (lambda path: torch.save([1, 2], path), "not an sscl checkpoint"),
    ],
    ids=["missing", "not ours", "empty", "text", "pickle", "list"],
)
@pytest.mark.parametrize("command", ["eval", "gradcam"])
def test_foreign_checkpoint(
    cli: Any, tmp_path: Path, snapshot: Any, command: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / "best.pt")
    before = snapshot(tmp_path)

    assert_refused(cli(command, f"checkpoint={tmp_path / 'best.pt'}", "progress=false"), "best.pt", message)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["eval", "gradcam", "finetune", "pretrain"])
def test_truncated_checkpoint(cli: Any, finetuned: Path, tmp_path: Path, snapshot: Any, command: str) -> None:
    (tmp_path / "broken/checkpoints").mkdir(parents=True)
    whole = (finetuned / "checkpoints/best.pt").read_bytes()
    (tmp_path / "broken/checkpoints/best.pt").write_bytes(whole[: len(whole) // 2])
    before = snapshot(tmp_path)

    if command in ("eval", "gradcam"):
        result = cli(command, f"checkpoint={tmp_path / 'broken'}", "progress=false")
    else:
        result = getattr(cli, command)(tmp_path / "run", f"model.weights={tmp_path / 'broken'}")

    assert_refused(result, "best.pt", "truncated")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["eval", "gradcam"])
def test_checkpoint_of_another_command(cli: Any, pretrained: Path, snapshot: Any, command: str) -> None:
    before = snapshot(pretrained)

    result = cli(command, f"checkpoint={pretrained}", "progress=false")

    assert_refused(result, "last.pt", "written by sscl pretrain", "sscl finetune is needed")
    assert snapshot(pretrained) == before


def test_resuming_a_finetune_run_as_pretraining(cli: Any, finetuned: Path, tmp_path: Path, snapshot: Any) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(finetuned / "checkpoints/best.pt", tmp_path / "run/checkpoints/last.pt")
    (tmp_path / "run/config.yaml").write_text("seed: 0\n")
    before = snapshot(tmp_path)

    assert_refused(cli.pretrain(tmp_path / "run", "--resume"), "last.pt", "written by sscl finetune")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["eval", "gradcam"])
def test_checkpoint_of_another_class_list(
    cli: Any, finetuned3: Path, tiles: Path, tmp_path: Path, command: str
) -> None:
    data = [f"data.root={tiles}", "data.source=mhist", "data.published=false"]

    result = cli(command, f"checkpoint={finetuned3}", f"out={tmp_path / 'out'}", "progress=false", *data)

    assert_refused(result, "HP, SSA", "benign, cancer, stroma", str(tiles))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_weights_that_are_not_there_or_not_ours(cli: Any, tmp_path: Path, snapshot: Any, command: str) -> None:
    not_ours(tmp_path / "other.pt")
    before = snapshot(tmp_path)

    missing = getattr(cli, command)(tmp_path / "run", f"model.weights={tmp_path / 'nowhere'}")
    foreign = getattr(cli, command)(tmp_path / "run", f"model.weights={tmp_path / 'other.pt'}")

    assert_refused(missing, "nowhere", "no such")
    assert_refused(foreign, "model.weights: ", "other.pt", "no encoder that sscl knows (weight)", "expected")
    assert snapshot(tmp_path) == before


# --- run folders ---


@pytest.mark.parametrize("command", ["pretrain", "finetune", "eval", "gradcam", "data inspect", "demo"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["plain", "overwrite"])
def test_a_folder_with_somebody_s_files(
    cli: Any, finetuned: Path, tiles: Path, tmp_path: Path, snapshot: Any, command: str, overwrite: bool
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("important")
    before = snapshot(tmp_path)
    words = {
        "pretrain": [f"run={tmp_path / 'thesis'}", f"data.root={tiles}"],
        "finetune": [f"run={tmp_path / 'thesis'}", f"data.root={tiles}"],
        "eval": [f"out={tmp_path / 'thesis'}", f"checkpoint={finetuned}"],
        "gradcam": [f"out={tmp_path / 'thesis'}", f"checkpoint={finetuned}"],
        "data inspect": [f"out={tmp_path / 'thesis'}", f"data.root={tiles}"],
        "demo": [f"run={tmp_path / 'thesis'}"],
    }[command]

    result = cli(*command.split(), *words, *(["--overwrite"] if overwrite else []))

    assert_refused(result, f"{tmp_path / 'thesis'}: ", "not written by sscl" if overwrite else "give --overwrite")
    assert snapshot(tmp_path) == before


def test_a_run_folder_that_is_a_file(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("important")

    assert_refused(cli.pretrain(tmp_path / "run", "--overwrite"), f"{tmp_path / 'run'}: is a file")
    assert_refused(cli.finetune(tmp_path / "run/below"), str(tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "important"


# --- devices ---


@pytest.mark.parametrize("command", ["pretrain", "finetune", "eval", "gradcam"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_cuda_where_there_is_none(
    cli: Any, finetuned: Path, tmp_path: Path, with_cards: Any, command: str, device: str
) -> None:
    with_cards()
    if command in ("pretrain", "finetune"):
        result = getattr(cli, command)(tmp_path / "run", f"device={device}")
    else:
        result = cli(command, f"checkpoint={finetuned}", f"out={tmp_path / 'run'}", f"device={device}")

    assert_refused(result, "device: ", device, "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "finetune", "eval", "gradcam"])
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("device=cuda:7",), ("device: got cuda:7", "cuda:0 to cuda:1")),
        (("device=cuda",), ("device: got cuda", "Tesla P100", "6.0", "torch==2.7.1", "device=cpu")),
        (("device=cuda:1", "precision=bf16"), ("precision: bf16", "Tesla T4", "7.5", "fp16")),
        (("device=mps",), ("device: got mps", "device=cpu")),
    ],
)
def test_a_card_that_cannot_do_it(
    cli: Any,
    finetuned: Path,
    tmp_path: Path,
    with_cards: Any,
    with_mps: Any,
    command: str,
    words: tuple[str, ...],
    says: tuple[str, ...],
) -> None:
    """A machine with a P100, which torch has no kernels for, and a T4, which has no bf16."""
    if len(words) > 1 and command not in ("pretrain", "finetune"):
        pytest.skip("without a precision")
    with_cards((6, 0), (7, 5), names=["Tesla P100", "Tesla T4"], built=["sm_75", "sm_80", "sm_90"])
    with_mps(available=False)
    if command in ("pretrain", "finetune"):
        result = getattr(cli, command)(tmp_path / "run", *words)
    else:
        result = cli(command, f"checkpoint={finetuned}", f"out={tmp_path / 'run'}", *words)

    assert_refused(result, *says)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("micro", "says"), [(5, "divisors"), (16, "divisors"), (0, ">= 1"), (-1, ">= 1")])
def test_a_microbatch_that_leaves_nothing(cli: Any, tmp_path: Path, micro: int, says: str) -> None:
    """Of 12 tiles: not a divisor, more than there are, none."""
    result = cli.pretrain(tmp_path / "run", f"train.microbatch={micro}")

    assert_refused(result, f"train.microbatch: {'got' if micro > 0 else 'must be'}", f"got {micro}", says)
    assert not (tmp_path / "run").exists()


def test_memory_too_small_for_one_tile(cli: Any, tmp_path: Path, wrap: Any) -> None:
    def too_small(*_: Any, **__: Any) -> None:
        raise ValueError("data.size_px: a single tile does not fit")

    wrap(memory=too_small)
    for command in (cli.pretrain, cli.finetune):
        assert_refused(command(tmp_path / "run"), "data.size_px")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "key"),
    [
        ("pretrain", "train.microbatch"),
        ("finetune", "train.batch_size"),
        ("evaluate", " batch_size"),
        ("gradcam", " batch_size"),
    ],
)
def test_out_of_gpu_memory_says_which_keys_to_lower(
    cli: Any, finetuned: Path, tmp_path: Path, wrap: Any, command: str, key: str
) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    wrap(**{f"{command}_store": no_room})
    if command in ("pretrain", "finetune"):
        result = getattr(cli, command)(tmp_path / "run")
    else:
        result = getattr(cli, command)(finetuned, f"out={tmp_path / 'run'}")

    assert_refused(result, "out of GPU memory", key)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "word"),
    [
        ("pretrain", "train.microbatch=4"),
        ("finetune", "train.batch_size=4"),
        ("evaluate", "batch_size=4"),
        ("gradcam", "batch_size=4"),
    ],
)
def test_what_is_advised_when_memory_runs_out_works(
    cli: Any, finetuned: Path, tmp_path: Path, command: str, word: str
) -> None:
    run = tmp_path / "run"
    words = (run, word) if command in ("pretrain", "finetune") else (finetuned, f"out={run}", word)

    result = getattr(cli, command)(*words)

    assert result.code == 0, result.err


def test_out_of_memory_in_a_step_leaves_the_last_checkpoint(cli: Any, tmp_path: Path, wrap: Any) -> None:
    calls = 0

    def no_room_in_epoch_2(real: Any, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*arguments, **named)

    wrap(pretrain_backward=no_room_in_epoch_2)

    assert_refused(cli.pretrain(tmp_path / "run", "train.epochs=2"), "out of GPU memory")
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["epoch"] == 1


# --- keys ---


@pytest.mark.parametrize(
    ("command", "word", "words"),
    [
        ("pretrain", "train.epoch=3", ("train.epoch: unknown key", "train.epochs")),
        ("pretrain", "train.epochs=ten", ("train.epochs: ", "got 'ten'")),
        ("pretrain", "train.epochs=0", ("train.epochs: ", ">= 1", "got 0")),
        ("finetune", "train.loss=cross_entrop", ("train.loss: ", "weighted_cross_entropy", "got 'cross_entrop'")),
        ("finetune", "model.name=resnet19", ("model.name: ", "resnet18", "got 'resnet19'")),
        ("finetune", "precision=fp16", ("precision: ", "fp16", "CUDA")),
    ],
)
def test_a_wrong_key_or_value(cli: Any, tmp_path: Path, command: str, word: str, words: tuple[str, ...]) -> None:
    assert_refused(getattr(cli, command)(tmp_path / "run", word), *words)
    assert not (tmp_path / "run").exists()


# --- tasks that are none ---


def noise(root: Path, counts: dict[str, int], *, first: int = 0) -> Path:
    """Write tiles of noise in class folders, no two alike; equal numbers from `first` on are equal tiles."""
    for name, tiles in counts.items():
        (root / name).mkdir(parents=True)
        for _ in range(tiles):
            pixels = np.random.default_rng(first).integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{first}.png")
            first += 1
    return root


@pytest.mark.parametrize(
    ("counts", "words", "named"),
    [
        ({"images": 20}, [], ["one class (images)", "a folder for each class"]),
        ({"images": 20}, ["train.folds=2"], ["one class (images)"]),
        ({"0": 8, "1": 8, "10": 2, "2": 8}, [], ["class '10' has 1 tile"]),
        ({"0": 8, "1": 8, "10": 2, "2": 8}, ["train.folds=2"], ["class '10' has 1"]),
    ],
)
def test_too_few_classes_or_tiles_of_one_are_refused_by_name(
    cli: Any, tmp_path: Path, counts: dict[str, int], words: list[str], named: list[str]
) -> None:
    root = noise(tmp_path / "set", counts)
    result = cli.finetune(tmp_path / "run", f"data.root={root}", "data.source=folder", *words)
    assert_refused(result, *named)
    assert not (tmp_path / "run").exists()


def test_a_test_split_that_is_the_training_split_is_refused(cli: Any, tmp_path: Path) -> None:
    for part in ("train", "test"):
        noise(tmp_path / "set" / part, {"A": 8, "B": 8})
    result = cli.finetune(tmp_path / "run", f"data.root={tmp_path / 'set'}", "data.source=folder")
    assert_refused(result, "data.root", "of 16 test tiles are training tiles too")
    assert not (tmp_path / "run").exists()
