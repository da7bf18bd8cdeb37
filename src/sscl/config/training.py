"""Views, encoder, head, and the commands that train: pretrain and finetune."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, model_validator

from sscl.config.data import DataConfig, SourceConfig, listed_sources, one_size
from sscl.config.sections import Listed, OneOrMore, Section, fault, setting
from sscl.words import closest

Triple = Annotated[tuple[float, float, float], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]


def _above_zero(value: tuple[float, float, float]) -> tuple[float, float, float]:
    if min(value) <= 0:
        raise ValueError(f"must be three numbers > 0, got {list(value)}")
    return value


Deviations = Annotated[Triple, AfterValidator(_above_zero)]


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value):
        low, high = value
        if not 0 <= low <= high:
            raise ValueError(f"must be [lowest, highest] with 0 <= lowest <= highest, got {list(value)}")
    return value


Range = Annotated[tuple[float, float], BeforeValidator(_ordered)]


class AugmentConfig(Section):
    """The random view of a tile (see sscl.augment.Augmentation)."""

    crop_scale: Range = setting((0.2, 1.0), "area of the random crop, as a share of the tile [lowest, highest]")
    crop_ratio: Range = setting((0.75, 4 / 3), "width / height of the crop [lowest, highest]")
    hflip_probability: float = setting(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip_probability: float = setting(0.5, "probability of a vertical flip", ge=0, le=1)
    affine_probability: float = setting(0.5, "probability of the random affine", ge=0, le=1)
    rotation_degrees: float = setting(45.0, "rotation up to this either way, degrees", ge=0, le=180)
    translation: float = setting(0.1, "shift up to this share of the side either way", ge=0, le=1)
    scale: Range = setting((0.9, 1.1), "zoom of the affine [lowest, highest]")
    shear_degrees: float = setting(10.0, "shear up to this either way, degrees", ge=0, le=60)
    blur_probability: float = setting(0.5, "probability of the Gaussian blur", ge=0, le=1)
    blur_sigma_px: Range = setting((0.1, 2.0), "standard deviation of the blur, pixels at data.size_px")
    jitter_probability: float = setting(0.8, "probability of the colour jitter", ge=0, le=1)
    brightness: float = setting(0.2, "brightness factor within 1 - x to 1 + x", ge=0)
    contrast: float = setting(0.2, "contrast factor within 1 - x to 1 + x", ge=0)
    saturation: float = setting(0.2, "saturation factor within 1 - x to 1 + x", ge=0)
    hue: float = setting(0.05, "hue shift up to this share of a turn either way", ge=0, le=0.5)
    grayscale_probability: float = setting(0.0, "probability of grayscale", ge=0, le=1)
    stain_probability: float = setting(0.0, "probability of H&E stain jitter in optical density", ge=0, le=1)
    stain_strength: float = setting(0.2, "factor on haematoxylin and eosin within 1 - x to 1 + x", ge=0)
    stain_shift: float = setting(0.05, "shift of haematoxylin and eosin up to this either way, optical density", ge=0)

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise fault("crop_scale", f"must be within 0 < lowest <= highest <= 1, got {list(self.crop_scale)}")
        for key in ("crop_ratio", "scale"):
            if getattr(self, key)[0] <= 0:
                raise fault(key, f"must be within 0 < lowest <= highest, got {list(getattr(self, key))}")
        return self


class FinetuneAugmentConfig(AugmentConfig):
    """The random view for training with labels: milder, so that the class stays visible."""

    crop_scale: Range = setting((0.6, 1.0), "area of the random crop, as a share of the tile [lowest, highest]")
    blur_probability: float = setting(0.0, "probability of the Gaussian blur", ge=0, le=1)
    hue: float = setting(0.04, "hue shift up to this share of a turn either way", ge=0, le=0.5)


ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet18_pathmnist", "efficientnet_lite0")


def known_encoder(name: Any) -> Any:
    """Return an encoder's name.

    Raises:
        ValueError: no such encoder; with the nearest name.
    """
    if isinstance(name, str) and name not in ENCODERS and not name.startswith("timm:"):
        near = closest(name, ENCODERS)
        hint = "" if near is None else f"; did you mean {near}?"
        raise ValueError(f"must be {', '.join(ENCODERS)} or timm:NAME, got {name!r}{hint}")
    return name


EncoderName = Annotated[str, BeforeValidator(known_encoder)]


class ModelConfig(Section):
    """The encoder."""

    name: EncoderName = setting(
        "resnet50",
        f"the encoder: {', '.join(ENCODERS)}, or timm:NAME (extra timm); resnet18_pathmnist is for 28 px",
    )
    stem: Literal["standard", "small"] = setting(
        "standard", "standard: 7x7 stride 2 and max-pool; small: 3x3 stride 1, for tiles under 96 px"
    )
    output_stride: Literal[32, 16] = setting(
        32, "16: the last stage keeps its resolution, for heatmaps twice as fine at up to twice the time"
    )
    weights: str | None = setting(
        None,
        "start of the encoder: null = random, imagenet = torchvision's (or the net's own), else a run folder or a "
        "file: ours, torchvision, timm, Ciga et al., lightly, solo-learn, MoCo",
        path=True,
    )
    mean: Triple | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, else ImageNet's")
    std: Deviations | None = setting(
        None, "channel deviations of pixels in 0-1; null = those of the weights, else ImageNet's"
    )


class EncoderConfig(Section):
    """An encoder as it is, for the commands that look at features."""

    model: EncoderName | None = setting(None, "the encoder's name; null = what the checkpoint says")
    weights: str | None = setting(None, "null = random, imagenet, or a run folder or file as for model.weights")
    stem: Literal["standard", "small"] = setting("standard", "as model.stem, where no checkpoint of sscl says it")
    size_px: int | None = setting(None, "side of its tiles; null = what the checkpoint says, else data.size_px", ge=16)
    mean: Triple | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, else ImageNet's")
    std: Deviations | None = setting(
        None, "channel deviations of pixels in 0-1; null = those of the weights, else ImageNet's"
    )
    seed: int = setting(0, "seed of random weights", ge=0)


class ProjectionConfig(Section):
    """The head that exists during pretraining only."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting(
        "mlp", "linear: Jain & Lynn's; mlp: SimCLR's, with one hidden layer; mlp_no_norm: that without batch norm"
    )
    hidden: int = setting(2048, "width of the mlp's hidden layer", ge=1)
    dim: int = setting(128, "dimensions of the projection", ge=2)


class LogConfig(Section):
    """What is logged besides metrics.jsonl."""

    tensorboard: bool = setting(
        False, "also write TensorBoard events (needs the extra: pip install 'sscl[tensorboard]')", free=True
    )
    progress: bool = setting(True, "show progress bars", free=True)


Milestones = Annotated[tuple[int, ...], Listed]


class PretrainTrainConfig(Section):
    """The contrastive training loop."""

    epochs: int = setting(100, "passes over the tiles", ge=1)
    batch_size: int = setting(128, "tiles a step (each gives two views)", ge=2)
    optimizer: Literal["sgd", "lars", "adamw"] = setting("sgd", "the optimizer")
    learning_rate: float = setting(0.06, "peak learning rate, before scaling", gt=0)
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = setting(
        "linear", "linear: x batch_size / 256; sqrt: x sqrt(batch_size); none"
    )
    weight_decay: float = setting(5e-4, "weight decay (none on biases and norms)", ge=0)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: down to 0; multistep: x gamma at each of milestones"
    )
    warmup_epochs: float = setting(10.0, "cosine: epochs of linear warm-up before it", ge=0)
    milestones: Milestones = setting((), "multistep: after these epochs, [2, 6]")
    gamma: float = setting(0.1, "multistep: factor at a milestone", gt=0, le=1)
    loss: Literal["nt_xent", "cross_view"] = setting(
        "nt_xent", "nt_xent: 2N - 2 negatives; cross_view: InfoNCE with the other view's N - 1 alone"
    )
    temperature: float = setting(0.7, "temperature of the loss", gt=0)
    second_view: Literal["augmented", "clean"] = setting(
        "augmented", "what a view is compared with: another, or the tile"
    )
    mix: Literal["batch", "source"] = setting(
        "batch", "several sources: every batch holds tiles of all, or of one source at a time"
    )
    freeze_batch_norm: bool = setting(
        False, "keep the encoder's batch-norm statistics as its weights bring them; for a start from ImageNet"
    )
    stop_after_epoch: int | None = setting(
        None, "leave after this many epochs in all; --resume goes on", free=True, ge=1
    )
    microbatch: int | None = setting(
        None,
        "tiles forwarded at once on each device, for batches beyond its memory: the gradient of the whole batch at "
        "about 4/3 of the time (gradient caching); null = all",
        ge=1,
    )
    compile: bool = setting(False, "torch.compile views, net and loss; minutes at the start, faster steps after")
    profile: bool = setting(False, "record some steps of the first epoch: trace.json and the largest costs", free=True)
    timeout_minutes: float = setting(
        30.0, "torchrun: a rank that hears nothing from the others for so long fails", free=True, gt=0
    )


class HealthConfig(Section):
    """Signs that pretraining learns something, taken after each epoch."""

    tiles: int = setting(512, "tiles whose embeddings are looked at (held out of training when labelled)", ge=8)
    neighbours: int = setting(20, "k of the kNN classifier on held-out labelled tiles", ge=1)
    bank_tiles: int = setting(2000, "labelled training tiles the kNN compares with, at most", ge=8)


class PretrainConfig(Section):
    """sscl pretrain: contrastive pretraining without labels."""

    run: str = setting(..., "run folder to write", free=True, min_length=1)
    seed: int = setting(0, "seed of weights, order and views", ge=0, lt=2**63)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", free=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto: bf16 on a GPU that has it, else fp32")
    data: Annotated[tuple[SourceConfig, ...], BeforeValidator(listed_sources), AfterValidator(one_size), OneOrMore]
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    projection: ProjectionConfig = ProjectionConfig()
    train: PretrainTrainConfig = PretrainTrainConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _weights_say_something(self) -> PretrainConfig:
        given = [source.weight for source in self.data]
        if any(weight is not None for weight in given):
            if None in given:
                raise fault(
                    f"data.{given.index(None)}.weight", "missing, but other sources have one; give it to all or to none"
                )
            if sum(weight for weight in given if weight is not None) <= 0:
                raise fault("data", "the weights of the sources sum to 0; give at least one of them a weight > 0")
        return self


class FinetuneTrainConfig(Section):
    """The training loop with labels."""

    epochs: int = setting(50, "passes over the labelled tiles, at most", ge=1)
    batch_size: int = setting(64, "tiles a step", ge=2)
    steps_per_epoch: int | None = setting(
        None,
        "steps an epoch, tiles drawn again as needed, so that few labels train as long as many; null = one pass",
        ge=1,
    )
    optimizer: Literal["sgd", "lars", "adamw"] = setting("adamw", "the optimizer; adamw with weight_decay=0 is Adam")
    learning_rate: float = setting(1e-4, "peak learning rate of the trunk", gt=0)
    head_learning_rate: float = setting(1e-3, "peak learning rate of the classification head", gt=0)
    weight_decay: float = setting(0.01, "weight decay (none on biases and norms)", ge=0)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: down to 0; multistep: x gamma at each of milestones"
    )
    warmup_epochs: float = setting(2.0, "cosine: epochs of linear warm-up before it", ge=0)
    milestones: Milestones = setting((), "multistep: after these epochs, [2, 6]")
    gamma: float = setting(0.1, "multistep: factor at a milestone", gt=0, le=1)
    freeze_encoder: bool = setting(False, "train the head alone, on fixed features")
    freeze_batch_norm: bool = setting(
        False, "keep the encoder's batch-norm statistics as its weights bring them; for a start from ImageNet"
    )
    loss: Literal["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"] = setting(
        "cross_entropy", "weighted_*: each class by its inverse frequency"
    )
    focal_gamma: float = setting(2.0, "focusing exponent of the focal losses", ge=0)
    balance: Literal["none", "down", "draws"] = setting(
        "none", "down: every class cut to the smallest; draws: classes drawn equally often"
    )
    label_fraction: float = setting(
        1.0, "share of the training labels used, stratified; validation is part of it", gt=0, le=1
    )
    validation_fraction: float = setting(
        0.15, "share of those carved out for validation, where the data set has no validation split", gt=0, lt=1
    )
    select: Literal["balanced_accuracy", "accuracy", "loss"] = setting(
        "balanced_accuracy", "what the best epoch is chosen by, on validation (ties: lower loss)"
    )
    patience: int = setting(15, "stop after this many epochs without a better one", ge=1)
    folds: int | None = setting(
        None,
        "cross-validation: this many parts of the training split, by class and slide, each held out once by a run in "
        "RUN/fold_N; label_fraction and validation_fraction are of what a fold trains on; null = none",
        ge=2,
    )
    fold: int | None = setting(None, "of train.folds train this one alone, from 1, in RUN itself; null = all", ge=1)
    timeout_minutes: float = setting(
        30.0, "torchrun: a rank that hears nothing from the others for so long fails", free=True, gt=0
    )

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> FinetuneTrainConfig:
        if self.fold is not None and self.folds is None:
            raise fault("fold", f"got {self.fold} without train.folds; set train.folds to their number")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise fault("fold", f"must be <= {self.folds} (train.folds), got {self.fold}")
        return self


class ContrastProjectionConfig(ProjectionConfig):
    """The projection head of joint training."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting("mlp_no_norm", "as projection.kind of pretrain")
    hidden: int = setting(512, "width of the mlp's hidden layer", ge=1)
    dim: int = setting(1024, "dimensions of the projection", ge=2)


class ContrastConfig(Section):
    """Joint training: after each step on labels, a contrastive step on the same tiles and on unlabelled ones."""

    kind: Literal["none", "cross_view", "nt_xent"] = setting(
        "none", "none: labels alone; else the loss between a random view of each tile and the tile as it is"
    )
    temperature: float = setting(0.5, "temperature of that loss", gt=0)
    projection: ContrastProjectionConfig = ContrastProjectionConfig()


class FinetuneConfig(Section):
    """sscl finetune: a classifier from labels, on a pretrained or fresh encoder."""

    run: str = setting(..., "run folder to write", free=True, min_length=1)
    seed: int = setting(0, "seed of head, order, views, validation split and label fraction", ge=0, lt=2**63)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", free=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "auto: bf16 on a GPU that has it, else fp32")
    data: DataConfig
    augment: FinetuneAugmentConfig = FinetuneAugmentConfig()
    model: ModelConfig = ModelConfig()
    contrast: ContrastConfig = ContrastConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _contrast_trains_the_encoder(self) -> FinetuneConfig:
        if self.contrast.kind != "none" and self.train.freeze_encoder:
            raise fault(
                "contrast.kind",
                f"must be none with train.freeze_encoder=true, got {self.contrast.kind!r}: the contrastive step trains "
                "the encoder",
            )
        return self


class InspectConfig(Section):
    """sscl data inspect: what is in a data set."""

    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    out: str = setting(..., "folder for the pictures", min_length=1)
    seed: int = setting(0, "seed of the tiles and views shown", ge=0, lt=2**63)
    tiles: int = setting(36, "tiles on the contact sheet", ge=1, le=400)
    progress: bool = setting(True, "show progress bars")
