"""What `sscl export` says about its files: the JSON beside them, and what a .safetensors file says itself.

C features, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import safetensors
from pydantic import Field, SerializeAsAny, ValidationError

from sscl.config import DataConfig
from sscl.config.encoders import EncoderName, Kwargs, Means, OutputStride, Pool, StandardDeviations, Stem
from sscl.config.sections import Section
from sscl.reading import parse_json
from sscl.records import Record, first_fault


class ExportedFacts(Record):
    """What `sscl export` writes into a .safetensors file beside the tensors.

    Attributes:
        what: trunk or classifier. classes: those of the classifier, or of the run; None: not known.
        encoder, stem, output_stride, kwargs, pooling, size_px, mpp, mpp_range, mean, std: as `Checkpoint` has them.
        sscl: the version that wrote it.
    """

    what: str
    encoder: EncoderName
    stem: Stem
    output_stride: OutputStride
    kwargs: Kwargs
    pooling: Pool
    size_px: Annotated[int, Field(ge=16, le=1024)]
    mpp: Annotated[float, Field(gt=0)] | None
    mpp_range: Annotated[tuple[float, ...], Field(max_length=2)]
    mean: Means
    std: StandardDeviations
    classes: tuple[str, ...] | None
    sscl: str


class ExportedFile(Record):
    """One file of an export.

    Attributes:
        kind: its format. sha256: of the file. bytes: its size.
        max_difference: the largest difference of an output, or of a tensor, read back from the file.
        scale: the largest output.
    """

    kind: str
    sha256: str
    bytes: int
    max_difference: float
    scale: float


class ModelInput(Record):
    """What the model expects.

    Attributes:
        resize: how a tile of another size becomes one of S x S. stain: normalisation of each tile before that of
            the channels, as data.stain of the run; None: not known.
    """

    shape: tuple[str | int, ...]
    dtype: str
    pixels: str
    resize: str
    stain: str | None


class ModelOutput(Record):
    """What the model gives."""

    shape: tuple[str | int, ...]
    dtype: str
    meaning: str


class Decisions(Record):
    """What `sscl predict` makes of the logits of a classifier, all of it chosen on the validation tiles.

    Attributes:
        temperature: probabilities are softmax(logits / temperature). validation_tiles: that it was fitted on.
        positive: of two classes, see `threshold`: called at a probability of at least this; None: no such class.
        abstain_below: a tile whose largest probability is below is undecided. abstain: the fraction of the validation
            tiles that are.
    """

    temperature: float
    validation_tiles: int
    positive: str | None
    threshold: float | None
    abstain_below: float | None
    abstain: float


class ExportReport(Record):
    """encoder.json or classifier.json: all that a reader of the files needs; None where nobody knows it.

    Attributes:
        what: trunk or classifier. checkpoint: what was exported.
        encoder, stem, output_stride, kwargs, pooling, size_px, mpp, mpp_range, mean, std: as `Checkpoint` has them.
        num_features: C.
        classes, kind, epoch, c, data_fingerprint, config: of the run that trained it.
        history: the data sections of all runs behind the weights, oldest first.
        sscl, torch: versions.
        notes: what a reader must know, a sentence each.
        decisions: of a classifier; None for a trunk.
    """

    what: str
    checkpoint: str
    encoder: str
    stem: str
    output_stride: int
    kwargs: Kwargs
    pooling: Pool
    num_features: int
    size_px: int
    mpp: float | None
    mpp_range: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: ModelInput
    classes: tuple[str, ...] | None
    kind: str | None
    epoch: int | None
    c: float | None
    data_fingerprint: str | None
    config: SerializeAsAny[Section] | None
    history: tuple[SerializeAsAny[DataConfig], ...]
    sscl: str
    torch: str
    notes: tuple[str, ...]
    output: ModelOutput
    decisions: Decisions | None
    files: dict[str, ExportedFile]


def exported_facts(path: str | Path) -> ExportedFacts | None:
    """Return what `sscl export` wrote into a .safetensors file beside the tensors; None for any other file.

    Raises:
        ValueError: it is not as this version writes it.
    """
    if Path(path).suffix != ".safetensors":
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        found = (file.metadata() or {}).get("sscl")
    if found is None:
        return None
    try:
        parse_json(found)  # no NaN, nothing endless
        return ExportedFacts.model_validate_json(found)
    except ValueError as error:
        reason = first_fault(error, whole="its facts") if isinstance(error, ValidationError) else f"its facts: {error}"
        raise ValueError(f"{path}: {reason}; export it again") from None
