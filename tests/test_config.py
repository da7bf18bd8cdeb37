from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic_core import PydanticUndefined

from sscl import cli, config
from sscl.augment import Augmentation
from sscl.config import EvalConfig, FinetuneConfig, GradcamConfig, PretrainConfig, load_config, plain, training
from sscl.writing import to_yaml

CONFIGS = Path(__file__).parents[1] / "configs"
NEEDED = ("run=r", "data.root=d")
# What a shipped file is for, by its name.
COMMAND_OF = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "scratch": "finetune",
    "baseline": "finetune",
    "finetuned": "finetune",
    "finetune_nuclei": "finetune",
    "labels_nuclei": "compare",
    "ssl_joint": "finetune",
    "ssl": "pretrain",
    "eval": "eval",
    "gradcam": "gradcam",
    "audit": "data audit",
    "report": "report",
    "probe": "probe",
    "probe_nuclei": "probe",
    "pretrain_imagenet": "pretrain",
    "pretrain_nuclei": "pretrain",
    "synth": "data synth",
    "inspect": "data inspect",
    "compare": "compare",
    "labels": "compare",
}


def fault_of(*overrides: str, kind: Any = PretrainConfig, needed: tuple[str, ...] = NEEDED) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(kind, overrides=[*needed, *overrides])
    return str(caught.value)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # unknown keys, with the nearest or the place where such a key lives
        ("train.epoch=3", "train.epoch: unknown key; did you mean train.epochs?"),
        ("trian.epochs=3", "trian: unknown key; did you mean train?"),
        ("epochs=3", "epochs: unknown key; did you mean train.epochs?"),
        ("log.colour=red", "log.colour: unknown key; allowed are tensorboard, progress"),
        # wrong types
        ("train.epochs=2.5", "train.epochs: got 2.5, allowed is a valid integer"),
        ("train.epochs=ten", "train.epochs: got 'ten', allowed is a valid integer"),
        ("train.epochs=true", "train.epochs: got true, allowed is a valid integer"),
        ("train.epochs=", "train.epochs: got null, allowed is a valid integer"),
        ("train.epochs.x=3", "train.epochs: got a mapping, allowed is a valid integer"),
        ("data.published=maybe", "data.published: got 'maybe', allowed is a valid boolean"),
        ("run=7", "run: got 7, allowed is text; if that is meant, quote it within the value: \"'...'\""),
        ("train=3", "train: got 3, expected keys below it (`train: {...}`)"),
        ("augment.crop_scale=0.5", "augment.crop_scale: got 0.5, allowed is a list of 2 numbers"),
        ("augment.crop_scale=[0.5]", "augment.crop_scale: got [0.5], allowed is a list of 2 numbers"),
        ("augment.scale=[1,2,3]", "augment.scale: got [1, 2, 3], allowed is a list of 2 numbers"),
        ("model.mean=[0.5,0.5]", "model.mean: got [0.5, 0.5], allowed is a list of 3 numbers"),
        ("model.mean=[a,0.5,0.5]", "model.mean.0: got 'a', allowed is a valid number"),
        # impossible values, with both bounds
        ("data.size_px=8", "data.size_px: got 8, allowed is >= 16 and <= 1024"),
        ("train.momentum=1", "train.momentum: got 1, allowed is >= 0 and < 1"),
        ("train.learning_rate=0", "train.learning_rate: got 0, allowed is > 0"),
        ("train.learning_rate=.nan", "train.learning_rate: got nan, allowed is a finite number"),
        ("seed=9223372036854775808", "seed: got 9223372036854775808, allowed is >= 0 and < 9223372036854775808"),
        ('run=""', "run: got '', allowed is a name that is not empty"),
        ("augment.crop_scale=[0.5,2]", "augment.crop_scale: got [0.5, 2.0], allowed is 0 < lowest <= highest <= 1"),
        ("augment.crop_ratio=[0,1]", "augment.crop_ratio: got [0.0, 1.0], allowed is 0 < lowest <= highest"),
        (
            "augment.scale=[1.1,0.9]",
            "augment.scale: got [1.1, 0.9]; the first number is above the second; allowed is [lowest, highest]",
        ),
        (
            "augment.blur_sigma_px=[-1,1]",
            "augment.blur_sigma_px: got [-1, 1]; a bound is negative; allowed is 0 <= lowest <= highest",
        ),
        ("model.std=[0.2,0,0.2]", "model.std: got [0.2, 0, 0.2]; allowed are three numbers > 0"),
        # literals
        (
            "train.optimizer=adam",
            "train.optimizer: got 'adam', allowed are 'sgd', 'lars', 'adamw'; did you mean adamw?",
        ),
        ("model.stem=tiny", "model.stem: got 'tiny', allowed are 'standard', 'small'"),
    ],
)
def test_one_line_a_fault(override, message):
    assert fault_of(override) == f"{message} (command line)"


@pytest.mark.parametrize(
    ("kind", "override", "message"),
    [
        ("export", "std=[0.2,0,0.2]", "std: got [0.2, 0, 0.2]; allowed are three numbers > 0"),
        ("embed", "encoder.std=[0.2,-1,0.2]", "encoder.std: got [0.2, -1, 0.2]; allowed are three numbers > 0"),
        ("embed", "methods=pca", "methods: got 'pca', allowed is a list, [a, b, ...]"),
        ("probe", "fractions=0.1", "fractions: got 0.1, allowed is a list, [a, b, ...]"),
        ("probe", "c_grid=1", "c_grid: got 1, allowed is a list, [a, b, ...]"),
    ],
)
def test_one_line_a_fault_of_the_other_commands(kind, override, message):
    with pytest.raises(ValueError) as fault:
        load_config(getattr(config, cli.COMMANDS[kind].config), overrides=[override])
    assert f"{message} (command line)" in str(fault.value).splitlines()


def test_missing_keys_are_all_named():
    faults = fault_of(needed=()).splitlines()
    assert faults == [
        "run: missing; give it in the YAML file or as run=VALUE (command line)",
        "data.root: missing; give it in the YAML file or as data.root=VALUE (command line)",
    ]


def test_all_faults_come_at_once_and_name_the_file(tmp_path):
    path = write(
        tmp_path, "data: {root: d}\ntrain: {epoch: 1, epochs: 0, learning_rate: x}\nmodel: {name: resnet5}\nmodle: 1\n"
    )
    with pytest.raises(ValueError) as caught:
        load_config(PretrainConfig, path)
    assert sorted(str(caught.value).splitlines()) == sorted(
        f"{line} ({path})"
        for line in (
            "run: missing; give it in the YAML file or as run=VALUE",
            "train.epoch: unknown key; did you mean train.epochs?",
            "train.epochs: got 0, allowed is >= 1",
            "train.learning_rate: got 'x', allowed is a valid number",
            "model.name: got 'resnet5'; did you mean resnet50 or resnet34? allowed are resnet18, resnet34, resnet50, "
            "resnet101, resnet18_pathmnist, efficientnet_lite0, timm:NAME",
            "modle: unknown key; did you mean model?",
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: a\nseed: 1\nrun: b\n", "line 3: key 'run' is given twice"),
        ("run: a\ntrain: {epochs: 1, epochs: 2}\n", "line 2: key 'epochs' is given twice"),
        ("[a, b]: 1\n", "line 1: a key must be a plain word, not a list or mapping"),
        ("- a\n- b\n", "expected keys and values (`key: value`), got a list"),
        ("run: [a\n", "not valid YAML: "),
        ("run: !!python/object:os.system {}\n", "not valid YAML: could not determine a constructor"),
        ("1: a\nrun: r\ndata: {root: d}\n", "1: unknown key; allowed are run, seed"),
    ],
)
def test_faults_of_the_file(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_config(PretrainConfig, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_or_not_there(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"run: \xff\xfe")
    with pytest.raises(ValueError, match=r"config\.yaml: not a text file in UTF-8"):
        load_config(PretrainConfig, path)
    for missing in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(
            FileNotFoundError, match=f"--config: no such file or shipped config: {re.escape(str(missing))}"
        ):
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
    assert loaded.log.progress is False
    assert loaded.data[0].root == "a=b"
    assert load_config(GradcamConfig, overrides=["checkpoint=c", "ids=[a.png, b.png]"]).ids == ("a.png", "b.png")
    assert load_config(EvalConfig, overrides=["checkpoint=c", "data.root=x"]).data == {"root": "x"}


@pytest.mark.parametrize("text", ["train.epochs", "=3", ".epochs=3", "train.=3", "train..epochs=3", ""])
def test_malformed_overrides(text):
    assert fault_of(text) == f"argument {text!r}: expected key.path=value, for instance train.epochs=10"


def test_override_below_a_value():
    message = "data.root: data was given the value 'folder', so it has no keys below it"
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, overrides=["data=folder", "data.root=d"])


def test_configurations_do_not_change():
    loaded = load_config(PretrainConfig, overrides=NEEDED)
    with pytest.raises(ValueError, match="frozen"):
        loaded.train.epochs = 7


def test_augmentation_has_the_same_fields_and_defaults():
    theirs = {field.name: field.default for field in dataclasses.fields(Augmentation)}
    assert {name: field.default for name, field in config.AugmentConfig.model_fields.items()} == theirs
    # Training with labels has other defaults, but no other keys.
    assert list(config.FinetuneAugmentConfig.model_fields) == list(config.AugmentConfig.model_fields)
    assert Augmentation(**load_config(PretrainConfig, overrides=NEEDED).augment.model_dump()) == Augmentation()


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


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_shipped_configs_parse_with_the_command_in_their_header(path):
    header = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    words = shlex.split(next(line for line in header if line.startswith("sscl ")))[1:]
    at = words.index("--config")
    name, file, overrides = " ".join(words[:at]), words[at + 1], words[at + 2 :]
    assert name == COMMAND_OF[path.stem]
    assert file == path.relative_to(CONFIGS).with_suffix("").as_posix()
    loaded = load_config(getattr(config, cli.COMMANDS[name].config), path, overrides=overrides)
    for override in overrides:  # each says something: it lands where it should
        dotted, _, value = override.partition("=")
        found = plain(loaded)
        if dotted.split(".")[0] in ("set", "set_pretrain", "set_finetune"):  # keys of other commands' configurations
            key, _, rest = dotted.partition(".")
            assert f"{rest}={value}" in found[key]
            continue
        for part in dotted.split("."):
            if isinstance(found, list) and not part.isdigit():  # one section where a list may stand
                (found,) = found
            found = found[int(part) if isinstance(found, list) else part]
        assert str(found) == value


def test_every_shipped_folder_was_looked_at():
    assert {path.stem for path in CONFIGS.rglob("*.yaml")} == set(COMMAND_OF)


def own_keys(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its default, by the classes alone; N stands for the number of a list's section."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        element = get_args(field.annotation)[0] if get_origin(field.annotation) is tuple else None
        if hasattr(element, "model_fields"):
            # Pretraining's data may be one section, and mostly is: its keys go without a number.
            found |= own_keys(
                element, f"{prefix}{name}." if (kind, name) == (PretrainConfig, "data") else f"{prefix}{name}.N."
            )
        elif isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found |= own_keys(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.default
    return found


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_lists_every_key_with_its_default(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    for flag in cli.COMMANDS[name].flags:
        assert f"\n  --{flag}" in text
    for key, default in own_keys(getattr(config, cli.COMMANDS[name].config)).items():
        line = next(line for line in text.splitlines() if line.split()[:1] == [key])
        rest = line.removeprefix(f"  {key}").strip()
        if default is PydanticUndefined:
            assert rest.startswith("(required)  ")
            continue
        shown, _, meaning = rest.partition("  ")
        value = yaml.safe_load(shown)
        expected = list(default) if isinstance(default, tuple) else default
        numbers = isinstance(expected, float) or (
            isinstance(expected, list) and all(isinstance(entry, (int, float)) for entry in expected)
        )
        assert value == (pytest.approx(expected, rel=1e-5) if numbers else expected), key
        assert meaning.strip(), f"{key} has no line of documentation"


def test_help_shows_the_keys_of_lists_of_sections():
    text = config.help_text(PretrainConfig)
    assert "\n  data.root " in text
    assert "\n  data.weight " in text
    assert "data.N" not in text
    listed = config.help_text(config.ProbeConfig)
    assert "\n  encoders.N.name " in listed
    assert "\n  sets.N.root " in listed


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
    for word, message in (
        ("data.root=c", "data.root: data is a list of 2; name one: data.0.root=..."),
        ("data.2.root=c", "data.2.root: got number 2 of a list of 2, allowed are 0 to 1"),
        ("data.2=c", "data.2: got number 2 of a list of 2, allowed are 0 to 1"),
        ("data.0.root.x=c", "data.0.root.x: root was given the value 'a', so it has no keys below it"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            load_config(PretrainConfig, path, overrides=[word])
    with pytest.raises(ValueError, match="got number 0 of a list of 0, which has none"):
        load_config(PretrainConfig, overrides=["run=r", "data=[]", "data.0.root=a"])


def test_what_all_sources_share_is_the_first_s():
    words = ["run=r", "data=[{root: a, cache_dir: /c, size_px: 64}, {root: b, size_px: 64}, {root: c}]"]
    loaded = load_config(PretrainConfig, overrides=words)
    assert [(source.size_px, source.cache_dir) for source in loaded.data] == [(64, "/c")] * 3
    same = PretrainConfig(run="r", data=[config.SourceConfig(root="a"), config.SourceConfig(root="b")])
    assert [source.root for source in same.data] == ["a", "b"]
    for key, value in (("size_px", 32), ("cache_dir", "/d"), ("device_budget_gb", 1.0)):
        with pytest.raises(
            ValueError, match=rf"^data\.1\.{key}: got {value}, but data\.0 has .*: give it to the first"
        ):
            load_config(PretrainConfig, overrides=["run=r", f"data=[{{root: a}}, {{root: b, {key}: {value}}}]"])


def test_names_of_encoders_are_those_that_can_be_built():
    from sscl.models import encoders

    assert set(training.ENCODERS) == set(encoders.ENCODERS)


def test_help_lists_the_allowed_words():
    assert "[sgd | lars | adamw]" in config.help_text(PretrainConfig)
