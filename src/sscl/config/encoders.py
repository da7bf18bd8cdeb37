"""The encoders by name, and the settings of an encoder, its start and its projection head."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sscl.config.messages import shown
from sscl.config.published import PUBLISHED, by_hub, like
from sscl.config.sections import SEEDS, Listed, Section, fault, setting
from sscl.words import closest, listed

Mean = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(ge=1e-3, le=10)]  # of weights for pixels in 0-255 it is 1/255
Means = Annotated[tuple[Mean, Mean, Mean], Listed]  # of the channels
StandardDeviations = Annotated[tuple[Deviation, Deviation, Deviation], Listed]

WIDEST = 2**16  # of a layer, and so of any argument
_LARGEST = {"img_size": 2048, "patch_size": 1024, "reg_tokens": 1024, "depth": 1024}  # of some

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
ENCODERS = (*RESNETS, "resnet14_small", "resnet18_pathmnist", "efficientnet_lite0")  # and timm:NAME
TIMM = "timm:"


class Own(NamedTuple):
    """What `sscl encoders` says of one of ENCODERS."""

    parameters: int
    features: int
    imagenet: str


OWN = {
    "resnet18": Own(11_176_512, 512, "torchvision's"),
    "resnet34": Own(21_284_672, 512, "torchvision's"),
    "resnet50": Own(23_508_032, 2048, "torchvision's"),
    "resnet101": Own(42_500_160, 2048, "torchvision's"),
    "resnet14_small": Own(699_168, 128, "none"),
    "resnet18_pathmnist": Own(10_717_440, 512, "layers 1, 3 and 4"),
    "efficientnet_lite0": Own(3_371_008, 1280, "its package's"),
}
HUB, FOLDER = "timm:hf-hub:", "timm:local-dir:"  # a repository or a folder that says which model of timm it is
RANDOM = (None, "random")  # values of model.weights that mean random ones
NO_FILES = ("imagenet", "published", "random")  # those that name no file
Stem = Literal["standard", "small"]
Pool = Literal["mean", "class", "class_mean"]


def plain_arguments(given: dict[str, object]) -> dict[str, object]:
    """Return arguments of a model: numbers, words, or lists of them, which files and YAML can hold.

    Raises:
        ValueError: another kind of value, or a number beyond what any layer has.
    """
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if not (one is None or isinstance(one, (bool, int, float, str))):
                raise ValueError(f"{name} must be a number, a word, true, false or a list of them, got {shown(one)}")
            most = _LARGEST.get(name, WIDEST)
            if isinstance(one, (int, float)) and not abs(one) <= most:  # NaN is not
                raise ValueError(f"{name} must be at most {most:,}, got {shown(one)}")
    return given


Kwargs = Annotated[dict[str, object], AfterValidator(plain_arguments)]  # of a model of timm
OutputStride = Literal[32, 16]


def known_encoder(name: Any) -> Any:
    """Return an encoder's name; whether timm knows a name after timm: is seen when it is built.

    Raises:
        ValueError: no such encoder; with the nearest name.
    """
    if not isinstance(name, str) or name in ENCODERS or name in PUBLISHED or name.startswith(TIMM):
        return name
    known = by_hub(name)
    near = like(name) if known is None else [known.name]
    near = near or [one for one in [closest(name, ENCODERS)] if one is not None]
    hint = f"; did you mean {listed(near, last='or')}?" if near else ""
    if known is None and "/" in name:
        hint = f"; a repository of the hub is {HUB}{name}, a folder {FOLDER}{name}"
    raise ValueError(f"must be {', '.join(ENCODERS)}, one of `sscl encoders`, or timm:NAME, got {name!r}{hint}")


POOLS = (
    "the feature of a tile: mean = that of the last feature map (of a transformer of its patch tokens), class = the "
    "class token, class_mean = both, one behind the other; null = that of the weights or of the published encoder, "
    "else what timm's classifier reads"
)
EncoderName = Annotated[str, BeforeValidator(known_encoder)]


def refuse_forgotten(name: str | None, weights: str | None) -> None:
    """Raise where a published encoder is named and its weights are not: random ones must be asked for."""
    if weights is None and name is not None and (name in PUBLISHED or name.startswith((HUB, FOLDER))):
        how = "are in the folder" if name.startswith(FOLDER) else "are fetched once"
        raise fault(
            "weights",
            f"missing; {name} has published weights: give published (they {how}), a file or run of it, or random",
        )


class ModelConfig(Section):
    """The encoder and its start."""

    name: EncoderName = setting(
        "resnet50",
        f"architecture: {', '.join(ENCODERS)}; a published encoder such as uni2_h (`sscl encoders` lists them); or "
        "timm:NAME, timm:hf-hub:USER/MODEL, timm:local-dir:FOLDER (need the extra: pip install 'sscl[timm]'); "
        "resnet18_pathmnist is for tiles of 28 px, resnet14_small for few tiles, CPUs and fine heatmaps",
        common=True,
    )
    stem: Stem = setting(
        "standard", "first layers: standard = 7x7, stride 2, max pooling; small = 3x3, stride 1, for tiles under 96 px"
    )
    output_stride: OutputStride = setting(
        32, "tile side / feature map side; 16 gives heatmaps twice as fine, at up to twice the time"
    )
    kwargs: Kwargs = setting(
        {}, "arguments of timm:NAME, as timm.create_model takes them: {depth: 6, reg_tokens: 4}; of no other encoder"
    )
    pool: Pool | None = setting(None, POOLS)
    weights: str | None = setting(
        None,
        "initial weights: null or random; imagenet = torchvision's (of timm:NAME timm's); published = those of a "
        "published encoder, fetched once (null is refused there); or an sscl run folder; or a file or folder of sscl, "
        "torchvision, timm, Ciga et al., lightly, solo-learn or MoCo; also from=RUN. Name, stem, "
        "output_stride, kwargs, pool and data.size_px are those that these say, where the keys are not given",
        path=True,
        common=True,
    )
    mean: Means | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, or ImageNet's")
    std: StandardDeviations | None = setting(
        None, "channel standard deviations of pixels in 0-1; null = those of the weights, or ImageNet's"
    )

    @model_validator(mode="after")
    def _weights_are_said(self) -> ModelConfig:
        refuse_forgotten(self.name, self.weights)
        return self


class EncoderConfig(Section):
    """The encoder, used as it is."""

    model: EncoderName | None = setting(
        None, "architecture, as model.name of pretrain; null = read it from the checkpoint"
    )
    weights: str | None = setting(
        None,
        "null or random; imagenet; published; or a run folder or file, as model.weights of pretrain",
        path=True,
        common=True,
    )
    stem: Stem = setting("standard", "as model.stem of pretrain; ignored if the weights are an sscl checkpoint")
    kwargs: Kwargs = setting({}, "as model.kwargs of pretrain; ignored if the weights are an sscl checkpoint")
    pool: Pool | None = setting(None, POOLS)
    size_px: int | None = setting(
        None, "side of its tiles, pixels; null = that of the checkpoint, or data.size_px", ge=16, le=1024
    )
    mean: Means | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, or ImageNet's")
    std: StandardDeviations | None = setting(
        None, "channel standard deviations of pixels in 0-1; null = those of the weights, or ImageNet's"
    )
    seed: int = setting(0, "seed of random weights", ge=0, lt=SEEDS)

    @model_validator(mode="after")
    def _weights_are_said(self) -> EncoderConfig:
        refuse_forgotten(self.model, self.weights)
        return self


class ProjectionConfig(Section):
    """The projection head, used during pretraining only."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting(
        "mlp", "linear: one layer (Jain & Lynn); mlp: one hidden layer (SimCLR); mlp_no_norm: mlp without batch norm"
    )
    hidden: int = setting(2048, "width of the hidden layer of mlp", ge=1, le=WIDEST)
    dim: int = setting(128, "dimensions of the projection that the loss compares", ge=2, le=WIDEST)


class EncodersConfig(Section):
    """List the encoders that have a name, or say all about one."""

    name: str | None = setting(
        None, "the encoder, as model.name of pretrain; null = list them all; also NAME", min_length=1
    )
