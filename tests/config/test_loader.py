from __future__ import annotations

import re
from pathlib import Path

import pytest

from sscl import cli, config
from sscl.config import (
    CompareConfig,
    EvalConfig,
    FinetuneConfig,
    GradcamConfig,
    PretrainConfig,
    ReportConfig,
    load_config,
    plain,
)
from sscl.config.sections import marked
from sscl.writing import to_yaml

NEEDED = ("run=r", "data.root=d")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault_of(*overrides: str, path: Path | None = None) -> str:
    """The one line about a configuration of pretrain."""
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, path, overrides=overrides)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run: a\nseed: 1\nrun: b\n", ["line 3", "'run'", "twice"]),
        ("run: a\ntrain: {epochs: 1, epochs: 2}\n", ["line 2", "'epochs'", "twice"]),
        ("[a, b]: 1\n", ["line 1", "a key must be a word"]),
        ("- a\n- b\n", ["`key: value`", "got a list"]),
        ("run: [a\n", ["not valid YAML"]),
        ("run: !!python/object:os.system {}\n", ["line 1", "tag !!python/object:os.system"]),
        ("1: a\nrun: r\ndata: {root: d}\n", ["1: unknown key", "run, seed"]),
    ],
)
def test_faults_of_the_file(tmp_path, text, words):
    path = write(tmp_path, text)
    line = fault_of(path=path)
    for word in [str(path), *words]:
        assert word in line


def test_files_that_are_no_text_or_not_there(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"run: \xff\xfe")
    with pytest.raises(ValueError, match=r"config\.yaml: not a text file in UTF-8"):
        load_config(PretrainConfig, path)
    for missing in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(FileNotFoundError, match=f"--config: .*{re.escape(str(missing))}"):
            load_config(PretrainConfig, missing)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "1.e-4", "0.0001", ".1e-3", "+1e-4"])
def test_numbers_with_exponents_are_numbers(tmp_path, text):
    path = write(tmp_path, f"run: r\ndata: {{root: d}}\ntrain: {{learning_rate: {text}}}\n")
    assert load_config(PretrainConfig, path).train.learning_rate == pytest.approx(1e-4)
    override = load_config(PretrainConfig, overrides=[*NEEDED, f"train.learning_rate={text}"])
    assert override.train.learning_rate == pytest.approx(1e-4)


def test_text_that_looks_like_an_exponent_only_when_quoted(tmp_path):
    path = write(tmp_path, "run: '1e-4'\ndata: {root: 1e-4x}\n")
    loaded = load_config(PretrainConfig, path)
    assert (loaded.run, loaded.data[0].root) == ("1e-4", "1e-4x")


def test_runs_may_be_named_after_a_date():
    assert load_config(PretrainConfig, overrides=["run=2026-07-01", "data.root=d"]).run == "2026-07-01"


def test_overrides_come_on_top_of_the_file(tmp_path):
    path = write(
        tmp_path,
        "run: r\ndata: {root: d, cache_dir: /c}\ntrain: {epochs: 3, batch_size: 8}\nmodel: {weights: imagenet}\n",
    )
    loaded = load_config(
        PretrainConfig,
        path,
        overrides=[
            "train.epochs=5",
            "train.epochs=6",
            "data.cache_dir=null",
            "model.weights=",
            "model.mean=[0.5, 0.5, 0.25]",
            "augment.crop_scale=[1,1]",
            "health={tiles: 9}",
            "log.progress=false",
            "data.root=a=b",
        ],
    )
    assert (loaded.train.epochs, loaded.train.batch_size) == (6, 8)
    assert loaded.data[0].cache_dir is None
    assert loaded.model.weights is None
    assert loaded.model.mean == (0.5, 0.5, 0.25)
    assert loaded.augment.crop_scale == (1, 1)
    assert (loaded.health.tiles, loaded.health.neighbours) == (9, 20)
    assert loaded.progress is False
    assert loaded.data[0].root == "a=b"
    assert load_config(GradcamConfig, overrides=["checkpoint=c", "ids=[a.png, b.png]"]).ids == ("a.png", "b.png")
    assert load_config(EvalConfig, overrides=["checkpoint=c", "data.root=x"]).data == {"root": "x"}


TEXTS = [
    "Case #2",
    "Tumor: H&E",
    "{a}",
    "[old] tiles",
    "2024",
    "1e3",
    "007",
    "no",
    "'quoted'",
    "a=b",
    " b",
    "- c",
    "é",
    "null",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_typed(text):
    """Through YAML, 'Case #2' would be Case, 2024 a number and 'no' false."""
    loaded = load_config(FinetuneConfig, overrides=[f"run={text}", f"data.root={text}"])
    assert (loaded.run, loaded.data.root) == (text, text)
    listed = load_config(PretrainConfig, overrides=["run=r", "data=[{root: a}, {root: b}]", f"data.1.root={text}"])
    assert listed.data[1].root == text
    changed = load_config(EvalConfig, overrides=["checkpoint=c", f"data.root={text}", "data.size_px=32"])
    assert changed.data == {"root": text, "size_px": 32}
    assert load_config(ReportConfig, overrides=["runs=[r]", f"gradcam.target={text}"]).gradcam == {"target": text}
    words = load_config(CompareConfig, overrides=["out=o", "runs=[]", f"set.data.root={text}"]).set
    assert load_config(FinetuneConfig, overrides=["run=r", *words]).data.root == text


def test_a_path_that_yaml_would_cut_is_refused(tmp_path):
    cut = "run: exp #2\ndata:\n- {root: a}\n- root: Case #3\n  source: folder #a comment\nseed: 1 #one\nfrom: w #4\n"
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, write(tmp_path, cut))
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["run", "data.1.root", "model.weights"]
    assert "'Case #3'" in lines[1]
    whole = write(tmp_path, "run: 'exp #2' # a comment\ndata: {root: Case#2} # one more\nseed: 1 #one\n")
    loaded = load_config(PretrainConfig, whole)
    assert (loaded.run, loaded.data[0].root) == ("exp #2", "Case#2")


def test_keys_that_may_be_null_are_null_where_null_or_nothing_is_typed():
    for text in ("null", ""):
        loaded = load_config(EvalConfig, overrides=["checkpoint=c", f"out={text}", f"positive={text}"])
        assert (loaded.out, loaded.positive) == (None, None)
    assert load_config(EvalConfig, overrides=["checkpoint=null"]).checkpoint == "null"
    assert "not empty" in fault_of(*NEEDED, "run=")


def test_a_list_of_texts_is_one_text_or_a_list_of_them():
    for word, ids in (("[001, 1e3, no]", ("001", "1e3", "no")), ("a #1", ("a #1",)), ("[x", ("[x",)), ("", ())):
        assert load_config(GradcamConfig, overrides=["checkpoint=c", f"ids={word}"]).ids == ids


def test_a_path_that_no_file_can_have_makes_one_line():
    assert len(fault_of(*NEEDED, "run=a\nb$NO_SUCH").splitlines()) == 1
    assert load_config(FinetuneConfig, overrides=["run=r", f"data.root={'x' * 300}"]).data.source == "auto"


def test_a_path_that_is_not_utf_8_makes_one_line():
    for told in (fault_of(*NEEDED, "run=a\udcff"), fault_of(*NEEDED, "data.reviews=[a\udcff.csv]")):
        assert len(told.splitlines()) == 1
        assert re.search(r"a\\xff.*: is not UTF-8", told)


def test_home_and_variables_are_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SETS", "/sets")
    monkeypatch.delenv("NO_SUCH", raising=False)
    path = write(
        tmp_path, "run: ~/x\ndata:\n- {root: $SETS/a, cache_dir: '${SETS}/c'}\n- {root: b}\nmodel: {weights: ~/w}\n"
    )
    loaded = load_config(PretrainConfig, path, overrides=["data.1.root=~"])
    assert (loaded.run, loaded.model.weights) == ("/home/me/x", "/home/me/w")
    assert [(source.root, source.cache_dir) for source in loaded.data] == [
        ("/sets/a", "/sets/c"),
        ("/home/me", "/sets/c"),
    ]
    assert load_config(EvalConfig, overrides=["checkpoint=c", "data.root=~/t"]).data == {"root": "/home/me/t"}
    assert load_config(ReportConfig, overrides=["runs=[~/a, b~]", "device=~"]).runs == ("/home/me/a", "b~")
    for word in ("run=$NO_SUCH/x", "run=~nobody-here/x"):
        line = fault_of("data.root=d", word)
        assert line.startswith(f"run: {word[4:]}: ")
        assert ("NO_SUCH" in line) or ("~nobody-here" in line)
    (tmp_path / "$NO_SUCH").mkdir()
    assert load_config(FinetuneConfig, overrides=["run=a$5", "data.root=$NO_SUCH"]).data.root == "$NO_SUCH"


def test_every_key_that_names_a_place_is_a_path():
    """By their names: what is written, read or cached."""
    places = {"run", "out", "root", "runs", "checkpoint", "cache_dir", "groups_csv", "weights", "images", "paths"}
    for command in cli.COMMANDS.values():
        for key, field in config.keys(getattr(config, command.config)).items():
            if key.split(".")[-1] in places and "str" in str(field.annotation):
                assert marked(field, "path"), key


def test_a_key_with_two_names_is_one(tmp_path):
    path = write(tmp_path, "run: r\ndata: {root: d}\nfrom: a\nlog: {progress: false}\n")
    loaded = load_config(FinetuneConfig, path)
    assert (loaded.model.weights, loaded.progress) == ("a", False)
    typed = load_config(FinetuneConfig, path, overrides=["from=b", "log.progress=true"])
    assert (typed.model.weights, typed.progress) == ("b", True)
    for words in (["from=a", "model.weights=b"], ["progress=true", "log.progress=false"]):
        line = fault_of(*NEEDED, *words)
        assert words[0].split("=")[0] in line
        assert words[1].split("=")[0] in line
    twice = write(tmp_path, "run: r\ndata: {root: d}\nfrom: a\nmodel: {weights: b}\n")
    assert fault_of(path=twice).startswith("from: ")
    with pytest.raises(ValueError, match="from: unknown key"):
        load_config(EvalConfig, overrides=["checkpoint=c", "from=a"])
    assert load_config(EvalConfig, overrides=["run=c"]).checkpoint == "c"


@pytest.mark.parametrize("text", ["train.epochs", "=3", ".epochs=3", "train.=3", "train..epochs=3", ""])
def test_malformed_overrides(text):
    line = fault_of(*NEEDED, text)
    assert line.startswith(f"argument {text!r}: ")
    assert "KEY=VALUE" in line


def test_override_below_a_value():
    line = fault_of("data=folder", "data.root=d")
    assert line.startswith("data.root: ")
    assert "'folder'" in line


def test_configurations_do_not_change():
    loaded = load_config(PretrainConfig, overrides=NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 7


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        (PretrainConfig, [*NEEDED, "train.learning_rate=3e-7", "model.mean=[0.1,0.2,0.3]", "data.tiles=7"]),
        (
            PretrainConfig,
            ["run=r", "data=[{root: a, size_px: 64, weight: 1e-1}, {root: 'b:c', source: pathmnist, weight: 2}]"],
        ),
        (
            FinetuneConfig,
            [*NEEDED, "data.root='1e5'", "train.loss=focal", "seed=9007199254740993", "data.cache_dir='7'"],
        ),
        (EvalConfig, ["checkpoint=c", "data.root=ä b", "data.size_px=32"]),
        (GradcamConfig, ["checkpoint=c", "ids=['1', 'no', a]", "threshold=0.30000000000000004"]),
    ],
)
def test_the_written_configuration_loads_again(tmp_path, kind, overrides):
    loaded = load_config(kind, overrides=overrides)
    path = write(tmp_path, to_yaml(plain(loaded)))
    assert load_config(kind, path) == loaded
    assert loaded != load_config(kind, overrides=NEEDED if "run=r" in overrides else ["checkpoint=c"])


def test_overrides_reach_into_lists(tmp_path):
    path = write(tmp_path, "run: r\ndata:\n- {root: a, size_px: 64}\n- {root: b}\n")
    words = ["data.1.root=c", "data.0.weight=1", "data.1.weight=2e0", "data.0.size_px=32"]
    loaded = load_config(PretrainConfig, path, overrides=words)
    assert [(source.root, source.weight, source.size_px) for source in loaded.data] == [("a", 1, 32), ("c", 2, 32)]
    replaced = load_config(PretrainConfig, path, overrides=["data.1={root: d}"])
    assert [source.root for source in replaced.data] == ["a", "d"]
    assert [source.size_px for source in replaced.data] == [64, 64]
    alone = load_config(PretrainConfig, path, overrides=["data={root: e}"])
    assert [source.root for source in alone.data] == ["e"]
    for word, hint in (
        ("data.root=c", "data.0.root="),
        ("data.2.root=c", "0 to 1"),
        ("data.2=c", "0 to 1"),
        ("data.0.root.x=c", "'a'"),
    ):
        line = fault_of(word, path=path)
        assert line.startswith(f"{word.partition('=')[0]}: ")
        assert hint in line
    assert "empty" in fault_of("run=r", "data=[]", "data.0.root=a")


def test_what_all_sources_share_is_the_first_s():
    words = ["run=r", "data=[{root: a, cache_dir: /c, size_px: 64}, {root: b, size_px: 64}, {root: c}]"]
    loaded = load_config(PretrainConfig, overrides=words)
    assert [(source.size_px, source.cache_dir) for source in loaded.data] == [(64, "/c")] * 3
    same = PretrainConfig(run="r", data=[config.SourceConfig(root="a"), config.SourceConfig(root="b")])
    assert [source.root for source in same.data] == ["a", "b"]
    for key, value in (("size_px", 32), ("cache_dir", "/d"), ("device_budget_gb", 1.0)):
        line = fault_of("run=r", f"data=[{{root: a}}, {{root: b, {key}: {value}}}]")
        assert line.startswith(f"data.1.{key}: ")
        assert f"got {value}" in line


# --- a run that goes on ---


def test_a_run_that_goes_on_brings_its_own_keys(tmp_path: Path) -> None:
    data = "data: [{source: folder, root: old/tiles, groups_csv: old/tiles/groups.csv}]"
    write(tmp_path, f"run: elsewhere\nseed: 4\n{data}\ntrain: {{epochs: 7, stop_after_epoch: 2}}\n")

    def resumed(*words: str | tuple[str, object]) -> PretrainConfig:
        return load_config(PretrainConfig, overrides=words, resume=True)

    found = resumed(("run", str(tmp_path)), "device=cpu")
    assert (found.run, found.seed, found.device, found.train.epochs) == (str(tmp_path), 4, "cpu", 7)
    assert found.train.stop_after_epoch is None  # that stop has been made
    assert resumed(f"run={tmp_path}", "train.stop_after_epoch=3").train.stop_after_epoch == 3
    moved = resumed(f"run={tmp_path}", "data.root=new").data[0]
    assert (moved.root, moved.groups_csv) == ("new", "new/groups.csv")
    other = resumed(f"run={tmp_path}", "data.root=new", "data.groups_csv=g.csv").data[0]
    assert (other.root, other.groups_csv) == ("new", "g.csv")
    with pytest.raises(ValueError, match="run: missing"):
        resumed("seed=3")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        resumed(f"run={tmp_path / 'none'}")
    write(tmp_path, "run: r\ncontrast: {kind: none}\n")
    with pytest.raises(ValueError, match=r"another command .*contrast"):
        resumed(f"run={tmp_path}")
