"""What a fine-tuning needs before its first step: tiles, model and optimizer, new or as a run to resume left them.

N tiles a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sscl import ranks
from sscl.config import FinetuneConfig
from sscl.config.encoders import NO_FILES
from sscl.data.tiles import TileStore, place_store
from sscl.evaluate import model_card
from sscl.explain.cells import map_cells
from sscl.models.checkpoint import Checkpoint, checkpoint_file, load_checkpoint
from sscl.models.classifier import load_classifier
from sscl.models.heads import Classifier, ContrastiveModel, build_projection
from sscl.models.start import Start, resumed_encoder, start_encoder
from sscl.models.sync_batch_norm import synchronise_batch_norm
from sscl.models.weights import read_trunk
from sscl.train import optim
from sscl.train.adaptation import adapt_encoder
from sscl.train.epoch import Best
from sscl.train.frozen import FrozenFeatures, frozen_features
from sscl.train.labelled import LabelledTiles, batch_size_of, epoch_rows, labelled_tiles
from sscl.train.objectives import LabelLoss, build_loss
from sscl.train.schedule import Schedule
from sscl.train.setup import OpenRun, load_last, print_memory, restore, views_of
from sscl.train.step import Views
from sscl.words import count, wrapped


@dataclass(frozen=True)
class Finetuning:
    """All that an epoch needs.

    Attributes:
        data: tiles, and which of them train and validate. batch_size: N.
        start: the encoder as it began, with mean and standard deviation of the pixels.
        origin: of its weights, in words.
        model: the classifier. joint: its encoder under a projection head, None without contrastive steps.
        parallel_model, parallel_joint: the same, with gradients averaged over ranks.
        labels: of all tiles, on the device.
        frozen: features of the training and validation tiles where the head alone is trained on them.
        kept, best: the facts of the checkpoint to go on from, and the best epoch by then; None for a new run.
    """

    config: FinetuneConfig
    opened: OpenRun
    data: LabelledTiles
    batch_size: int
    start: Start
    origin: str
    model: Classifier
    joint: ContrastiveModel | None
    parallel_model: nn.Module
    parallel_joint: nn.Module | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    loss: LabelLoss
    views: Views
    labels: torch.Tensor
    store: TileStore
    validation_store: TileStore
    frozen: FrozenFeatures | None
    kept: Checkpoint | None
    best: Best | None

    @property
    def first_epoch(self) -> int:
        """Epochs that are done already."""
        return 0 if self.kept is None else self.kept.epoch

    @property
    def trained(self) -> nn.ModuleDict:
        """All that is trained: the classifier, or its head alone, and the projection head of joint training."""
        return trained_parts(self.config, self.model, self.joint)


def prepare(config: FinetuneConfig, opened: OpenRun, *, resume: bool = False) -> Finetuning:
    """Return tiles, model and optimizer, as at the start or as the checkpoint to resume left them.

    Raises:
        ValueError: tiles without labels, or too few; weights that do not fit; a checkpoint of another configuration.
    """
    device = opened.device
    torch.manual_seed(config.seed)
    with ranks.first_on_each_machine():
        start = None if resume else start_encoder(config.model)  # before the tiles: its weights may not be had
        data, lines = labelled_tiles(config, progress=opened.progress)
    for line in lines:
        print(line)
    batch_size = batch_size_of(config, tiles=len(data.train), world=opened.world)
    steps = max(1, len(epoch_rows(data.train, data.tiles, config, epoch=0)) // batch_size)

    kept = best = None
    if start is None:
        kept = load_last(opened, config, kind="finetune", fingerprint=data.fingerprint, scale=data.scale)
        best = load_best(opened, data)
        start = resumed_encoder(kept)
    for line in start.suits(data.scale, size_px=config.data.size_px):
        print(line)
    data = replace(data, warnings=(*data.warnings, *start.doubts(data.scale, size_px=config.data.size_px)))
    if kept is not None and features_once(config):  # last.pt has the head alone
        start = replace(start, encoder=load_classifier(opened.folder, device=torch.device("cpu"))[0].encoder)
    adapt_encoder(start.encoder, config, size_px=config.data.size_px)
    model = Classifier(start.encoder, num_classes=len(data.classes)).to(device).to(memory_format=torch.channels_last)
    if config.train.freeze_encoder:
        model.encoder.requires_grad_(False)
    part = batch_size // opened.world
    budget_gb = opened.budget_gb(config.data.device_budget_gb)
    # Joint training has two views of these tiles and of as many unlabelled ones.
    views_at_once = part if config.contrast.kind == "none" else 4 * part
    print_memory(opened, config, model, views=views_at_once, store_bytes=data.tiles.images.nbytes, budget_gb=budget_gb)
    joint = build_joint(config, model, device=device)
    synchronise_batch_norm(model if joint is None else joint)  # the classifier's head has no norm
    new = [model.head] if joint is None else [model.head, joint.projection]
    rates = [(model.encoder, config.train.learning_rate), *((part, config.train.head_learning_rate) for part in new)]
    optimizer = optim.optimizer_of(config.train, rates)
    scaler = opened.scaler()
    if kept is not None:
        restore(kept, opened.folder, model=trained_parts(config, model, joint), optimizer=optimizer, scaler=scaler)

    views = views_of(config, opened, start)
    frozen = frozen_features(config, opened, data, start, views=views) if features_once(config) else None
    place = partial(place_store, device=device, budget_gb=0.0 if frozen else budget_gb)  # then no pixels are needed
    store = place(data.tiles.images)
    return Finetuning(
        config,
        opened,
        data,
        batch_size,
        start,
        origin_of(config, start, resumed=resume),
        model,
        joint,
        parallel_model=ranks.parallel(model if frozen is None else model.head),
        parallel_joint=None if joint is None else ranks.parallel(joint),
        optimizer=optimizer,
        scaler=scaler,
        schedule=Schedule(config.train, steps),
        loss=build_loss(config, data.tiles.labels[data.train], num_classes=len(data.classes), device=device),
        views=views,
        labels=torch.from_numpy(data.tiles.labels).to(device),
        store=store,
        validation_store=store if data.carved else place(data.validation_tiles.images),
        frozen=frozen,
        kept=None if kept is None else kept.without_tensors(),
        best=best,
    )


def load_best(opened: OpenRun, data: LabelledTiles) -> Best:
    """Return the best epoch of the run to resume.

    It may be later than the epoch of last.pt, which is written after it: then that is trained again.

    Raises:
        ValueError: there is none, or it was chosen on other validation tiles.
    """
    found = load_checkpoint(opened.folder / "checkpoints" / "best.pt", kind="finetune", tensors=False)
    assert found.validation is not None
    if not np.array_equal(found.fitted.labels.numpy(), data.validation_tiles.labels[data.validation]):
        raise ValueError("data.root: the validation tiles are not those of the run to resume; leave them as they were")
    return Best({**found.validation, "epoch": int(found.validation["epoch"])}, found.fitted)


def features_once(config: FinetuneConfig) -> bool:
    """Return whether the head alone is trained, on features that are computed once."""
    return config.train.freeze_encoder and config.train.frozen_views != "each_epoch"


def trained_parts(config: FinetuneConfig, model: Classifier, joint: ContrastiveModel | None) -> nn.ModuleDict:
    """Return what is trained as one: a classifier, and the projection head of joint training, if any; or a head."""
    if features_once(config):
        return nn.ModuleDict({"head": model.head})
    return nn.ModuleDict({"classifier": model} | ({} if joint is None else {"projection": joint.projection}))


def origin_of(config: FinetuneConfig, start: Start, *, resumed: bool) -> str:
    """Return where the weights came from, for the model card."""
    weights, before = config.model.weights, start.checkpoint
    if resumed and weights not in (None, *NO_FILES):
        try:
            before = read_trunk(checkpoint_file(str(weights))).checkpoint
        except (FileNotFoundError, ValueError):
            return f"`{Path(str(weights)).name}`, which could not be read when this run was resumed"
    return model_card.origin_of_weights(weights, before)


def build_joint(config: FinetuneConfig, model: Classifier, *, device: torch.device) -> ContrastiveModel | None:
    """Return the classifier's encoder under a projection head, or None without contrastive steps.

    The projection exists during training only and is in no checkpoint.
    """
    if config.contrast.kind == "none":
        return None
    head = config.contrast.projection
    projection = build_projection(model.encoder.num_features, kind=head.kind, hidden=head.hidden, dim=head.dim)
    return ContrastiveModel(model.encoder, projection=projection.to(device))


def announce(job: Finetuning) -> None:
    """Print which encoder it is, how long the epochs are, and how coarse the maps will be."""
    print(wrapped(str(job.start)))
    data, train = job.data, job.config.train
    steps = f"{count(job.schedule.steps_per_epoch, 'step')} per epoch, batch size {job.batch_size}"
    how = steps if train.head == "linear" else f"logistic regression, {count(len(train.c_grid), 'value')} of C"
    print(f"{len(data.train)} training tiles, {len(data.validation)} validation tiles; {how}")
    if train.freeze_encoder and job.frozen is None:
        print(
            wrapped(f"trained: {model_card.learned(train)}; the encoder runs in each (train.frozen_views=none: once)")
        )
    print(wrapped(str(map_cells(job.model, size_px=job.config.data.size_px))))
    warning = job.schedule.warning()
    if warning is not None and train.head == "linear":
        print(warning)
