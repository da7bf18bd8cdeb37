"""What a classifier says of images: its predictions, and its explanations.

N images, K classes, S: side of a tile in pixels.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sscl.evaluate.metrics import FloatArray
from sscl.explain import boxes
from sscl.explain.kinds import MapKind
from sscl.plots import cam as cam_plots
from sscl.words import count, some


@dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """The predictions for N images.

    Attributes:
        names: of the images: paths, or "image 0" and so on. classes: K names, in the order of the probabilities.
        probabilities: (N, K), calibrated unless the model was loaded with calibrate=False.
        decide_from: confidence below which the classifier abstains; None: it never does.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: FloatArray
    decide_from: float | None

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        counts = Counter(self.labels)
        each = some([f"{counts[name]:,} {name}" for name in self.classes])
        below = int((~self.decided).sum())
        abstained = "" if self.decide_from is None else f"; {below:,} below confidence {self.decide_from:.3f}"
        return f"<sscl predictions: {count(len(self), 'image')}: {each}{abstained}>"

    @property
    def confidence(self) -> FloatArray:
        """The probability of the most probable class, (N,)."""
        found: FloatArray = self.probabilities.max(1)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """The most probable class of each image, also where the classifier abstains."""
        return tuple(self.classes[index] for index in self.probabilities.argmax(1))

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Whether the confidence reaches `decide_from`, bool (N,); false: abstained."""
        if self.decide_from is None:
            return np.ones(len(self), dtype=np.bool_)
        return np.asarray(self.confidence >= self.decide_from)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the classifier abstains from an image; empty where it does not."""
        return tuple(
            "" if decided else f"confidence {confidence:.4f} is below {self.decide_from:.4f}"
            for decided, confidence in zip(self.decided, self.confidence.tolist(), strict=True)
        )

    def rows(self) -> list[dict[str, str | float | bool]]:
        """Return one row per image, in the columns of `sscl predict`; `pandas.DataFrame(rows)` is a table."""
        parts = zip(
            self.names,
            self.labels,
            self.probabilities.tolist(),
            self.confidence.tolist(),
            self.decided.tolist(),
            self.reasons,
            strict=True,
        )
        return [
            {
                "path": name,
                "prediction": label,
                **{f"probability_{of}": p for of, p in zip(self.classes, probabilities, strict=True)},
                "confidence": confidence,
                "decided": decided,
                "reason": reason,
            }
            for name, label, probabilities, confidence, decided, reason in parts
        ]


@dataclass(frozen=True, eq=False, repr=False)
class Explanations:
    """Where a classifier looked in N images.

    Attributes:
        predictions: of the same images.
        images: as the classifier saw them, uint8 (N, S, S, 3). source_px: the side each had before, N.
        maps: raw, before ReLU and scaling, enlarged to the tile, float32 (N, S, S); see `cam.class_maps`.
        boxes: around the region that holds the peak, in pixels of the tile; None without positive evidence.
        targets: what each map explains, such as "logit SSA - HP". kind: how the maps were made.
    """

    predictions: Predictions
    images: NDArray[np.uint8]
    source_px: tuple[int, ...]
    maps: NDArray[np.float32]
    boxes: tuple[boxes.Box | None, ...]
    targets: tuple[str, ...]
    kind: MapKind

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        of = some(sorted(set(self.targets)))
        boxed = sum(box is not None for box in self.boxes)
        return f"<sscl explanations: {count(len(self), 'image')}, {boxed:,} with a box; maps of {of}>"

    def heatmap(self, index: int, *, alpha: float = 0.7) -> NDArray[np.uint8]:
        """Return a tile under its map, uint8 (S, S, 3); opacity is alpha at the peak, 0 where there is no evidence."""
        return cam_plots.overlay(self.images[index], boxes.normalise(self.maps[index]), alpha=alpha)

    def boxed(self, index: int) -> NDArray[np.uint8]:
        """Return a tile with its box, uint8 (S, S, 3)."""
        return cam_plots.draw_box(self.images[index], self.boxes[index])
