"""A checkpoint comes back as it was; a file with a field missing or wrong is refused by that field's name."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sscl.config import DataConfig, FinetuneConfig, PretrainConfig, SourceConfig, plain
from sscl.models.calibration import KeptCalibration
from sscl.models.checkpoint import (
    CHECKPOINT_FORMAT,
    Checkpoint,
    build_checkpoint,
    load_checkpoint,
    run_of,
    save_checkpoint,
)
from sscl.models.torch_files import read_torch_file

ENCODER = {"conv1.weight": torch.arange(6.0).reshape(2, 3), "bn1.num_batches_tracked": torch.tensor(7)}
KEPT = KeptCalibration(
    temperature=1.5,
    threshold=0.4,
    positive="SSA",
    tiles=2,
    method="m",
    ece_before=0.2,
    ece_after=0.1,
    precision="bf16",
    logits=torch.tensor([[0.5, 1], [2, 0]]),
    labels=torch.tensor([1, 0]),
)
SECTIONS = [
    {"root": "first", "source": "folder", "split_seed": 3, "weight": 0.75},
    {"root": "second", "weight": 0.25, "tiles": 9},
]


def made(kind: str = "pretrain", *, epoch: int = 3) -> Checkpoint:
    model = {"name": "resnet18", "stem": "small", "output_stride": 16}
    config: Any = (
        PretrainConfig(run="r", data=SECTIONS, model=model, train={"epochs": 7})
        if kind == "pretrain"
        else FinetuneConfig(run="r", data={"root": "first"}, model=model)
    )
    blank = build_checkpoint(
        config,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        pooling="mean",
        classes=("HP", "SSA"),
        lineage=[DataConfig(root="before"), SourceConfig(root="with weight", weight=0.5)],
        fingerprint="f",
        precision="bf16",
    )
    if kind == "finetune":
        head = {"weight": torch.ones(2, 3)}
        return replace(blank, epoch=epoch, encoder=ENCODER, head=head, validation={"loss": 0.5}, calibration=KEPT)
    momentum = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return replace(blank, epoch=epoch, encoder=ENCODER, model={"w": torch.ones(1)}, optimizer=momentum)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (Checkpoint, KeptCalibration)):
        return type(a) is type(b) and same(vars(a), vars(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_checkpoint_comes_back_from_its_file_or_its_run_folder(kind: Any, tmp_path: Path) -> None:
    before, path = made(kind), tmp_path / "run" / "checkpoints" / "last.pt"
    save_checkpoint(path, before)
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["last.pt"]
    for given in (path, tmp_path / "run", str(tmp_path / "run")):
        assert same(load_checkpoint(given, kind=kind), before)
        assert run_of(str(given)) == tmp_path / "run"
    facts = load_checkpoint(path, tensors=False)
    assert facts.encoder == facts.head == facts.model == facts.optimizer == {}
    assert (facts.epoch, facts.size_px, facts.output_stride) == (3, 224, 16)
    assert facts.calibration is None or same(facts.calibration, KEPT)


def test_the_file_holds_plain_containers_and_nothing_of_the_other_command() -> None:
    content = made("finetune").to_dict()
    assert content["format"] == CHECKPOINT_FORMAT
    assert content["config"] == plain(made("finetune").config)
    assert content["mean"] == [0.1, 0.2, 0.3]
    assert content.keys() & {"model", "optimizer", "scaler"} == set()
    assert made("pretrain").to_dict().keys() & {"head", "validation", "calibration"} == set()


def test_what_it_was_trained_on_ends_with_its_own_sections() -> None:
    assert [data.root for data in made("pretrain").trained_on] == ["before", "with weight", "first", "second"]
    assert [data.root for data in made("finetune").trained_on] == ["before", "with weight", "first"]


def test_a_run_folder_stands_for_its_best_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", made(epoch=9))
    assert load_checkpoint(tmp_path).epoch == 9
    save_checkpoint(tmp_path / "checkpoints" / "best.pt", made(epoch=5))
    assert load_checkpoint(tmp_path).epoch == 5
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt").epoch == 9


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_missing_field_is_named(kind: Any, tmp_path: Path) -> None:
    content = made(kind).to_dict()
    for name in content.keys() - {"format", "kind"}:
        torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "last.pt")
        with pytest.raises(ValueError, match=rf"last\.pt: {name}: missing; .*train again$"):
            load_checkpoint(tmp_path / "last.pt")


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epoch": "three"}, "epoch"),
        ({"mean": [0.1, "x"]}, r"mean\.1"),
        ({"output_stride": 8}, "output_stride"),
        ({"pooling": "max"}, "pooling"),
        ({"encoder": {"w": 1.0}}, r"encoder\.w"),
        ({"kind": "probe"}, "kind: got 'probe'"),
        ({"unknown": 1}, "unknown"),
        ({"config": {"run": "r", "data": {"rooot": "d"}}}, r"config\.data"),
        ({"lineage": [{"rooot": "d"}]}, r"lineage\.0"),
        ({"calibration": {"temperature": 1.0}}, r"calibration\.threshold"),
        ({"epoch": True}, "epoch"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": 2**70}, "epoch"),
        ({"epoch": torch.tensor(3)}, "epoch"),
        ({"encoder_name": "resnet17"}, "encoder_name"),
        ({"encoder_name": 5}, "encoder_name"),
        ({"stem": ["standard"]}, "stem"),
        ({"size_px": -1}, "size_px"),
        ({"size_px": 10**9}, "size_px"),
        ({"size_px": "224"}, "size_px"),
        ({"mpp": "0.5"}, "mpp"),
        ({"mpp": math.nan}, "mpp is nan"),
        ({"source_px": [0]}, r"source_px\.0"),
        ({"mean": "abc"}, "mean"),
        ({"mean": ["a", "b", "c"]}, r"mean\.0"),
        ({"mean": [0.1, 0.2]}, "mean"),
        ({"mean": torch.zeros(3)}, "mean"),
        ({"mean": [0.1, math.nan, 0.2]}, r"mean\.1 is nan"),
        ({"std": [0.1, 0.0, 0.2]}, r"std\.1"),
        ({"classes": "HP"}, "classes"),
        ({"classes": []}, "classes"),
        ({"classes": ["HP", "HP"]}, "classes: 'HP'"),
        ({"classes": ["HP", ""]}, r"classes\.1"),
        ({"classes": ["A", "B", "C"]}, "head: .* 3 classes"),
        ({"classes": {"A": 1}}, "classes"),
        ({"config": "run: r"}, "config: must be a mapping"),
        ({"config": torch.zeros(2)}, "config: must be a mapping"),
        ({"config": {}}, r"config\.run: missing"),
        ({"fingerprint": b"f"}, "fingerprint"),
        ({"fingerprint": "x" * 2**21}, "fingerprint is a text of"),
        ({"precision": "fp8"}, "precision"),
        ({"lineage": {"root": "d"}}, "lineage"),
        ({"lineage": ["d"]}, r"lineage\.0"),
        ({"validation": [0.5]}, "validation"),
        ({"validation": {"loss": math.inf}}, r"validation\.loss is inf"),
        ({"calibration": "warm"}, "calibration"),
        ({"calibration": KEPT.to_dict() | {"temperature": 0.0}}, r"calibration\.temperature"),
        ({"calibration": KEPT.to_dict() | {"temperature": "warm"}}, r"calibration\.temperature"),
        ({"calibration": KEPT.to_dict() | {"positive": "C"}}, r"calibration\.positive"),
        ({"calibration": KEPT.to_dict() | {"tiles": 3}}, r"calibration\.logits"),
        ({"calibration": KEPT.to_dict() | {"labels": torch.tensor([1, 2])}}, r"calibration\.labels"),
        ({"calibration": KEPT.to_dict() | {"labels": torch.tensor([1.0, 0.0])}}, r"calibration\.labels"),
        ({"head": {}}, "head"),
        ({"encoder": torch.zeros(3)}, "encoder"),
        ({"encoder": {1: torch.zeros(3)}}, "encoder"),
        ({"encoder": {"w": torch.zeros(2, 2).to_sparse()}}, r"encoder\.w is sparse"),
        ({"encoder": {"w": torch.zeros(2, device="meta")}}, r"encoder\.w has no values"),
        ({"encoder": {"w": torch.zeros(2, dtype=torch.complex64)}}, r"encoder\.w holds torch\.complex64"),
        ({"encoder": {"w": torch.zeros(1).expand(10**12)}}, r"encoder\.w repeats"),
        ({"encoder": {"w": torch.tensor([1, math.nan])}}, r"encoder\.w holds 1 of 2 numbers"),
        ({"optimizer": {"state": {0: {"m": torch.tensor([math.inf])}}}}, r"optimizer\.state\.0\.m holds 1 of 1"),
        ({"a\nb": 1}, r"a\\nb"),
        ({"unknown": ENDLESS}, "unknown.*within each other"),
        ({"format": "sscl checkpoint 1"}, "format: got 'sscl checkpoint 1', expected 'sscl checkpoint 2'"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    torch.save(made("finetune").to_dict() | changes, tmp_path / "best.pt")
    with pytest.raises(ValueError, match=rf"best\.pt: .*{named}") as caught:
        load_checkpoint(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


def test_lists_within_lists_are_refused_in_one_line(tmp_path: Path) -> None:
    """More of them than pickle itself would write."""
    torch.save(made("finetune").to_dict() | {"unknown": "here"}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "best.pt", "w") as best:
        for name in plain.namelist():
            content = plain.read(name)
            if name.endswith("data.pkl"):
                text = b"X\x04\x00\x00\x00here"
                assert content.count(text) == 1
                content = content.replace(text, b"]" * 3000 + b"a" * 2999)  # lists, then each into the one before
            best.writestr(name, content)
    with pytest.raises(ValueError, match=r"best\.pt: not a readable checkpoint .*within each other") as caught:
        load_checkpoint(tmp_path / "best.pt")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_other_command_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", made("pretrain"))
    with pytest.raises(ValueError, match=r"last\.pt: .*sscl pretrain.*sscl finetune"):
        load_checkpoint(tmp_path / "last.pt", kind="finetune")


def test_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none: no such run folder or checkpoint file"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/best.pt or last.pt"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 0.99])
def test_truncated_checkpoints(fraction: float, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, made())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(ValueError, match=r"last\.pt: not a readable checkpoint .*truncated") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


class Harmful:
    """What unpickling must never run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm-was-done"),))


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "other.pt"
    for write in (
        lambda: path.write_text("hello"),
        lambda: path.write_bytes(pickle.dumps(Harmful(), protocol=2)),
        lambda: torch.save(Harmful(), path),
        lambda: torch.save({"format": CHECKPOINT_FORMAT, "kind": Harmful()}, path),
    ):
        write()
        with pytest.raises(ValueError, match=r"other\.pt: not a readable checkpoint"):
            load_checkpoint(path)
    assert not Path("harm-was-done").exists()
    for content in ([torch.ones(2)], {"conv1.weight": torch.ones(2)}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"other\.pt: not an sscl checkpoint"):
            load_checkpoint(path)


@pytest.mark.parametrize("change", ["compressed", "larger", "fewer", "legacy cut"])
def test_archives_that_are_not_what_they_say(change: str, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    if change == "legacy cut":
        torch.save(made("finetune").to_dict(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        content = made("finetune").to_dict() | {"encoder": {"w": torch.zeros(2**23)}}
        torch.save(content if change == "compressed" else made("finetune").to_dict(), path)
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
        if change == "fewer":
            del parts["best/data/0"]
        if change == "larger":  # the pickle says that a tensor has more numbers than the part
            parts["best/data.pkl"] = parts["best/data.pkl"].replace(b"K\x06t", b"J\xff\xff\xff\x7ft")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED) as to:
            for name, part in parts.items():
                to.writestr(name, part)
    with pytest.raises(ValueError, match=r"best\.pt: not a readable checkpoint") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(FileNotFoundError, match=path.name):
            load_checkpoint(path)


def test_no_number_that_is_none_is_written(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, made())
    before = path.read_bytes()
    for changes in (
        {"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([1.0, math.inf])}}, "param_groups": []}},
        {"model": {"w": torch.tensor([math.nan])}},
    ):
        with pytest.raises(ValueError, match=r"last\.pt: not written after epoch 4: .* numbers that are NaN"):
            save_checkpoint(path, replace(made(epoch=4), **changes))
    large = replace(made(epoch=4), model={"w": torch.full((4,), 3e38)})  # whose sum is infinite
    assert path.read_bytes() == before
    save_checkpoint(path, large)
    assert load_checkpoint(path).epoch == 4


def test_facts_are_read_without_the_numbers_of_the_weights(tmp_path: Path) -> None:
    torch.save(made("finetune").to_dict(), tmp_path / "best.pt")
    whole, facts = load_checkpoint(tmp_path / "best.pt"), load_checkpoint(tmp_path / "best.pt", tensors=False)
    assert whole.encoder
    assert not facts.encoder
    assert not facts.head
    assert facts.config == whole.config
    assert facts.calibration is not None
    assert whole.calibration is not None
    assert torch.equal(facts.calibration.logits, whole.calibration.logits)
    size = (tmp_path / "best.pt").stat().st_size
    data = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(data[: size // 2])
    with pytest.raises(ValueError, match=r"best\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "best.pt", tensors=False)
    broken = {"encoder": {"w": torch.tensor([1, math.nan])}}
    torch.save(made("finetune").to_dict() | broken, tmp_path / "nan.pt")
    assert not load_checkpoint(tmp_path / "nan.pt", tensors=False).encoder  # its numbers stay on disk


def test_a_file_of_others_may_hold_many_values(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(2)}, "names": list(range(150_000))}, tmp_path / "a.pt")
    assert len(read_torch_file(tmp_path / "a.pt")["names"]) == 150_000
