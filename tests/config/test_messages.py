from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import ValidationError

from sscl import cli, config
from sscl.config import PretrainConfig, load_config
from sscl.config.messages import MESSAGES, explain
from sscl.config.sections import Section

COMPLETE = ["run=r", "data.root=d"]
# Settings for which validation needs nothing else.
NEEDED = {
    "PretrainConfig": COMPLETE,
    "FinetuneConfig": COMPLETE,
    "ExportConfig": ["checkpoint=c"],
    "PredictConfig": ["checkpoint=c", "paths=[p]"],
    "EmbedConfig": ["out=o", "data.root=d"],
    "ReportConfig": ["runs=[r]"],
    "GradcamConfig": ["checkpoint=c"],
    "CompareConfig": ["out=o"],
    "ProbeConfig": ["out=o", "encoders=[{name: a}]", "sets=[{name: s, root: d}]"],
    "EvalConfig": ["checkpoint=c"],
}


def refused(kind: type[Section], *overrides: str) -> list[str]:
    with pytest.raises(ValueError) as caught:
        load_config(kind, overrides=[*NEEDED[kind.__name__], *overrides])
    return str(caught.value).splitlines()


# One wrong setting, the key that the line must begin with, and words that must be in it.
FAULTS = [
    # unknown keys: the nearest one in the section, else where such a key is, else all of the section
    (PretrainConfig, "train.epoch=3", "train.epoch", ["did you mean train.epochs?"]),
    (PretrainConfig, "trian.epochs=3", "trian", ["did you mean train?"]),
    (PretrainConfig, "epochs=3", "epochs", ["did you mean train.epochs?"]),
    (PretrainConfig, "log.colour=red", "log.colour", ["allowed are tensorboard, wandb"]),
    (PretrainConfig, "data.rot=d", "data.rot", ["did you mean data.root?"]),
    (PretrainConfig, "projection.hiden=3", "projection.hiden", ["did you mean projection.hidden?"]),
    (PretrainConfig, "temprature=3", "temprature", ["did you mean train.temperature?"]),
    (PretrainConfig, "data.epochs=3", "data.epochs", ["did you mean train.epochs?"]),
    # wrong types
    (PretrainConfig, "train.epochs=2.5", "train.epochs", ["an integer", "got 2.5"]),
    (PretrainConfig, "train.epochs=ten", "train.epochs", ["an integer", "got 'ten'"]),
    (PretrainConfig, "train.epochs=true", "train.epochs", ["an integer", "got true"]),
    (PretrainConfig, "train.epochs=", "train.epochs", ["an integer", "got null"]),
    (PretrainConfig, "train.epochs.x=3", "train.epochs", ["an integer", "got a mapping"]),
    (PretrainConfig, "data.published=maybe", "data.published", ["true or false", "got 'maybe'"]),
    (config.CompareConfig, "finished=[a, [b]]", "finished.1", ["text", "got [b]"]),
    (config.CompareConfig, "finished=[a, Tumor: b]", "finished.1", ["text", "got a mapping", "quote", "'A: B'"]),
    (PretrainConfig, "train=3", "train", ["mapping", "`train: {...}`", "got 3"]),
    (PretrainConfig, "augment.crop_scale=0.5", "augment.crop_scale", ["list of 2 numbers", "got 0.5"]),
    (PretrainConfig, "augment.crop_scale=[0.5]", "augment.crop_scale", ["list of 2 numbers", "got [0.5]"]),
    (PretrainConfig, "augment.scale=[1,2,3]", "augment.scale", ["list of 2 numbers", "got [1, 2, 3]"]),
    (PretrainConfig, "model.mean=[0.5,0.5]", "model.mean", ["list of 3 numbers", "got [0.5, 0.5]"]),
    (PretrainConfig, "model.mean=[a,0.5,0.5]", "model.mean.0", ["a number", "got 'a'"]),
    (config.ProbeConfig, "c_grid=1", "c_grid", ["a list", "got 1"]),
    (config.ReportConfig, "gradcam=3", "gradcam", ["mapping", "got 3"]),
    (config.PredictConfig, "panels=some", "panels", ["true, false", "got 'some'"]),
    (config.PredictConfig, "paths=[]", "paths", ["at least 1"]),
    # impossible values, with all bounds
    (PretrainConfig, "data.size_px=8", "data.size_px", [">= 16 and <= 1024", "got 8"]),
    (PretrainConfig, "data.size_px=2048", "data.size_px", [">= 16 and <= 1024", "got 2048"]),
    (PretrainConfig, "train.momentum=1", "train.momentum", [">= 0 and < 1", "got 1"]),
    (PretrainConfig, "train.learning_rate=0", "train.learning_rate", ["> 0", "got 0"]),
    (PretrainConfig, "train.learning_rate=.nan", "train.learning_rate", ["finite", "got nan"]),
    (PretrainConfig, "seed=9223372036854775808", "seed", [">= 0 and < 9223372036854775808"]),
    (PretrainConfig, "run=", "run", ["not empty", "got ''"]),
    (PretrainConfig, "augment.crop_scale=[0.5,2]", "augment.crop_scale.1", [">= 0.0001 and <= 1", "got 2"]),
    (PretrainConfig, "augment.crop_ratio=[0,1]", "augment.crop_ratio.0", [">= 0.01 and <= 100", "got 0"]),
    (PretrainConfig, "augment.scale=[1.1,0.9]", "augment.scale", ["lowest <= highest", "got [1.1, 0.9]"]),
    (PretrainConfig, "augment.blur_sigma_px=[-1,1e9]", "augment.blur_sigma_px.1", ["<= 100", "got 1e+09"]),
    (PretrainConfig, "model.std=[0.2,0,0.2]", "model.std.1", [">= 0.001 and <= 10", "got 0"]),
    (config.ExportConfig, "std=[0.2,0,0.2]", "std.1", [">= 0.001 and <= 10", "got 0"]),
    (config.EmbedConfig, "encoder.std=[0.2,-1,0.2]", "encoder.std.1", [">= 0.001 and <= 10"]),
    # words
    (PretrainConfig, "train.optimizer=adam", "train.optimizer", ["sgd, lars or adamw", "got 'adam'", "mean adamw?"]),
    (PretrainConfig, "model.stem=tiny", "model.stem", ["standard or small", "got 'tiny'"]),
    (PretrainConfig, "model.output_stride=8", "model.output_stride", ["32 or 16", "got 8"]),
    (PretrainConfig, "model.name=resnet5", "model.name", ["resnet18", "timm:NAME", "got 'resnet5'", "mean resnet50?"]),
    (config.EmbedConfig, "methods=[pca, lda]", "methods", ["pca, tsne, umap", "got [pca, lda]"]),
    (config.EmbedConfig, "methods=lda", "methods", ["pca, tsne, umap", "got [lda]"]),
    # one key against another
    (PretrainConfig, "data=[{root: a}, {root: b, size_px: 32}]", "data.1.size_px", ["must be 224", "got 32"]),
    (PretrainConfig, "data=[{root: a, weight: 1}, {root: b}]", "data.1.weight", ["missing"]),
    (PretrainConfig, "data=[{root: a, weight: 0}, {root: b, weight: 0}]", "data", ["sum to 0"]),
    (PretrainConfig, "data=[a]", "data", ["mapping"]),
    (config.FinetuneConfig, "train.fold=2", "train.fold", ["got 2", "train.folds"]),
    (config.FinetuneConfig, "train={fold: 3, folds: 2}", "train.fold", ["<= 2", "got 3"]),
    (config.ProbeConfig, "fractions=[0]", "fractions.0", ["> 0 and <= 1", "got 0"]),
    (config.ProbeConfig, "fractions=0.1", "fractions", ["a list", "got 0.1"]),
    (config.ProbeConfig, "encoders=[{name: a, seeds: [1, 1]}]", "encoders.0.seeds", ["different", "got [1, 1]"]),
    (config.ProbeConfig, "encoders=[]", "encoders", ["at least 1"]),
    (config.ProbeConfig, "reference=b", "reference", ["'b'", "allowed are a"]),
    (config.ReportConfig, "gradcam={methd: a}", "gradcam.methd", ["did you mean method?"]),
    (config.ReportConfig, "out=page", "out", [".html", "got 'page'"]),
    (config.CompareConfig, "runs=[{name: a}]", "runs.0.command", ["missing"]),
    (config.CompareConfig, "finished=[a]", "finished", ["two or more", "got [a]"]),
    (
        config.CompareConfig,
        "runs=[{name: a, command: pretrain, config: c, published: {accuracy: good}}]",
        "runs.0.published.accuracy",
        ["a number", "got 'good'"],
    ),
]


@pytest.mark.parametrize(("kind", "override", "key", "words"), FAULTS, ids=[fault[1] for fault in FAULTS])
def test_one_line_names_the_key_and_the_value(kind, override, key, words):
    lines = [line for line in refused(kind, override) if line.startswith(f"{key}: ")]
    assert len(lines) == 1, refused(kind, override)
    assert lines[0].endswith(" (command line)")
    for word in words:
        assert word in lines[0]


def all_kinds() -> Iterator[type[Section]]:
    for command in cli.COMMANDS.values():
        yield getattr(config, command.config)


def possible(annotation: Any) -> set[str]:
    """Names of the faults that pydantic can find in a value of this type."""
    if annotation in (bool, int, float, str):
        own = {bool: "bool_type", int: "int_type", float: "float_type", str: "string_type"}[annotation]
        return {own, "finite_number"} if annotation is float else {own}
    if annotation is object or annotation is type(None) or annotation is Ellipsis:
        return set()
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*map(possible, inner))
    if origin is tuple:
        fixed = set() if Ellipsis in inner else {"missing", "too_long"}
        return {"tuple_type", *fixed}.union(*map(possible, inner))
    if origin is Annotated:
        return possible(inner[0]) | {"value_error"}
    if origin is dict:
        return {"dict_type"}.union(*map(possible, inner))
    if getattr(origin, "__name__", str(origin)) == "Literal":
        return {"literal_error"}
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section):
        return possible_in(annotation)
    raise AssertionError(f"{annotation}: say which faults it can have")


BOUNDS = {"gt": "greater_than", "ge": "greater_than_equal", "lt": "less_than", "le": "less_than_equal"}


def possible_in(kind: type[Section]) -> set[str]:
    found = {"model_type", "extra_forbidden", "invalid_key", "missing"}
    for field in kind.model_fields.values():
        found |= possible(field.annotation)
        for mark in field.metadata:
            found |= {name for bound, name in BOUNDS.items() if hasattr(mark, bound)}
            if hasattr(mark, "min_length"):
                found.add("string_too_short" if field.annotation in (str, str | None) else "too_short")
            if type(mark).__name__ in ("BeforeValidator", "AfterValidator"):
                found.add("value_error")
    return found


def test_every_fault_that_pydantic_can_find_has_a_message():
    found = set().union(*map(possible_in, all_kinds()))
    assert found | {"setting"} == set(MESSAGES)


def test_every_message_is_provoked(monkeypatch):
    met = set()

    def meet(name, of):
        def message(fault):
            met.add(name)
            return of(fault)

        return message

    for name, of in list(MESSAGES.items()):
        monkeypatch.setitem(MESSAGES, name, meet(name, of))
    for kind, override, _, _ in FAULTS:
        refused(kind, override)
    with pytest.raises(ValidationError) as caught:
        PretrainConfig.model_validate({1: "a"})
    assert any(line.startswith("1: unknown key") for line in explain(PretrainConfig, caught.value, {1: "a"}))
    assert met == set(MESSAGES)


def test_a_fault_without_a_message_has_pydantic_s(monkeypatch):
    monkeypatch.delitem(MESSAGES, "int_type")
    (line,) = refused(PretrainConfig, "train.epochs=ten")
    assert line.startswith("train.epochs: ")
    assert "valid integer" in line
    assert "got 'ten'" in line


def test_long_values_are_cut():
    (line,) = refused(PretrainConfig, f"train.epochs={'x' * 500}")
    assert len(line) < 120


def test_missing_keys_are_all_named():
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig)
    lines = str(caught.value).splitlines()
    assert [line.partition(": missing; ")[0] for line in lines] == ["run", "data.root"]
    assert "data.root=VALUE" in lines[1]


def test_all_faults_come_at_once_and_name_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "data: {root: d}\ntrain: {epoch: 1, epochs: 0, learning_rate: x}\nmodel: {name: resnet5}\nmodle: 1\n"
    )
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, path)
    lines = str(caught.value).splitlines()
    assert all(line.endswith(f" ({path})") for line in lines)
    faulty = ["run", "train.epoch", "train.epochs", "train.learning_rate", "model.name", "modle"]
    assert sorted(line.partition(":")[0] for line in lines) == sorted(faulty)
