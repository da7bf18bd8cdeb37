"""A fine-tuned classifier in a notebook or a program: `sscl.load(run)` predicts, explains and embeds tiles.

N images, K classes, C features, S: side of a tile in pixels.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sscl.answers import Explanations, Predictions
from sscl.config.maps import BOX_THRESHOLD
from sscl.data import files
from sscl.data.files import Images, Item
from sscl.data.images import Fit
from sscl.data.stain import normalise_stain
from sscl.data.tiles import upload
from sscl.device import Later, describe_device, pick_device, tune
from sscl.evaluate import calibration, decisions
from sscl.evaluate.metrics import FloatArray
from sscl.explain import boxes
from sscl.explain.choice import of_model, weighed
from sscl.explain.heatmaps import heatmaps_of_batches
from sscl.explain.kinds import MapKind
from sscl.explain.targets import AnyTarget, describe_target, target_classes
from sscl.models import features
from sscl.models.checkpoint import Checkpoint, unfinished_notes
from sscl.models.classifier import inference_precision, load_classifier, positive_class
from sscl.models.heads import Classifier
from sscl.models.pixels import normalisation
from sscl.progress import Bar


class Unfinished(UserWarning):
    """The training of a classifier has not ended."""


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A fine-tuned classifier with all that its run chose on training and validation tiles.

    Images are one, or a list, of: a file, a folder (all images below it) or a CSV list (see `files.find_images`), a PIL
    image, a uint8 array (H, W, 3); or an array (N, H, W, 3). All are resized to `size_px`; `fit` says what becomes of
    those that are not square. What `sscl finetune` would refuse as a tile is refused here, in one line that names it.

    Attributes:
        classifier: the network, in evaluation mode, on `device`. checkpoint: its facts.
        temperature: logits are divided by it before they become probabilities.
        decide_from: confidence below which it abstains; None: it never does.
        operating_point: call the positive class if its probability is at least this; None: there is none.
        tta: whether logits and features are averaged over the 8 flips and rotations of a tile.
        precision: of the encoder, fp32, bf16 or fp16; logits are float32 in each, and maps are computed in fp32.
    """

    classifier: Classifier
    checkpoint: Checkpoint
    device: torch.device
    temperature: float
    decide_from: float | None
    operating_point: float | None
    tta: bool
    precision: str = "fp32"

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, in the order of the probabilities."""
        return self.checkpoint.classes

    @property
    def size_px(self) -> int:
        """Side of the tiles it was trained on, pixels."""
        return self.checkpoint.size_px

    @property
    def mpp(self) -> float | None:
        """µm per pixel of the tiles it was trained on, at `size_px`, the median; None: not known."""
        return self.checkpoint.mpp

    @property
    def positive(self) -> str | None:
        """The positive class: SSA, else the second of two; None of more than two."""
        index = positive_class(self.classes, None)
        return None if index is None else self.classes[index]

    @property
    def stain(self) -> str:
        """The stain normalisation it was trained with, applied to each new tile separately: none, or a method."""
        return self.checkpoint.finetune_config.data.stain

    @property
    def fit(self) -> Fit:
        """What became of images that are not square in training: refuse, crop or resize; the default for new ones."""
        return self.checkpoint.finetune_config.data.fit

    def __repr__(self) -> str:
        abstains = "never abstains" if self.decide_from is None else f"abstains below {self.decide_from:.3f}"
        return (
            f"<sscl model: {self.checkpoint.encoder_name}, {' / '.join(self.classes)}, tiles of {self.size_px} px, "
            f"{self.checkpoint.scale}, "
            f"temperature {self.temperature:.3f}, {abstains}, {describe_device(self.device)}>"
        )

    def predict(
        self,
        images: Images,
        *,
        names: Sequence[str] | None = None,
        fit: Fit | None = None,
        batch_size: int = 128,
        progress: bool = False,
    ) -> Predictions:
        """Return the predictions for the images.

        Args:
            names: what to call them, instead of their paths or numbers. batch_size: images at a time.
            fit: what becomes of those that are not square, see `images.decode_image`; None: as in training.
            progress: show a bar.

        Raises:
            ValueError, FileNotFoundError: an image that cannot be used, in one line that names it; or no image.
        """
        listed, items = files.listed(images, names)
        found = []
        with _bar(len(items), progress) as bar:
            for batch, predictions in self.stream(items, names=listed, fit=fit, batch_size=batch_size):
                _refuse(batch, items, listed)
                found.append(predictions.probabilities)
                bar.update(len(predictions))
        return self.answers(listed, np.concatenate(found))

    def stream(
        self, items: Sequence[Item], *, names: Sequence[str], fit: Fit | None = None, batch_size: int = 128
    ) -> Generator[tuple[files.Batch, Predictions], None, None]:
        """Yield the tiles of each batch and their predictions; what cannot be used is named in the batch and left out.

        Memory does not grow with the number of images: the next batches are decoded while one is predicted.

        Args:
            items: files, PIL images and arrays. names: of each. fit, batch_size: as for `predict`.
        """
        for batch, logits in self._stream(self.classifier, items, fit=fit, batch_size=batch_size):
            yield batch, self.answers([names[row] for row in batch.rows], self._probabilities(logits))

    def stream_tiles(
        self, tiles: Generator[files.Batch, None, None], *, pad_to: int = 0
    ) -> Generator[tuple[files.Batch, FloatArray], None, None]:
        """Yield batches of tiles of `size_px`, from wherever they are, and their probabilities, (B, K).

        Args:
            pad_to: tiles per batch, of which the last may have fewer; 0: each is computed as it is.
        """
        for batch, logits in self._outputs(self.classifier, tiles, pad_to=pad_to):
            yield batch, self._probabilities(logits)

    def stream_maps(
        self, tiles: Generator[files.Batch, None, None], *, classes: Sequence[int], kind: MapKind
    ) -> Generator[tuple[files.Batch, NDArray[np.float32]], None, None]:
        """Yield batches of tiles as for `stream_tiles`, and their raw maps enlarged to the tile, (B, S, S).

        Args:
            classes: whose logit is explained, then those it is compared with: the same for all tiles.
        """
        mean, std = self._normalisation
        with contextlib.closing(tiles):
            for batch in tiles:
                of_batch = torch.tensor([list(classes)]).expand(len(batch.rows), -1)
                images = upload(self._as_in_training(batch).pixels, self.device)
                heats = heatmaps_of_batches(
                    self.classifier, [(images, of_batch)] if len(batch.rows) else [], mean=mean, std=std, kind=kind
                )
                whole = [heat.enlarged for heat in heats]
                yield batch, np.stack(whole) if whole else np.empty((0, self.size_px, self.size_px), np.float32)

    def explain(
        self,
        images: Images,
        *,
        target: str = "auto",
        method: str = "gradcam",
        layers: str | Sequence[str] = (),
        fuse: str = "max",
        gamma: float = 1.0,
        references: int = 1,
        threshold: float = BOX_THRESHOLD,
        names: Sequence[str] | None = None,
        fit: Fit | None = None,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Explanations:
        """Return where the model looked, as `sscl gradcam` does; docs/results/heatmaps.md: how far to trust such maps.

        Args:
            target: "difference" of the logits of the predicted and the next likely class, "predicted", or a class;
                "auto": the difference.
            method, layers, fuse: see `cam.class_maps` and `kinds.MapKind`; a name alone is a list of one.
            gamma, references: weight and number of the other classes in a difference, see `targets.score_of`.
            threshold: a box encloses what is above this fraction of the map's maximum.
            names, fit, batch_size, progress: as for `predict`.

        Raises:
            ValueError, FileNotFoundError: as `predict`; no such target, method or layer.
        """
        _check_number("threshold", threshold, low=0, high=1)
        _check_number("gamma", gamma, low=0, high=2)
        _check_number("references", references, low=1, high=1000)
        layers = (layers,) if isinstance(layers, str) else tuple(layers)
        kind = of_model(MapKind(method, layers, fuse, gamma), self.classifier)
        wanted = weighed(target, self.classes, method=method, gamma=gamma, references=references)
        mean, std = self._normalisation
        listed, items = files.listed(images, names)
        tiles, found = [], []
        sides: list[int] = []

        def batches() -> Iterator[tuple[torch.Tensor, AnyTarget]]:
            for batch, logits in self._stream(self.classifier, items, fit=fit, batch_size=batch_size):
                _refuse(batch, items, listed)
                tiles.append(batch.images)
                sides.extend(batch.sides_px)
                found.append(self._probabilities(logits))
                yield upload(batch.pixels, self.device), target_classes(logits, wanted)  # from all views with tta
                bar.update(len(batch.rows))

        with torch.inference_mode(False), _bar(len(items), progress) as bar:  # maps need gradients
            heats = heatmaps_of_batches(self.classifier, batches(), mean=mean, std=std, kind=kind)
            whole, cells = zip(*((heat.enlarged, max(heat.cells.shape)) for heat in heats), strict=True)
        predictions = self.answers(listed, np.concatenate(found))
        return Explanations(
            predictions=predictions,
            images=np.concatenate(tiles),
            source_px=tuple(sides),
            maps=np.stack(whole),
            boxes=tuple(
                boxes.find_box(raw, threshold=threshold, cells=side) for raw, side in zip(whole, cells, strict=True)
            ),
            targets=tuple(
                describe_target(wanted, self.classes, of_tile, kind=kind) for of_tile in predictions.probabilities
            ),
            kind=kind,
        )

    def embed(
        self, images: Images, *, fit: Fit | None = None, batch_size: int = 128, progress: bool = False
    ) -> NDArray[np.float32]:
        """Return the encoder's features of the images, float32 (N, C). Arguments and errors as for `predict`."""
        listed, items = files.listed(images, None)
        parts = []
        with _bar(len(items), progress) as bar:
            for batch, found in self._stream(self.classifier.encoder, items, fit=fit, batch_size=batch_size):
                _refuse(batch, items, listed)
                parts.append(found.clone())
                bar.update(len(batch.rows))
        return torch.cat(parts).numpy()

    def _probabilities(self, logits: torch.Tensor) -> FloatArray:
        """Return the probabilities of a batch's logits, (B, K), which may be none."""
        if not len(logits):
            return np.empty((0, len(self.classes)))
        return calibration.softmax(logits, temperature=self.temperature)

    @cached_property
    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        return normalisation(self.checkpoint, self.device)

    def _stream(
        self, module: nn.Module, items: Sequence[Item], *, fit: Fit | None, batch_size: int
    ) -> Generator[tuple[files.Batch, torch.Tensor], None, None]:
        """Yield the tiles of each batch, stain-normalised as in training, and a module's outputs, float32 on the CPU.

        While the device computes them, the outputs of the batch before are with the caller, and the next are decoded.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: must be a whole number, 1 or more, got {batch_size!r}")
        if fit not in (None, *get_args(Fit)):
            raise ValueError(f"fit: got {fit!r}, allowed are {', '.join(get_args(Fit))}, None")
        tiles = files.batches(
            items, size_px=self.size_px, batch_size=batch_size, fit=fit or self.fit, device=self.device
        )
        yield from self._outputs(module, tiles, pad_to=batch_size if len(items) > batch_size else 0)

    def _outputs(
        self, module: nn.Module, tiles: Generator[files.Batch, None, None], *, pad_to: int
    ) -> Generator[tuple[files.Batch, torch.Tensor], None, None]:
        """Yield batches of tiles, stain-normalised as in training, and a module's outputs, float32 on the CPU."""
        mean, std = self._normalisation
        coming: deque[tuple[files.Batch, Later]] = deque()
        with contextlib.closing(tiles):
            for batch in tiles:
                found = torch.empty(0)
                if len(batch.rows):
                    batch = self._as_in_training(batch)
                    found = features.forward(
                        module,
                        upload(batch.pixels, self.device),
                        mean=mean,
                        std=std,
                        precision=self.precision,
                        symmetric=self.tta,
                        pad_to=pad_to,
                    )
                coming.append((batch, Later(found)))
                if len(coming) > 1:
                    yield _arrived(*coming.popleft())
        while coming:
            yield _arrived(*coming.popleft())

    def _as_in_training(self, batch: files.Batch) -> files.Batch:
        """Return a batch with the stain normalised as in training."""
        if self.stain == "none" or not len(batch.rows):
            return batch
        return replace(batch, pixels=torch.from_numpy(normalise_stain(batch.images, method=self.stain)))

    def answers(self, names: Sequence[str], probabilities: FloatArray) -> Predictions:
        """Return what it says of tiles by their probabilities, (N, K): their classes, and whether it abstains."""
        return Predictions(tuple(names), self.classes, probabilities, self.decide_from)


def _arrived(batch: files.Batch, later: Later) -> tuple[files.Batch, torch.Tensor]:
    found = later.tensor()
    features.check_finite(found)
    return batch, found


def load(
    run: str | Path,
    *,
    device: str | torch.device = "auto",
    calibrate: bool = True,
    abstain: float = 0.2,
    confidence: float | None = None,
    tta: bool = False,
    precision: str = "auto",
) -> Model:
    """Return the classifier of a finetune run, ready for new tiles; warn (`Unfinished`) where training has not ended.

    Args:
        run: a run folder (its best.pt) or checkpoint file. device: auto, cpu, cuda, cuda:N or mps, or
            a torch.device.
        calibrate: divide logits by the temperature that finetune fitted on its validation tiles.
        abstain: abstain below the confidence that this fraction of the validation tiles does not reach; 0: never.
        confidence: abstain below this one instead.
        tta: average the logits over the 8 flips and rotations of a tile; temperature and thresholds are fitted without.
        precision: auto, fp32, bf16 or fp16, see `classifier.inference_precision`.

    Raises:
        FileNotFoundError, ValueError: no such run or file; not a finetune checkpoint, or a value out of range.
    """
    if not isinstance(abstain, (int, float)) or not 0 <= abstain < 1:
        raise ValueError(f"abstain: must be >= 0 and < 1, got {abstain!r}")
    if confidence is not None:
        _check_number("confidence", confidence, low=0, high=1)
    where = pick_device(str(device))
    with torch.inference_mode(False):  # its parameters must take gradients later, for maps
        classifier, checkpoint = load_classifier(run, device=where)
    tune(where)
    for note in unfinished_notes(run):
        warnings.warn(note, Unfinished, stacklevel=2)
    kept = checkpoint.fitted
    chosen = inference_precision(precision, where, fitted=kept.precision)
    temperature = kept.temperature if calibrate else 1.0
    validation = calibration.softmax(kept.logits, temperature=temperature)
    decide_from, operating_point = confidence, None
    if confidence is None and abstain > 0:
        decide_from = decisions.choose_abstention(validation.max(1), limit=abstain)
    positive = positive_class(checkpoint.classes, None)
    truth = kept.labels.numpy() == positive
    if positive is not None and 0 < truth.sum() < len(truth):
        operating_point = decisions.choose_threshold(truth, validation[:, positive])
    return Model(classifier, checkpoint, where, temperature, decide_from, operating_point, tta, chosen)


def _check_number(key: str, value: object, *, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{key}: must be >= {low} and <= {high}, got {value!r}")


def _bar(total: int, progress: bool) -> Bar:
    return Bar(total, desc="tiles" if progress else None, unit="tile")


def _refuse(batch: files.Batch, items: Sequence[Item], names: Sequence[str]) -> None:
    """Raise ValueError if an image of the batch cannot be used."""
    if batch.faults:
        place, why = batch.faults[0]
        raise ValueError(why if isinstance(items[place], (str, Path)) else f"{names[place]}: {why}")
