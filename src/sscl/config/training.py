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
    """Random augmentation of a tile."""

    crop_scale: Range = setting((0.2, 1.0), "area of the random crop as a fraction of the tile, [lowest, highest]")
    crop_ratio: Range = setting((0.75, 4 / 3), "aspect ratio of the crop, width / height, [lowest, highest]")
    hflip_probability: float = setting(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip_probability: float = setting(0.5, "probability of a vertical flip", ge=0, le=1)
    affine_probability: float = setting(
        0.5, "probability of the affine transform (rotation, translation, scale, shear)", ge=0, le=1
    )
    rotation_degrees: float = setting(45.0, "largest rotation in either direction, degrees", ge=0, le=180)
    translation: float = setting(0.1, "largest shift in either direction, as a fraction of the side", ge=0, le=1)
    scale: Range = setting((0.9, 1.1), "scale factor of the affine transform, [lowest, highest]")
    shear_degrees: float = setting(10.0, "largest shear in either direction, degrees", ge=0, le=60)
    blur_probability: float = setting(0.5, "probability of Gaussian blur", ge=0, le=1)
    blur_sigma_px: Range = setting(
        (0.1, 2.0), "standard deviation of the blur, pixels at data.size_px, [lowest, highest]"
    )
    jitter_probability: float = setting(0.8, "probability of colour jitter", ge=0, le=1)
    brightness: float = setting(0.2, "x: the brightness factor is drawn from 1 - x to 1 + x", ge=0)
    contrast: float = setting(0.2, "x: the contrast factor is drawn from 1 - x to 1 + x", ge=0)
    saturation: float = setting(0.2, "x: the saturation factor is drawn from 1 - x to 1 + x", ge=0)
    hue: float = setting(
        0.05, "largest hue shift in either direction, as a fraction of the colour circle", ge=0, le=0.5
    )
    grayscale_probability: float = setting(0.0, "probability of conversion to grayscale", ge=0, le=1)
    stain_probability: float = setting(0.0, "probability of H&E stain jitter, in optical density", ge=0, le=1)
    stain_strength: float = setting(0.2, "x: factors of haematoxylin and eosin are drawn from 1 - x to 1 + x", ge=0)
    stain_shift: float = setting(
        0.05, "largest shift of haematoxylin and eosin in either direction, optical density", ge=0
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> AugmentConfig:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise fault("crop_scale", f"must be within 0 < lowest <= highest <= 1, got {list(self.crop_scale)}")
        for key in ("crop_ratio", "scale"):
            if getattr(self, key)[0] <= 0:
                raise fault(key, f"must be within 0 < lowest <= highest, got {list(getattr(self, key))}")
        return self


class FinetuneAugmentConfig(AugmentConfig):
    """Random augmentation of a tile: milder than in pretraining, so that the class stays visible."""

    crop_scale: Range = setting((0.6, 1.0), "area of the random crop as a fraction of the tile, [lowest, highest]")
    blur_probability: float = setting(0.0, "probability of Gaussian blur", ge=0, le=1)
    hue: float = setting(
        0.04, "largest hue shift in either direction, as a fraction of the colour circle", ge=0, le=0.5
    )


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
    """The encoder and its start."""

    name: EncoderName = setting(
        "resnet50",
        f"architecture: {', '.join(ENCODERS)}, or timm:NAME (needs the extra: pip install 'sscl[timm]'); "
        "resnet18_pathmnist is for tiles of 28 px",
    )
    stem: Literal["standard", "small"] = setting(
        "standard", "first layers: standard = 7x7, stride 2, max pooling; small = 3x3, stride 1, for tiles under 96 px"
    )
    output_stride: Literal[32, 16] = setting(
        32, "tile side / feature map side; 16 gives heatmaps twice as fine, at up to twice the time"
    )
    weights: str | None = setting(
        None,
        "initial weights: null = random; imagenet = torchvision's (of timm:NAME timm's); or an sscl run folder; or a "
        "file of sscl, torchvision, timm, Ciga et al., lightly, solo-learn or MoCo",
        path=True,
    )
    mean: Triple | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, or ImageNet's")
    std: Deviations | None = setting(
        None, "channel standard deviations of pixels in 0-1; null = those of the weights, or ImageNet's"
    )


class EncoderConfig(Section):
    """The encoder, used as it is."""

    model: EncoderName | None = setting(
        None, "architecture, as model.name of pretrain; null = read it from the checkpoint"
    )
    weights: str | None = setting(
        None, "null = random; imagenet; or a run folder or file, as model.weights of pretrain"
    )
    stem: Literal["standard", "small"] = setting(
        "standard", "as model.stem of pretrain; ignored if the weights are an sscl checkpoint"
    )
    size_px: int | None = setting(
        None, "side of its tiles, pixels; null = that of the checkpoint, or data.size_px", ge=16
    )
    mean: Triple | None = setting(None, "channel means of pixels in 0-1; null = those of the weights, or ImageNet's")
    std: Deviations | None = setting(
        None, "channel standard deviations of pixels in 0-1; null = those of the weights, or ImageNet's"
    )
    seed: int = setting(0, "seed of random weights", ge=0)


class ProjectionConfig(Section):
    """The projection head, used during pretraining only."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting(
        "mlp", "linear: one layer (Jain & Lynn); mlp: one hidden layer (SimCLR); mlp_no_norm: mlp without batch norm"
    )
    hidden: int = setting(2048, "width of the hidden layer of mlp", ge=1)
    dim: int = setting(128, "dimensions of the projection that the loss compares", ge=2)


class LogConfig(Section):
    """Logging, besides metrics.jsonl."""

    tensorboard: bool = setting(
        False, "write TensorBoard events too (needs the extra: pip install 'sscl[tensorboard]')", free=True
    )
    progress: bool = setting(True, "show progress bars", free=True)


Milestones = Annotated[tuple[int, ...], Listed]


class PretrainTrainConfig(Section):
    """The contrastive training loop."""

    epochs: int = setting(100, "passes over the tiles", ge=1)
    batch_size: int = setting(128, "tiles per step; each gives two views", ge=2)
    optimizer: Literal["sgd", "lars", "adamw"] = setting("sgd", "optimizer")
    learning_rate: float = setting(0.06, "peak learning rate before scaling", gt=0)
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = setting(
        "linear", "learning_rate is multiplied by batch_size / 256 (linear), sqrt(batch_size) (sqrt) or 1 (none)"
    )
    weight_decay: float = setting(5e-4, "weight decay; not applied to biases and normalisation layers", ge=0)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: decays to 0; multistep: multiplied by gamma at each of milestones"
    )
    warmup_epochs: float = setting(10.0, "cosine: epochs of linear warm-up at the start", ge=0)
    milestones: Milestones = setting((), "multistep: epochs after which the learning rate drops, as in [2, 6]")
    gamma: float = setting(0.1, "multistep: factor of the learning rate at a milestone", gt=0, le=1)
    loss: Literal["nt_xent", "cross_view"] = setting(
        "nt_xent", "nt_xent: 2N - 2 negatives of both views; cross_view: InfoNCE, N - 1 negatives of the other view"
    )
    temperature: float = setting(0.7, "temperature of the loss", gt=0)
    second_view: Literal["augmented", "clean"] = setting(
        "augmented", "what a view is compared with: another augmented view, or the tile without augmentation"
    )
    mix: Literal["batch", "source"] = setting(
        "batch",
        "with several sources: batch = tiles of all sources in each batch; source = each batch is of one source",
    )
    freeze_batch_norm: bool = setting(
        False, "do not update the batch-norm statistics of the initial weights; an option when starting from ImageNet"
    )
    stop_after_epoch: int | None = setting(
        None, "stop after this many epochs in total; --resume continues", free=True, ge=1
    )
    microbatch: int | None = setting(
        None,
        "tiles per forward pass on each device, for batches that exceed its memory: gradient caching gives the "
        "gradient of the whole batch in about 4/3 of the time; batch norm sees a microbatch at a time; null = all",
        ge=1,
    )
    compile: bool = setting(
        False, "torch.compile of augmentation, model and loss: minutes at the start, then faster steps"
    )
    profile: bool = setting(
        False, "profile some steps of the first epoch: write trace.json and print the largest costs", free=True
    )
    timeout_minutes: float = setting(
        30.0, "torchrun: fail if another rank has not answered for this many minutes", free=True, gt=0
    )


class HealthConfig(Section):
    """Health metrics: does pretraining learn? Measured after each epoch."""

    tiles: int = setting(512, "tiles whose embeddings are measured; held out of training if they have labels", ge=8)
    neighbours: int = setting(20, "k of the k-NN classifier on held-out labelled tiles", ge=1)
    bank_tiles: int = setting(2000, "largest number of labelled training tiles that the k-NN classifier searches", ge=8)


class PretrainConfig(Section):
    """Train an encoder by contrastive learning (SimCLR), without labels."""

    run: str = setting(..., "run folder to write", free=True, min_length=1)
    seed: int = setting(0, "seed of initial weights, tile order and augmentation", ge=0, lt=2**63)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", free=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 if the GPU supports it, otherwise fp32"
    )
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

    epochs: int = setting(50, "largest number of passes over the labelled tiles; see patience", ge=1)
    batch_size: int = setting(64, "tiles per step", ge=2)
    steps_per_epoch: int | None = setting(
        None,
        "steps per epoch, with tiles repeated as needed, so that few labels train as long as many; null = one pass",
        ge=1,
    )
    optimizer: Literal["sgd", "lars", "adamw"] = setting("adamw", "optimizer; adamw with weight_decay=0 is Adam")
    learning_rate: float = setting(1e-4, "peak learning rate of the encoder", gt=0)
    head_learning_rate: float = setting(1e-3, "peak learning rate of the classification head", gt=0)
    weight_decay: float = setting(0.01, "weight decay; not applied to biases and normalisation layers", ge=0)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: decays to 0; multistep: multiplied by gamma at each of milestones"
    )
    warmup_epochs: float = setting(2.0, "cosine: epochs of linear warm-up at the start", ge=0)
    milestones: Milestones = setting((), "multistep: epochs after which the learning rate drops, as in [2, 6]")
    gamma: float = setting(0.1, "multistep: factor of the learning rate at a milestone", gt=0, le=1)
    freeze_encoder: bool = setting(False, "train the classification head only, on fixed features")
    freeze_batch_norm: bool = setting(
        False, "do not update the batch-norm statistics of the initial weights; an option when starting from ImageNet"
    )
    loss: Literal["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"] = setting(
        "cross_entropy", "loss; weighted_* weights each class by its inverse frequency"
    )
    focal_gamma: float = setting(2.0, "focusing exponent gamma of the focal losses", ge=0)
    balance: Literal["none", "down", "draws"] = setting(
        "none", "down: every class is cut to the size of the smallest; draws: classes are drawn equally often"
    )
    label_fraction: float = setting(
        1.0, "fraction of the training labels to use, stratified by class; validation tiles are part of it", gt=0, le=1
    )
    validation_fraction: float = setting(
        0.15, "fraction of the used tiles held out for validation, if the data set has no validation split", gt=0, lt=1
    )
    select: Literal["balanced_accuracy", "accuracy", "loss"] = setting(
        "balanced_accuracy", "validation metric that selects the best epoch; ties: lower loss"
    )
    patience: int = setting(15, "stop after this many epochs without improvement", ge=1)
    folds: int | None = setting(
        None,
        "cross-validation of the training split in this many folds, stratified by class and grouped by slide: "
        "RUN/fold_N holds out fold N; label_fraction and validation_fraction apply to its other tiles; null = none",
        ge=2,
    )
    fold: int | None = setting(
        None, "train only this fold, counted from 1, in RUN itself; null = all of train.folds", ge=1
    )
    timeout_minutes: float = setting(
        30.0, "torchrun: fail if another rank has not answered for this many minutes", free=True, gt=0
    )

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> FinetuneTrainConfig:
        if self.fold is not None and self.folds is None:
            raise fault("fold", f"got {self.fold} without train.folds; set train.folds to their number")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise fault("fold", f"must be <= {self.folds} (train.folds), got {self.fold}")
        return self


class ContrastProjectionConfig(ProjectionConfig):
    """The projection head of the contrastive loss."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting("mlp_no_norm", "as projection.kind of pretrain")
    hidden: int = setting(512, "width of the hidden layer of mlp", ge=1)
    dim: int = setting(1024, "dimensions of the projection that the loss compares", ge=2)


class ContrastConfig(Section):
    """Joint training: after each supervised step, a contrastive step on the same and on unlabelled tiles."""

    kind: Literal["none", "cross_view", "nt_xent"] = setting(
        "none", "none: supervised training only; otherwise the loss between a tile and its augmented view"
    )
    temperature: float = setting(0.5, "temperature of the contrastive loss", gt=0)
    projection: ContrastProjectionConfig = ContrastProjectionConfig()


class FinetuneConfig(Section):
    """Train a classifier with labels, on a pretrained encoder or from scratch."""

    run: str = setting(..., "run folder to write", free=True, min_length=1)
    seed: int = setting(
        0, "seed of the head, tile order, augmentation, validation split and label fraction", ge=0, lt=2**63
    )
    device: str = setting("auto", "auto, cpu, cuda or cuda:N", free=True)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 if the GPU supports it, otherwise fp32"
    )
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
    """Count the tiles of a data set, and show samples, class distribution and augmented views."""

    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    out: str = setting(..., "folder to write", min_length=1)
    seed: int = setting(0, "seed of the tiles and augmentations that are shown", ge=0, lt=2**63)
    tiles: int = setting(36, "tiles on the contact sheet", ge=1, le=400)
    progress: bool = setting(True, "show progress bars")
