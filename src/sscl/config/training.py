"""The commands that train, pretrain and finetune; and data inspect, which shows what they see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sscl.config.adaptation import CHECKPOINTING, LAYER_DECAY, Lora, LoraConfig, check_adaptation
from sscl.config.augmentation import AugmentConfig, FinetuneAugmentConfig
from sscl.config.data import DataConfig, SourceConfig, listed_sources, one_size
from sscl.config.encoders import WIDEST, ModelConfig, ProjectionConfig
from sscl.config.messages import shown
from sscl.config.sections import (
    LARGEST_BATCH,
    SEEDS,
    Listed,
    OneOrMore,
    Precision,
    Section,
    fault,
    precision_setting,
    setting,
)

MOST_EPOCHS = 100_000
MOST_VIEWS = 100  # of train.view_count


def _few(views: object) -> object:
    """Return a number of views, or refuse more than MOST_VIEWS and say why."""
    if isinstance(views, int) and views > MOST_VIEWS:
        raise ValueError(
            f"must be at most {MOST_VIEWS}, got {views}: each view is a pass over the tiles and a file in the cache; "
            "train.frozen_views=each_epoch has new views in each epoch and keeps none"
        )
    return views


class LogConfig(Section):
    """Logging, besides metrics.jsonl."""

    tensorboard: bool = setting(
        False, "write TensorBoard events too (needs the extra: pip install 'sscl[tensorboard]')", free=True
    )
    wandb: bool = setting(
        False, "log to Weights & Biases too (needs the extra: pip install 'sscl[wandb]', and wandb login)", free=True
    )
    wandb_project: str = setting("sscl", "project there", free=True, min_length=1, max_length=128)
    wandb_name: str | None = setting(
        None, "name of the run there; null = that of the run folder", free=True, min_length=1, max_length=128
    )
    wandb_mode: Literal["online", "offline"] | None = setting(
        None,
        "offline: keep it in RUN/wandb for wandb sync; null = WANDB_MODE of the environment, else online",
        free=True,
    )
    every_seconds: float = setting(
        30.0,
        "draw curves.png, and measure the health of pretraining, at most this often and after the last epoch, "
        "s; 0 = after every epoch",
        free=True,
        ge=0,
        le=86_400,
    )


C_GRID = tuple(10.0**power for power in range(-4, 4))
Strengths = Annotated[tuple[Annotated[float, Field(ge=1e-10, le=1e10)], ...], Listed]
Milestones = Annotated[tuple[Annotated[int, Field(ge=1, le=MOST_EPOCHS)], ...], Listed]


class PretrainTrainConfig(Section):
    """The contrastive training loop."""

    epochs: int = setting(100, "passes over the tiles", ge=1, le=MOST_EPOCHS, common=True)
    batch_size: int = setting(128, "tiles per step; each gives two views", ge=2, le=LARGEST_BATCH, common=True)
    optimizer: Literal["sgd", "lars", "adamw"] = setting("sgd", "optimizer")
    learning_rate: float = setting(0.06, "peak learning rate before scaling", gt=0, le=100, common=True)
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = setting(
        "linear", "learning_rate is multiplied by batch_size / 256 (linear), sqrt(batch_size) (sqrt) or 1 (none)"
    )
    weight_decay: float = setting(5e-4, "weight decay; not applied to biases and normalisation layers", ge=0, le=10)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: decays to 0; multistep: multiplied by gamma at each of milestones"
    )
    warmup_epochs: float = setting(10.0, "cosine: epochs of linear warm-up at the start", ge=0, le=MOST_EPOCHS)
    milestones: Milestones = setting((), "multistep: epochs after which the learning rate drops, as in [2, 6]")
    gamma: float = setting(0.1, "multistep: factor of the learning rate at a milestone", gt=0, le=1)
    loss: Literal["nt_xent", "cross_view"] = setting(
        "nt_xent", "nt_xent: 2N - 2 negatives of both views; cross_view: InfoNCE, N - 1 negatives of the other view"
    )
    temperature: float = setting(0.7, "temperature of the loss", ge=1e-3, le=100, common=True)
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
    lora: Lora = LoraConfig()
    layer_decay: float = setting(1.0, LAYER_DECAY, gt=0, le=1)
    stop_after_epoch: int | None = setting(
        None, "stop after this many epochs in total; --resume continues", free=True, ge=1, le=MOST_EPOCHS
    )
    gradient_checkpointing: bool = setting(False, CHECKPOINTING, free=True)
    microbatch: int | None = setting(
        None,
        "tiles per forward pass on each device, for batches that exceed its memory: gradient caching gives the "
        "gradient of the whole batch in 1.4 to 1.7 times the time; batch norm sees a microbatch at a time; null = all",
        ge=1,
        le=LARGEST_BATCH,
    )
    compile: bool = setting(
        False,
        "torch.compile of augmentation, model and loss: a minute at the start, then faster steps on a GPU",
    )
    profile: bool = setting(
        False, "profile some steps of the first epoch: write trace.json and print the largest costs", free=True
    )
    timeout_minutes: float = setting(
        30.0, "torchrun: fail if another rank has not answered for this many minutes", free=True, gt=0, le=10_080
    )

    @property
    def planned(self) -> int:
        """Rows of metrics.jsonl of a whole training."""
        return self.epochs

    @model_validator(mode="after")
    def _adaptation_goes_together(self) -> PretrainTrainConfig:
        check_adaptation(
            self.lora,
            layer_decay=self.layer_decay,
            checkpointing=self.gradient_checkpointing,
            optimizer=self.optimizer,
            compiled=self.compile,
        )
        return self


class HealthConfig(Section):
    """Health metrics: does pretraining learn? Measured every log.every_seconds and after the last epoch."""

    tiles: int = setting(
        512, "tiles whose embeddings are measured; held out of training if they have labels", ge=8, le=1_000_000
    )
    neighbours: int = setting(20, "k of the k-NN classifier on held-out labelled tiles", ge=1, le=10_000)
    bank_tiles: int = setting(
        2000, "largest number of labelled training tiles that the k-NN classifier searches", ge=8, le=1_000_000
    )


class PretrainConfig(Section):
    """Train an encoder by contrastive learning (SimCLR), without labels."""

    run: str = setting(..., "run folder to write", free=True, path=True, min_length=1)
    seed: int = setting(0, "seed of initial weights, tile order and augmentation", ge=0, lt=SEEDS)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", free=True, common=True)
    precision: Precision = precision_setting()
    deterministic: bool = setting(
        False, "the same bits from the same run on the same GPUs, more slowly; torch warns where it cannot", free=True
    )
    data: Annotated[tuple[SourceConfig, ...], BeforeValidator(listed_sources), AfterValidator(one_size), OneOrMore]
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    projection: ProjectionConfig = ProjectionConfig()
    train: PretrainTrainConfig = PretrainTrainConfig()
    health: HealthConfig = HealthConfig()
    log: LogConfig = LogConfig()
    progress: bool = setting(True, "show progress bars; also log.progress", free=True)

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

    epochs: int = setting(
        50, "largest number of passes over the labelled tiles; see patience", ge=1, le=MOST_EPOCHS, common=True
    )
    batch_size: int = setting(64, "tiles per step", ge=2, le=LARGEST_BATCH, common=True)
    steps_per_epoch: int | None = setting(
        None,
        "steps per epoch, with tiles repeated as needed, so that few labels train as long as many; null = one pass",
        ge=1,
        le=1_000_000,
    )
    optimizer: Literal["sgd", "lars", "adamw"] = setting("adamw", "optimizer; adamw with weight_decay=0 is Adam")
    learning_rate: float = setting(1e-4, "peak learning rate of the encoder", gt=0, le=100, common=True)
    head_learning_rate: float = setting(1e-3, "peak learning rate of the classification head", gt=0, le=100)
    weight_decay: float = setting(0.01, "weight decay; not applied to biases and normalisation layers", ge=0, le=10)
    momentum: float = setting(0.9, "momentum of sgd and lars", ge=0, lt=1)
    schedule: Literal["cosine", "multistep"] = setting(
        "cosine", "cosine: decays to 0; multistep: multiplied by gamma at each of milestones"
    )
    warmup_epochs: float = setting(2.0, "cosine: epochs of linear warm-up at the start", ge=0, le=MOST_EPOCHS)
    milestones: Milestones = setting((), "multistep: epochs after which the learning rate drops, as in [2, 6]")
    gamma: float = setting(0.1, "multistep: factor of the learning rate at a milestone", gt=0, le=1)
    freeze_encoder: bool = setting(
        False, "train the classification head only, on features that are computed once and kept in the cache"
    )
    frozen_views: Literal["none", "symmetries", "random", "each_epoch"] = setting(
        "none",
        "freeze_encoder: the views of a training tile whose features the head learns from: none = the tile as it is; "
        "symmetries = its 8 flips and rotations; random = view_count random views (augment); each_epoch = another "
        "random view in each epoch, for which the encoder runs in each (slow). All but the last are computed once",
    )
    view_count: Annotated[int, BeforeValidator(_few)] = setting(
        8, "frozen_views=random: random views of each training tile", ge=1, le=MOST_VIEWS
    )
    head: Literal["linear", "logistic"] = setting(
        "linear",
        "how the head is fitted: linear = by epochs of the optimizer; logistic = with freeze_encoder, logistic "
        "regression (L-BFGS) with C chosen on validation tiles: the classifier of sscl probe. Both are a linear layer",
    )
    c_grid: Strengths = setting(
        C_GRID, "head=logistic: values of C to choose from, the inverse strength of the L2 penalty"
    )
    freeze_batch_norm: bool = setting(
        False, "do not update the batch-norm statistics of the initial weights; an option when starting from ImageNet"
    )
    lora: Lora = LoraConfig()
    layer_decay: float = setting(1.0, LAYER_DECAY, gt=0, le=1)
    gradient_checkpointing: bool = setting(False, CHECKPOINTING, free=True)
    loss: Literal["cross_entropy", "weighted_cross_entropy", "focal", "weighted_focal"] = setting(
        "cross_entropy", "loss; weighted_* weights each class by its inverse frequency"
    )
    focal_gamma: float = setting(2.0, "focusing exponent gamma of the focal losses", ge=0, le=100)
    balance: Literal["none", "down", "draws"] = setting(
        "none", "down: every class is cut to the size of the smallest; draws: classes are drawn equally often"
    )
    label_fraction: float = setting(
        1.0,
        "fraction of the training labels to use, stratified by class; validation tiles are part of it",
        gt=0,
        le=1,
        common=True,
    )
    validation_fraction: float = setting(
        0.15, "fraction of the used tiles held out for validation, if the data set has no validation split", gt=0, lt=1
    )
    select: Literal["balanced_accuracy", "accuracy", "loss"] = setting(
        "balanced_accuracy", "validation metric that selects the best epoch; ties: lower loss"
    )
    patience: int = setting(15, "stop after this many epochs without improvement", ge=1, le=MOST_EPOCHS)
    stop_after_epoch: int | None = setting(
        None, "stop after this many epochs in total; --resume continues", free=True, ge=1, le=MOST_EPOCHS
    )
    folds: int | None = setting(
        None,
        "cross-validation of the training split in this many folds, stratified by class and grouped by slide: "
        "RUN/fold_N holds out fold N; label_fraction and validation_fraction apply to its other tiles; null = none",
        ge=2,
        le=1000,
    )
    fold: int | None = setting(
        None, "train only this fold, counted from 1, in RUN itself; null = all of train.folds", ge=1, le=1000
    )
    timeout_minutes: float = setting(
        30.0, "torchrun: fail if another rank has not answered for this many minutes", free=True, gt=0, le=10_080
    )

    @property
    def planned(self) -> int:
        """Rows of metrics.jsonl of a whole training: epochs, or values of C."""
        return self.epochs if self.head == "linear" else len(self.c_grid)

    @model_validator(mode="after")
    def _adaptation_goes_together(self) -> FinetuneTrainConfig:
        check_adaptation(
            self.lora,
            layer_decay=self.layer_decay,
            checkpointing=self.gradient_checkpointing,
            optimizer=self.optimizer,
            frozen=self.freeze_encoder,
        )
        return self

    @model_validator(mode="after")
    def _fold_is_one_of_them(self) -> FinetuneTrainConfig:
        if self.fold is not None and self.folds is None:
            raise fault("fold", f"got {self.fold} without train.folds; set train.folds to their number")
        if self.fold is not None and self.folds is not None and self.fold > self.folds:
            raise fault("fold", f"must be <= {self.folds} (train.folds), got {self.fold}")
        if self.stop_after_epoch is not None and self.folds is not None:
            raise fault("stop_after_epoch", "must be null with train.folds: a fold is predicted when it has ended")
        return self

    @model_validator(mode="after")
    def _frozen_keys_go_together(self) -> FinetuneTrainConfig:
        usual = FinetuneTrainConfig.model_fields
        once = self.freeze_encoder and self.frozen_views != "each_epoch"
        if self.frozen_views != usual["frozen_views"].default and not self.freeze_encoder:
            raise fault("frozen_views", f"got {self.frozen_views!r} without train.freeze_encoder=true; set that too")
        if self.view_count != usual["view_count"].default and not (once and self.frozen_views == "random"):
            raise fault("view_count", f"got {self.view_count} without train.frozen_views=random; set that too")
        if self.head == "linear":
            if self.c_grid != usual["c_grid"].default:
                raise fault("c_grid", f"got {shown(self.c_grid)} without train.head=logistic; set that too")
            return self
        if not once:
            lacks = "frozen_views=none, symmetries or random" if self.freeze_encoder else "freeze_encoder=true"
            raise fault("head", f"logistic is fitted to features that are computed once; set train.{lacks}")
        for key, found, allowed in (
            ("loss", self.loss, ("cross_entropy", "weighted_cross_entropy")),
            ("select", self.select, ("balanced_accuracy",)),
            ("stop_after_epoch", self.stop_after_epoch, (None,)),
        ):
            if found not in allowed:
                raise fault(
                    key, f"with train.head=logistic must be {' or '.join(map(shown, allowed))}, got {shown(found)}"
                )
        if not self.c_grid or len(set(self.c_grid)) < len(self.c_grid):
            raise fault("c_grid", f"must be one or more different numbers, got {shown(self.c_grid)}")
        return self


class ContrastProjectionConfig(ProjectionConfig):
    """The projection head of the contrastive loss."""

    kind: Literal["linear", "mlp", "mlp_no_norm"] = setting("mlp_no_norm", "as projection.kind of pretrain")
    hidden: int = setting(512, "width of the hidden layer of mlp", ge=1, le=WIDEST)
    dim: int = setting(1024, "dimensions of the projection that the loss compares", ge=2, le=WIDEST)


class ContrastConfig(Section):
    """Joint training: after each supervised step, a contrastive step on the same and on unlabelled tiles."""

    kind: Literal["none", "cross_view", "nt_xent"] = setting(
        "none", "none: supervised training only; otherwise the loss between a tile and its augmented view"
    )
    temperature: float = setting(0.5, "temperature of the contrastive loss", ge=1e-3, le=100)
    projection: ContrastProjectionConfig = ContrastProjectionConfig()


class FinetuneConfig(Section):
    """Train a classifier with labels, on a pretrained encoder or from scratch."""

    run: str = setting(..., "run folder to write", free=True, path=True, min_length=1)
    seed: int = setting(
        0, "seed of the head, tile order, augmentation, validation split and label fraction", ge=0, lt=SEEDS
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", free=True, common=True)
    precision: Precision = precision_setting()
    deterministic: bool = setting(
        False, "the same bits from the same run on the same GPUs, more slowly; torch warns where it cannot", free=True
    )
    data: DataConfig
    augment: FinetuneAugmentConfig = FinetuneAugmentConfig()
    model: ModelConfig = ModelConfig()
    contrast: ContrastConfig = ContrastConfig()
    train: FinetuneTrainConfig = FinetuneTrainConfig()
    log: LogConfig = LogConfig()
    progress: bool = setting(True, "show progress bars; also log.progress", free=True)

    @model_validator(mode="after")
    def _contrast_trains_the_encoder(self) -> FinetuneConfig:
        if self.contrast.kind != "none" and self.train.freeze_encoder:
            raise fault(
                "contrast.kind",
                f"must be none with train.freeze_encoder=true, got {self.contrast.kind!r}: the contrastive step trains "
                "the encoder",
            )
        return self


def sources_of(config: PretrainConfig | FinetuneConfig) -> dict[str, DataConfig]:
    """Return the sets of a training by their keys: data, or data.0 and so on of several."""
    sources = config.data if isinstance(config.data, tuple) else (config.data,)
    return {"data" if len(sources) == 1 else f"data.{i}": source for i, source in enumerate(sources)}


class InspectConfig(Section):
    """Count the tiles of a data set, and show samples, class distribution and augmented views."""

    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    out: str = setting(..., "folder to write", path=True, min_length=1)
    seed: int = setting(0, "seed of the tiles and augmentations that are shown", ge=0, lt=SEEDS, common=True)
    tiles: int = setting(36, "tiles on the contact sheet", ge=1, le=400, common=True)
    progress: bool = setting(True, "show progress bars")
