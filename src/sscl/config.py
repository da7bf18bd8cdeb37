"""Every knob: frozen pydantic models, one a command, and the strict YAML loader.

A YAML file holds what differs from the defaults here; `key.path=value` on the command line comes on top.
Library code never sees these classes: the commands hand it plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticUndefined


class Section(BaseModel):
    """A group of keys; unknown keys and wrong types are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def knob(default: Any, doc: str, **bounds: Any) -> Any:
    """Return a field with its default, its line of documentation and its bounds; `...` makes it required."""
    return Field(default, description=doc, **bounds)


Triple = Annotated[tuple[float, float, float], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
        low, high = value
        if low > high:
            raise ValueError("the first number is above the second; allowed is [lowest, highest]")
        if low < 0:
            raise ValueError("a bound is negative; allowed is 0 <= lowest <= highest")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_ordered)]


class DataConfig(Section):
    """Which tiles, from where, in which split."""

    source: Literal["mhist", "folder"] = knob(
        "mhist", "mhist: annotations.csv + images/; folder: train/CLASS/*, test/CLASS/*, or CLASS/*, or flat"
    )
    root: str = knob(..., "folder of the data set", min_length=1)
    protocol: Literal["paper_balanced", "official"] = knob(
        "official", "mhist: official = its Partition column; paper_balanced = all SSA + as many HP, 90:10"
    )
    published: bool = knob(True, "mhist: hold the set to MHIST's published counts and 224 px; false for other sets")
    split_seed: int = knob(0, "seed of the splits made here (paper_balanced, a folder without test/)", ge=0)
    test_fraction: float = knob(0.2, "folder without test/: share of each class held out for test", gt=0, lt=1)
    groups_csv: str | None = knob(None, "folder: CSV `path,group`; no group lands on both sides of a split")
    unlabelled: str | None = knob(
        None, "pretrain: a folder of further tiles without labels, added to the training tiles"
    )
    size_px: int = knob(224, "side to which tiles are brought, pixels", ge=16, le=1024)
    cache_dir: str | None = knob(None, "folder for decoded tiles; null = $SSCL_CACHE or ~/.cache/sscl")
    device_budget_gb: float = knob(4.0, "tiles go to the GPU as a whole up to this size, GiB", ge=0)


class AugmentConfig(Section):
    """The random view of a tile (see sscl.augment.Augmentation)."""

    crop_scale: Range = knob((0.2, 1.0), "area of the random crop, as a share of the tile [lowest, highest]")
    crop_ratio: Range = knob((0.75, 4 / 3), "width / height of the crop [lowest, highest]")
    hflip_probability: float = knob(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip_probability: float = knob(0.5, "probability of a vertical flip", ge=0, le=1)
    affine_probability: float = knob(0.5, "probability of the random affine", ge=0, le=1)
    rotation_degrees: float = knob(45.0, "rotation up to this either way, degrees", ge=0, le=180)
    translation: float = knob(0.1, "shift up to this share of the side either way", ge=0, le=1)
    scale: Range = knob((0.9, 1.1), "zoom of the affine [lowest, highest]")
    shear_degrees: float = knob(10.0, "shear up to this either way, degrees", ge=0, le=60)
    blur_probability: float = knob(0.5, "probability of the Gaussian blur", ge=0, le=1)
    blur_sigma_px: Range = knob((0.1, 2.0), "standard deviation of the blur, pixels at data.size_px")
    jitter_probability: float = knob(0.8, "probability of the colour jitter", ge=0, le=1)
    brightness: float = knob(0.4, "brightness factor within 1 - x to 1 + x", ge=0)
    contrast: float = knob(0.4, "contrast factor within 1 - x to 1 + x", ge=0)
    saturation: float = knob(0.4, "saturation factor within 1 - x to 1 + x", ge=0)
    hue: float = knob(0.1, "hue shift up to this share of a turn either way", ge=0, le=0.5)
    grayscale_probability: float = knob(0.0, "probability of grayscale", ge=0, le=1)
    stain_probability: float = knob(0.0, "probability of H&E stain jitter in optical density", ge=0, le=1)
    stain_strength: float = knob(0.2, "factor on haematoxylin and eosin within 1 - x to 1 + x", ge=0)
    stain_shift: float = knob(0.05, "shift of haematoxylin and eosin up to this either way, optical density", ge=0)

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale: got {list(self.crop_scale)}, allowed is 0 < lowest <= highest <= 1")
        for key in ("crop_ratio", "scale"):
            if getattr(self, key)[0] <= 0:
                raise ValueError(f"{key}: got {list(getattr(self, key))}, allowed is 0 < lowest <= highest")
        return self


class FinetuneAugmentConfig(AugmentConfig):
    """The random view for training with labels: milder, so that the class stays visible."""

    crop_scale: Range = knob((0.6, 1.0), "area of the random crop, as a share of the tile [lowest, highest]")
    blur_probability: float = knob(0.0, "probability of the Gaussian blur", ge=0, le=1)
    brightness: float = knob(0.2, "brightness factor within 1 - x to 1 + x", ge=0)
    contrast: float = knob(0.2, "contrast factor within 1 - x to 1 + x", ge=0)
    saturation: float = knob(0.2, "saturation factor within 1 - x to 1 + x", ge=0)
    hue: float = knob(0.04, "hue shift up to this share of a turn either way", ge=0, le=0.5)


class ModelConfig(Section):
    """The encoder."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = knob("resnet50", "the encoder")
    stem: Literal["standard", "small"] = knob(
        "standard", "standard: 7x7 stride 2 and max-pool; small: 3x3 stride 1, for tiles under 96 px"
    )
    output_stride: Literal[32, 16] = knob(
        32, "16: the last stage keeps its resolution, for heatmaps twice as fine at up to twice the time"
    )
    weights: str | None = knob(
        None, "start of the encoder: null = random, imagenet = torchvision's, else a run folder or checkpoint file"
    )
    mean: Triple | None = knob(None, "channel means of pixels in 0-1; null = those of the weights, else ImageNet's")
    std: Triple | None = knob(None, "channel deviations of pixels in 0-1; null = those of the weights, else ImageNet's")

    @model_validator(mode="after")
    def _std_positive(self) -> ModelConfig:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: got {list(self.std)}, allowed are three numbers > 0")
        return self


class ProjectionConfig(Section):
    """The head that exists during pretraining only."""

    kind: Literal["linear", "mlp"] = knob("linear", "linear: Jain & Lynn's; mlp: SimCLR's, with one hidden layer")
    hidden: int = knob(2048, "width of the mlp's hidden layer", ge=1)
    dim: int = knob(128, "dimensions of the projection", ge=2)


class LogConfig(Section):
    """What is logged besides metrics.jsonl."""

    tensorboard: bool = knob(False, "also write TensorBoard events (needs the extra: pip install 'sscl[tensorboard]')")
    progress: bool = knob(True, "show progress bars")


class PretrainTrainConfig(Section):
    """The contrastive training loop."""

    epochs: int = knob(100, "passes over the tiles", ge=1)
    batch_size: int = knob(128, "tiles a step (each gives two views)", ge=2)
    optimizer: Literal["sgd", "lars", "adamw"] = knob("sgd", "the optimizer")
    learning_rate: float = knob(0.06, "peak learning rate, before scaling", gt=0)
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = knob(
        "linear", "linear: x batch_size / 256; sqrt: x sqrt(batch_size); none"
    )
    weight_decay: float = knob(5e-4, "weight decay (none on biases and norms)", ge=0)
    momentum: float = knob(0.9, "momentum of sgd and lars", ge=0, lt=1)
    warmup_epochs: float = knob(10.0, "epochs of linear warm-up before the cosine", ge=0)
    temperature: float = knob(0.7, "NT-Xent temperature", gt=0)
    stop_after_epoch: int | None = knob(None, "leave after this many epochs in all; --resume goes on", ge=1)
    compile: bool = knob(False, "torch.compile the model")


class HealthConfig(Section):
    """Signs that pretraining learns something, taken after each epoch."""

    tiles: int = knob(512, "tiles whose embeddings are looked at (held out of training when labelled)", ge=8)
    neighbours: int = knob(20, "k of the kNN classifier on held-out labelled tiles", ge=1)
    bank_tiles: int = knob(2000, "labelled training tiles the kNN compares with, at most", ge=8)


class PretrainConfig(Section):
    """sscl pretrain: contrastive pretraining without labels."""

    run: str = knob(..., "run folder to write", min_length=1)
    seed: int = knob(0, "seed of weights, order and views", ge=0, lt=2**63)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "auto: bf16 on a GPU that has it, else fp32")
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    projection: ProjectionConfig = ProjectionConfig()
    train: PretrainTrainConfig = PretrainTrainConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()


class FinetuneTrainConfig(Section):
    """The training loop with labels."""

    epochs: int = knob(50, "passes over the labelled tiles, at most", ge=1)
    batch_size: int = knob(64, "tiles a step", ge=2)
    optimizer: Literal["sgd", "lars", "adamw"] = knob("adamw", "the optimizer")
    learning_rate: float = knob(1e-4, "peak learning rate of the trunk", gt=0)
    head_learning_rate: float = knob(1e-3, "peak learning rate of the classification head", gt=0)
    weight_decay: float = knob(0.01, "weight decay (none on biases and norms)", ge=0)
    momentum: float = knob(0.9, "momentum of sgd and lars", ge=0, lt=1)
    warmup_epochs: float = knob(2.0, "epochs of linear warm-up before the cosine", ge=0)
    freeze_encoder: bool = knob(False, "train the head alone, on fixed features")
    loss: Literal["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"] = knob(
        "cross_entropy", "weighted_*: each class by its inverse frequency"
    )
    focal_gamma: float = knob(2.0, "focusing exponent of the focal losses", ge=0)
    balance: Literal["none", "down", "draws"] = knob(
        "none", "down: every class cut to the smallest; draws: classes drawn equally often"
    )
    label_fraction: float = knob(
        1.0, "share of the training labels used, stratified; validation is part of it", gt=0, le=1
    )
    validation_fraction: float = knob(0.15, "share of those carved out for validation", gt=0, lt=1)
    select: Literal["balanced_accuracy", "accuracy", "loss"] = knob(
        "balanced_accuracy", "what the best epoch is chosen by, on validation (ties: lower loss)"
    )
    patience: int = knob(15, "stop after this many epochs without a better one", ge=1)


class FinetuneConfig(Section):
    """sscl finetune: a classifier from labels, on a pretrained or fresh encoder."""

    run: str = knob(..., "run folder to write", min_length=1)
    seed: int = knob(0, "seed of head, order, views, validation split and label fraction", ge=0, lt=2**63)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = knob("auto", "auto: bf16 on a GPU that has it, else fp32")
    data: DataConfig
    augment: FinetuneAugmentConfig = FinetuneAugmentConfig()
    model: ModelConfig = ModelConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    log: LogConfig = LogConfig()


class EvalConfig(Section):
    """sscl eval: metrics with intervals on a split."""

    checkpoint: str = knob(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = knob("test", "which tiles")
    out: str | None = knob(None, "folder to write; null = RUN/eval_SPLIT")
    positive: str | None = knob(None, "positive class of two; null = SSA where there is one, else the second")
    bootstrap_samples: int = knob(2000, "resamples behind each interval", ge=10)
    bootstrap_seed: int = knob(0, "seed of the resamples", ge=0)
    batch_size: int = knob(128, "tiles at a time", ge=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = knob({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = knob(True, "show progress bars")


class GradcamConfig(Section):
    """sscl gradcam: heatmaps and boxes."""

    checkpoint: str = knob(..., "a finetune run folder (its best.pt) or checkpoint file", min_length=1)
    split: Literal["test", "train", "all"] = knob("test", "which tiles")
    ids: Annotated[tuple[str, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)] = knob(
        (), "explain these tiles, [id, ...]; empty = the most confident ones"
    )
    images: str | None = knob(None, "explain the image files of this folder instead of the data set's")
    per_class: int = knob(3, "most confident right, and as many wrong, tiles of each class", ge=1)
    out: str | None = knob(None, "folder to write; null = RUN/gradcam_SPLIT")
    target: str = knob(
        "auto",
        "difference: predicted logit - the other's (two classes); predicted: its logit alone; or a class's name; "
        "auto: difference for two classes, else predicted",
    )
    random_seed: int = knob(0, "seed of the random-weights net compared with on truth masks", ge=0)
    threshold: float = knob(0.2, "a box holds what is above this share of the map's maximum", gt=0, lt=1)
    batch_size: int = knob(32, "tiles at a time", ge=1)
    device: str = knob("auto", "auto, cpu, cuda or cuda:N")
    data: dict[str, Any] = knob({}, "data keys that differ from the checkpoint's, for instance data.root")
    progress: bool = knob(True, "show progress bars")


class SynthConfig(Section):
    """sscl data synth: procedural polyp tiles in the MHIST layout."""

    root: str = knob(..., "folder to write", min_length=1)
    count: int = knob(1000, "number of tiles", ge=4)
    size_px: int = knob(224, "side of a tile, pixels", ge=32, le=1024)
    seed: int = knob(0, "seed of the tiles", ge=0)
    ssa_fraction: float = knob(0.5, "share of SSA tiles", gt=0, lt=1)
    test_fraction: float = knob(0.3, "share of slides in the test partition", gt=0, lt=1)
    progress: bool = knob(True, "show progress bars")


class InspectConfig(Section):
    """sscl data inspect: what is in a data set."""

    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    out: str = knob(..., "folder for the pictures", min_length=1)
    seed: int = knob(0, "seed of the tiles and views shown", ge=0, lt=2**63)
    tiles: int = knob(36, "tiles on the contact sheet", ge=1, le=400)
    progress: bool = knob(True, "show progress bars")


class DemoConfig(Section):
    """sscl demo: the whole method on synthetic polyps."""

    run: str = knob("demo-run", "folder to write", min_length=1)
    configs: str | None = knob(None, "folder of the demo's YAML files; null = the shipped configs/demo")


Config = TypeVar("Config", bound=Section)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, reads 1e-4 as a number, which YAML 1.1 calls a string, and a date as
    the text it is: no key takes a date, and runs are named after them.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"line {key.start_mark.line + 1}: a key must be a plain word, not a list or mapping")
            if key.value in seen:
                raise ValueError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def load_config(kind: type[Config], path: str | Path | None = None, *, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a command from a YAML file and `key.path=value` overrides.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: one line a fault, all faults at once, each naming the dotted key.
    """
    content: dict[str, Any] = read_yaml(path) if path is not None else {}
    for text in overrides:
        _set_key(content, text)
    return validate(kind, content, source=str(path) if path is not None else "command line")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: not YAML, or not a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config: no such file: {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values (`key: value`), got a {type(content).__name__}")
    return content


def validate(kind: type[Config], content: dict[str, Any], *, source: str) -> Config:
    """Return the validated configuration.

    Raises:
        ValueError: one line a fault, all at once.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(kind, dict(fault)) for fault in error.errors()]
        raise ValueError("\n".join(f"{line} ({source})" for line in dict.fromkeys(lines))) from None


def _set_key(content: dict[str, Any], text: str) -> None:
    dotted, equals, raw = text.partition("=")
    if not equals or not all(dotted.split(".")):
        raise ValueError(f"argument {text!r}: expected key.path=value, for instance train.epochs=10")
    try:
        value = yaml.load(raw, Loader=_Loader) if raw else None
    except (yaml.YAMLError, ValueError):
        value = raw
    *parents, last = dotted.split(".")
    place = content
    for parent in parents:
        if place.get(parent) is None:
            place[parent] = {}
        place = place[parent]
        if not isinstance(place, dict):
            raise ValueError(f"{dotted}: {parent} was given the value {_shown(place)}, so it has no keys below it")
    place[last] = value


def _explain(kind: type[Section], fault: dict[str, Any]) -> str:
    """Return one line for a pydantic fault: the dotted key, what was got, what is allowed, the nearest key."""
    parts = [str(part) for part in fault["loc"] if not str(part).startswith(("function-", "tuple", "nullable"))]
    dotted, what, context = ".".join(parts), fault["type"], fault.get("ctx", {})
    got = f"got {_shown(fault['input'])}"
    if what in ("extra_forbidden", "invalid_key"):
        section = _section(kind, parts[:-1])
        names = list(section.model_fields) if section is not None else []
        near = difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {'.'.join([*parts[:-1], near[0]])}?"
        else:
            owners = [name for name in keys(kind) if name.split(".")[-1] == parts[-1]]
            hint = f"did you mean {owners[0]}?" if owners else f"allowed are {', '.join(names)}"
        return f"{dotted}: unknown key; {hint}"
    if what in ("tuple_type", "too_long") or (what == "missing" and isinstance(fault["loc"][-1], int)):
        if what == "missing":  # of a list's numbers
            dotted = ".".join(parts[:-1])
        kept = keys(kind).get(dotted, ((), ""))[0]
        count = 3 if kept is None else len(kept)  # means and deviations are null or three
        return f"{dotted}: {got}, allowed is a list" + (f" of {count} numbers" if count else ", [a, b, ...]")
    if what == "missing":
        section = _section(kind, parts)
        if section is not None:
            required = [name for name, field in section.model_fields.items() if field.is_required()]
            dotted = f"{dotted}.{required[0]}" if required else dotted
        return f"{dotted}: missing; give it in the YAML file or as {dotted}=VALUE"
    if what == "literal_error":
        return (
            f"{dotted}: {got}, allowed are {str(context['expected']).replace(' or ', ', ')}{_nearest(fault, context)}"
        )
    if what == "value_error":
        message = str(context.get("error", fault["msg"]))
        key, colon, rest = message.partition(": ")
        if colon and re.fullmatch(r"\w+", key):  # raised for one key of a section
            return f"{dotted}.{key}: {rest}" if dotted else message
        return f"{dotted}: {got}; {message}"
    if what.startswith(("greater", "less")):
        return f"{dotted}: {got}, allowed is {_limits(kind, parts)}"
    if what == "string_too_short":
        return f"{dotted}: {got}, allowed is a name that is not empty"
    if what == "string_type" and isinstance(fault["input"], (bool, int, float)):
        return f"{dotted}: {got}, allowed is text; if that is meant, quote it within the value: \"'...'\""
    if what == "model_type" or what == "model_attributes_type":
        return f"{dotted}: {got}, expected keys below it (`{parts[-1] if parts else 'key'}: {{...}}`)"
    allowed = str(fault["msg"]).replace("Input should be", "allowed is")
    return f"{dotted}: {got}, {allowed}"


def _limits(kind: type[Section], parts: Sequence[str]) -> str:
    """Return all bounds of a key, not only the one that was overstepped."""
    section = _section(kind, parts[:-1])
    assert section is not None, parts
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f"{sign} {getattr(bound, name):.6g}" if abs(getattr(bound, name)) < 1e6 else f"{sign} {getattr(bound, name)}"
        for name, sign in signs.items()
        for bound in section.model_fields[parts[-1]].metadata
        if hasattr(bound, name)
    ]
    return " and ".join(found)


def _nearest(fault: dict[str, Any], context: dict[str, Any]) -> str:
    names = re.findall(r"'([^']+)'", str(context["expected"]))
    near = difflib.get_close_matches(str(fault["input"]), names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else _yaml_value(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _section(kind: type[Section], parts: Sequence[str]) -> type[Section] | None:
    """Return the section class at a dotted place, None where there is a plain value."""
    current: type[Section] = kind
    for part in parts:
        field = current.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            return None
        current = field.annotation
    return current


def keys(kind: type[Section], prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Return every dotted key of a command with its default and its line of documentation."""
    found: dict[str, tuple[Any, str]] = {}
    for name, field in kind.model_fields.items():
        section = _section(kind, [name])
        if section is not None:
            found |= keys(section, f"{prefix}{name}.")
        else:
            found[prefix + name] = (field.default, _described(field))
    return found


def _described(field: Any) -> str:
    choices = get_args(field.annotation) if "Literal" in str(field.annotation) else ()
    text = field.description or ""
    return f"{text} [{' | '.join(map(str, choices))}]" if choices else text


def help_text(kind: type[Section]) -> str:
    """Return the list of a command's keys: key, default, meaning with unit."""
    rows = keys(kind)
    width = max(map(len, rows))
    shown = {
        name: "(required)" if default is PydanticUndefined else _yaml_value(default)
        for name, (default, _) in rows.items()
    }
    wide = max(map(len, shown.values()))
    return "\n".join(f"  {name:<{width}}  {shown[name]:<{wide}}  {doc}" for name, (_, doc) in rows.items())


def _yaml_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_yaml_value(v) for v in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def plain(config: Section) -> dict[str, Any]:
    """Return the resolved configuration in plain containers, for YAML and checkpoints."""
    return config.model_dump(mode="json")
