"""The commands that hand an encoder, or what it sees, to others: export and embed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from sscl.config.data import COARSEST_MPP, FINEST_MPP, DataConfig
from sscl.config.encoders import POOLS, EncoderConfig, EncoderName, Kwargs, Means, Pool, StandardDeviations, Stem
from sscl.config.messages import shown
from sscl.config.sections import LARGEST_BATCH, Precision, Section, precision_setting, setting

FORMATS = ("safetensors", "pt", "torchscript", "torch_export", "onnx", "timm", "wsinfer")
METHODS = ("pca", "tsne", "umap")


def _some_of(*allowed: str) -> Callable[[Any], Any]:
    """Return the validator of a list of words: some of the allowed ones, each kept once."""

    def check(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        unknown = [word for word in value if word not in allowed]
        if unknown or not value:
            raise ValueError(f"must be a list with one or more of {', '.join(allowed)}, got {shown(value)}")
        return tuple(dict.fromkeys(value))

    return check


# As huggingface_hub.utils.validate_repo_id: no - or . at an end, none twice.
_NAME = r"\w(?:[\w.-]*\w)?"
_REPOSITORY = re.compile(rf"(?!.*(?:--|\.\.|\.git$)){_NAME}/{_NAME}", re.ASCII)
_LONGEST = 96


def _repository(value: Any) -> Any:
    """Return the name of a repository of the hub, USER/NAME."""
    if value is None or (isinstance(value, str) and len(value) <= _LONGEST and _REPOSITORY.fullmatch(value)):
        return value
    raise ValueError(f"must be USER/NAME, letters, digits and single -_. within them alone, got {shown(value)}")


class ExportConfig(Section):
    """Write the encoder or the classifier as files for other programs."""

    checkpoint: str = setting(
        ...,
        "run folder, checkpoint, or file of an encoder as model.weights of pretrain; also RUN",
        path=True,
        min_length=1,
    )
    what: Literal["trunk", "classifier"] = setting(
        "trunk", "trunk: encoder, tiles to features; classifier: tiles to logits, of a finetune run", common=True
    )
    outputs: Literal["logits", "probabilities"] = setting(
        "logits",
        "of a classifier in torchscript, torch_export and onnx: logits, or calibrated probabilities (with temperature)",
        common=True,
    )
    formats: Annotated[tuple[str, ...], BeforeValidator(_some_of(*FORMATS))] = setting(
        ("safetensors", "pt"),
        f"file formats, of {', '.join(FORMATS)} (onnx and timm need extras: pip install "
        "'sscl[onnx]', 'sscl[timm]'); timm: a folder for timm.create_model('local-dir:FOLDER', pretrained=True); "
        "wsinfer: a classifier for WSInfer and its QuPath extension",
        common=True,
    )
    push: Annotated[str | None, BeforeValidator(_repository)] = setting(
        None,
        "USER/NAME: upload the files to this repository of the Hugging Face hub, after hf auth login; then formats is "
        "[timm] unless given",
        common=True,
    )
    private: bool = setting(True, "push: a new repository is seen by its owner alone; one that exists stays as it is")
    license: str | None = setting(
        None,
        "of the weights, by the hub's name, as in apache-2.0 or cc-by-4.0; null = none is said",
        pattern=r"^[a-z0-9][a-z0-9.-]*$",
    )
    terms: Literal["accepted"] | None = setting(
        None, "push: accepted = you have made sure that the terms of the weights it was made of allow it"
    )
    out: str | None = setting(None, "folder to write; null = RUN/export_WHAT", path=True, common=True)
    model: EncoderName | None = setting(
        None, "architecture, as model.name of pretrain; null = read it from the checkpoint"
    )
    stem: Stem = setting("standard", "as model.stem of pretrain; ignored for an sscl checkpoint")
    kwargs: Kwargs = setting({}, "as model.kwargs of pretrain; ignored for an sscl checkpoint")
    pool: Pool | None = setting(None, f"trunk: {POOLS}")
    size_px: int | None = setting(None, "side of the tiles, pixels; null = that of the checkpoint", ge=16, le=1024)
    mpp: float | None = setting(
        None,
        "µm per pixel of the tiles, where the checkpoint does not say it; null = that of the checkpoint",
        ge=FINEST_MPP,
        le=COARSEST_MPP,
    )
    mean: Means | None = setting(None, "trunk: channel means of pixels in 0-1; null = those of the weights")
    std: StandardDeviations | None = setting(
        None, "trunk: channel standard deviations of pixels in 0-1; null = those of the weights"
    )


class EmbedConfig(Section):
    """Embed a set of tiles, and draw 2D maps and clusters of the embeddings."""

    out: str = setting(..., "folder to write", path=True, min_length=1)
    encoder: EncoderConfig = EncoderConfig()
    data: DataConfig
    split: Literal["train", "test", "all"] = setting("all", "tiles to embed", common=True)
    methods: Annotated[tuple[str, ...], BeforeValidator(_some_of(*METHODS))] = setting(
        ("pca", "tsne"),
        f"2D maps, of {', '.join(METHODS)} (umap needs the extra: pip install 'sscl[umap]')",
        common=True,
    )
    tsne_tiles: int = setting(5000, "largest number of tiles in the t-SNE map, drawn by seed", ge=50, le=1_000_000)
    clusters: int = setting(10, "k of the k-means clusters", ge=2, le=100, common=True)
    per_cluster: int = setting(10, "tiles of each cluster in its picture", ge=1, le=50)
    seed: int = setting(0, "seed of clusters, maps and the tiles that are shown", ge=0, lt=2**32)
    batch_size: int = setting(128, "tiles per batch", ge=1, le=LARGEST_BATCH)
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", common=True)
    precision: Precision = precision_setting()
    progress: bool = setting(True, "show progress bars")
