"""The maps of `sscl gradcam`, whatever they are for: those to draw, those that are checked, those held to truth masks.

N tiles, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from sscl import augment
from sscl.config import DataConfig, GradcamConfig
from sscl.data.load import all_rows
from sscl.data.mhist import load_truth_masks
from sscl.data.tiles import Tiles, TileStore
from sscl.explain import box_checks, boxes, cam
from sscl.explain.checks import check_maps
from sscl.explain.heatmaps import Heatmap, heatmaps
from sscl.explain.kinds import MapKind
from sscl.explain.records import Localisation, MapChecks
from sscl.explain.targets import Target, target_classes
from sscl.models import features
from sscl.models.checkpoint import Checkpoint
from sscl.models.classifier import blank_classifier
from sscl.models.heads import Classifier


@dataclass(frozen=True, eq=False)
class Explainer:
    """Tiles, on the device, and how their maps are made.

    Attributes:
        mean, std: (3,), of the checkpoint. precision: of the logits, as in eval; maps are computed in float32.
    """

    tiles: Tiles
    store: TileStore
    target: Target
    kind: MapKind
    mean: torch.Tensor
    std: torch.Tensor
    precision: str
    config: GradcamConfig

    def maps(
        self, model: Classifier, rows: NDArray[np.int64], name: str, *, logits: torch.Tensor | None = None
    ) -> Iterator[Heatmap]:
        """Yield the heatmap of each tile at `rows`.

        Args:
            name: of the progress bar. logits: of all tiles, (N, K), whose predictions are explained; None: the model's.
        """
        return heatmaps(
            model,
            self.store,
            rows,
            target=self.target if logits is None else target_classes(logits[torch.from_numpy(rows)], self.target),
            mean=self.mean,
            std=self.std,
            kind=self.kind,
            batch_size=self.config.batch_size,
            progress=self.bar(name),
        )

    def logits(self, model: Classifier) -> torch.Tensor:
        """Return the logits of all tiles, (N, K)."""
        return features.outputs(
            model,
            self.store,
            all_rows(self.tiles),
            mean=self.mean,
            std=self.std,
            batch_size=self.config.batch_size,
            precision=self.precision,
            progress=self.bar("predict"),
        )

    def pixels(self, rows: torch.Tensor) -> torch.Tensor:
        """Return tiles as the model sees them, (len(rows), 3, S, S)."""
        return augment.normalise(augment.to_unit(self.store.gather(rows)), mean=self.mean, std=self.std)

    def bar(self, name: str) -> str | None:
        return name if self.config.progress else None


def random_classifier(checkpoint: Checkpoint, *, seed: int) -> Classifier:
    """Return the checkpoint's classifier as it is before training, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return blank_classifier(checkpoint).eval()


def localise(
    model: Classifier, random_model: Classifier, explainer: Explainer, data: DataConfig
) -> Localisation | None:
    """Return how often the maps of all tiles hit the truth masks, beside baselines; None without masks."""
    config, tiles = explainer.config, explainer.tiles
    if config.images is not None or data.source not in ("mhist", "synthetic"):
        return None
    masks = load_truth_masks(data.root, tiles.ids, size_px=data.size_px)
    if masks is None or not masks.any():
        return None
    every = all_rows(tiles)

    def maps(of: Classifier, name: str) -> Iterator[NDArray[np.float32]]:
        return (heatmap.enlarged for heatmap in explainer.maps(of, every, name))

    def rates(of: Iterable[NDArray[np.float32]]) -> box_checks.Hits:
        return box_checks.localisation_rates(
            of, masks, threshold=config.threshold, all_thresholds=config.checks, groups=tiles.groups
        )

    ours = rates(maps(model, "this model"))
    baselines = {
        "centre": rates(repeat(boxes.centre_map(data.size_px), len(tiles))),
        "random weights": rates(maps(random_model, "random weights")),
        "whole tile": box_checks.whole_tile_rates(masks, all_thresholds=config.checks, groups=tiles.groups),
    }
    groups = None if tiles.groups is None else tiles.groups[masks.any((1, 2))]
    return Localisation(
        this_model=ours.rates,
        centre=baselines["centre"].rates,
        random_weights=baselines["random weights"].rates,
        whole_tile=baselines["whole tile"].rates,
        gains={name: box_checks.gain(ours.overlaps, of.overlaps, groups=groups) for name, of in baselines.items()},
    )


def check(
    model: Classifier, random_models: Sequence[Classifier], explainer: Explainer, logits: torch.Tensor
) -> MapChecks:
    """Return the checks of the maps, on tiles drawn by the seed. logits: of all tiles, (N, K)."""
    config = explainer.config

    def explain(of: torch.nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return cam.class_maps(cast(Classifier, of), images, target=classes, kind=explainer.kind)[0]

    drawn = np.random.default_rng(config.random_seed).permutation(len(logits))[: config.check_tiles]
    rows = torch.from_numpy(np.sort(drawn))
    images = explainer.pixels(rows)
    return check_maps(
        model,
        images,
        target_classes(logits[rows], explainer.target).to(images.device),
        explain=explain,
        random_models=random_models,
        groups=None if explainer.tiles.groups is None else explainer.tiles.groups[rows.numpy()],
        threshold=config.threshold,
        seed=config.random_seed,
        batch_size=config.batch_size,
        progress=config.progress,
    )
