"""sscl export: the trunk or the classifier as files that other programs read, each checked against the model.

The tensors of a ResNet have torchvision's names, so its files load strictly elsewhere:

    model = torchvision.models.resnet50()
    model.fc = torch.nn.Identity()
    model.load_state_dict(torch.load("encoder.pt", weights_only=True))
    model = timm.create_model("resnet50", num_classes=0)
    model.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))

Those of a classifier, `classifier.*`, hold `fc.weight` and `fc.bias` too, for `resnet50(num_classes=K)`.
B tiles, C features, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sscl import __version__, api, augment, run
from sscl.config import EncoderConfig, ExportConfig, PredictConfig, sources_of
from sscl.config.encoders import NO_FILES
from sscl.config.published import PUBLISHED
from sscl.data.images import RESIZED
from sscl.data.scale import SAME, Scale
from sscl.evaluate import hub_card
from sscl.models import hub, timm_folder, wsinfer
from sscl.models.checkpoint import Checkpoint, run_of, unfinished_notes
from sscl.models.encoders import Encoder
from sscl.models.export_files import CONFIGS, NAMES, TENSOR_FILES, write_checked
from sscl.models.exported import Exported, as_elsewhere
from sscl.models.exports import Decisions, ExportedFile, ExportReport, ModelInput, ModelOutput
from sscl.models.resnet import SMALL
from sscl.models.start import frozen_encoder
from sscl.records import write_record
from sscl.words import next_command, wrapped
from sscl.writing import write_text

ABSTAIN: float = PredictConfig.model_fields["abstain"].default


class Probabilities(nn.Module):
    """A classifier whose outputs are probabilities, softmax(logits / temperature)."""

    def __init__(self, classifier: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, (B, 3, S, S) -> (B, K)."""
        return torch.softmax(self.classifier(x) / self.temperature, dim=1)


def main(config: ExportConfig, *, overwrite: bool = False) -> None:
    """Write the files, compare each with the model, and describe them in a JSON file."""
    if config.push is not None and "formats" not in config.model_fields_set:
        config = config.model_copy(update={"formats": ("timm",)})
    if "wsinfer" in config.formats:
        config = for_wsinfer(config)
    if "onnx" in config.formats:
        check_onnx()
    out = folder_of(config)
    stem = "encoder" if config.what == "trunk" else "classifier"
    # An earlier export may go, for all its .pt files; a run with its checkpoints may not.
    again = (out / "encoder.json").is_file() or (out / "classifier.json").is_file()
    again = again and not (out / "checkpoints").exists()
    inputs = {"checkpoint": config.checkpoint}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs, trains=again) as folder:
        exported = trunk(config) if config.what == "trunk" else classifier(config)
        client = None
        if config.push is not None:
            source = hub.unknown_source(config.checkpoint, exported.checkpoint, name=config.model)
            hub.check_terms(exported.encoder.name, accepted=config.terms is not None, source=source)
            client = hub.client(config.push)
        report, names = write_files(config, exported, folder, stem=stem)
    print(described(report))
    print(f"wrote {out}/{stem}.json, {', '.join(names)}")
    if config.push is not None:
        say_pushed(config, client, out, names=names)
    elif config.what == "classifier":
        print(next_command("predict", run_of(config.checkpoint), "NEW_TILES"))
    else:
        weights = next((out / name for name, file in report.files.items() if file.kind in TENSOR_FILES), None)
        given = config.checkpoint if weights is None else weights
        words = [f"model.name={report.encoder}", f"model.weights={given}"]
        words += [] if config.pool is None else [f"model.pool={config.pool}"]  # the run has its own
        print(next_command("finetune", "TILES", *words, "run=RUN"))


def write_files(config: ExportConfig, exported: Exported, folder: Path, *, stem: str) -> tuple[ExportReport, list[str]]:
    """Write all files of an export, and return what the JSON file says and the names of the others.

    Raises:
        ValueError: a format cannot hold the model.
    """
    files: dict[str, ExportedFile] = {}
    example = example_input(exported.size_px, mean=exported.mean, std=exported.std)
    with torch.no_grad():
        expected = exported.model(example)
    timm = timm_folder.fit(exported, example=example) if "timm" in config.formats else None
    for name in config.formats:
        path = folder / NAMES[name].format(stem)
        files[path.name] = write_checked(
            exported, name, path, what=config.what, example=example, expected=expected, timm=timm
        )
    report = describe(config, exported, outputs=expected.shape[1], files=files, timm=timm)
    write_record(folder / f"{stem}.json", report)
    names = [*files, *(CONFIGS[name] for name in config.formats if name in CONFIGS)]
    if timm is not None or config.push is not None:
        names.append(hub_card.FILE)
        write_text(folder / hub_card.FILE, card_of(config, exported, report, timm=timm))
    return report, names


def card_of(config: ExportConfig, exported: Exported, report: ExportReport, *, timm: timm_folder.Fitted | None) -> str:
    source = None if exported.checkpoint is None else run_of(config.checkpoint)
    name = Path(config.checkpoint).name if source is None else source.resolve().name
    return hub_card.hub_card(
        exported,
        report,
        name=name if config.push is None else config.push.split("/")[1],
        folder=source,
        timm=timm,
        address="local-dir:FOLDER" if config.push is None else f"hf-hub:{config.push}",
        license=config.license,
    )


def say_pushed(config: ExportConfig, client: Any, out: Path, *, names: Sequence[str]) -> None:
    """Upload the files and say where they are."""
    assert config.push is not None
    try:
        address = hub.push(client, config.push, out, names=names, private=config.private)
    except ValueError as error:
        raise ValueError(f"{error}; the files are in {out}") from error
    print(f"uploaded to {address} ({'private' if config.private else 'public'} if it is new)")


def folder_of(config: ExportConfig) -> Path:
    """Return the folder to write."""
    if config.out is None and config.checkpoint in NO_FILES:
        raise ValueError(f"out: missing; {config.checkpoint} has no run folder to write to")
    return Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"export_{config.what}"


def described(report: ExportReport) -> str:
    """Return the report as lines for the terminal."""
    size, width = report.size_px, max(map(len, report.files))
    lines = [
        f"{report.encoder}, {report.what} of {report.checkpoint}: (batch, 3, {size}, {size}) to "
        f"(batch, {report.output.shape[1]})"
    ]
    for name, file in report.files.items():
        said = "tensors are equal when read back"
        if file.kind not in TENSOR_FILES:
            said = f"outputs differ by at most {file.max_difference:.1e} (largest output {file.scale:.3g})"
        lines.append(f"  {name:<{width}}  {file.bytes / 1e6:7.1f} MB  {said}")
    return "\n".join([*lines, *(wrapped(f"note: {note}") for note in report.notes)])


def for_wsinfer(config: ExportConfig) -> ExportConfig:
    """Return the settings with what=classifier, which WSInfer takes alone."""
    if config.what == "trunk" and "what" in config.model_fields_set:
        raise ValueError("formats: wsinfer holds a classifier, got what=trunk; leave what out, or wsinfer")
    if "timm" in config.formats:
        raise ValueError("formats: timm and wsinfer both have a config.json; export each with an out= of its own")
    return config.model_copy(update={"what": "classifier"})


def scale_of(config: ExportConfig, known: Scale) -> Scale:
    """Return the scale of the tiles: what the checkpoint says, with mpp= where it does not."""
    if config.mpp is None and known.mpp is None and "wsinfer" in config.formats:
        raise ValueError(
            f"mpp: missing; {config.checkpoint} does not say µm per pixel of its tiles, which wsinfer needs: give it, "
            "as in mpp=0.5"
        )
    low, high = (known.span[0], known.span[-1]) if known.span else (config.mpp, config.mpp)
    if config.mpp is None or low is None or high is None:
        return known
    if not low / (1 + SAME) <= config.mpp <= high * (1 + SAME):
        raise ValueError(f"mpp: got {config.mpp:g}, but {config.checkpoint} says {known}; leave mpp out")
    return known if known.mpp is not None else known._replace(mpp=config.mpp)


def check_onnx() -> None:
    """Raise ValueError where ONNX is asked for and its extra is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"formats: onnx needs {package}, not installed; pip install 'sscl[onnx]'") from error


def trunk(config: ExportConfig) -> Exported:
    """Return the encoder of a run, a checkpoint or another program's file."""
    if config.outputs != "logits":
        raise ValueError(f"outputs: {config.outputs} are a classifier's; leave outputs out, or set what=classifier")
    start = frozen_encoder(
        EncoderConfig(
            model=config.model,
            weights=config.checkpoint,
            stem=config.stem,
            kwargs=config.kwargs,
            pool=config.pool,
            size_px=config.size_px,
            mean=config.mean,
            std=config.std,
        )
    )
    if start.size_px is None:
        raise ValueError(f"size_px: missing; {config.checkpoint} does not say the side of its tiles, give size_px=224")
    encoder = start.encoder.cpu().eval()
    check_size(encoder, start.size_px)
    state = as_elsewhere(encoder.state_dict())
    scale = start.checkpoint.scale if start.checkpoint else Scale() if start.mpp is None else start.mpp.scale
    scale = scale_of(config, scale)
    return Exported(encoder, encoder, state, start.size_px, scale, start.mean, start.std, start.checkpoint)


def check_size(encoder: Encoder, size_px: int) -> None:
    """Raise ValueError, by the key of this command, where an encoder cannot take tiles of this side."""
    try:
        encoder.check_size(size_px)
    except ValueError as error:
        raise ValueError(str(error).removeprefix("data.")) from None


def classifier(config: ExportConfig) -> Exported:
    """Return the classifier of a finetune checkpoint, its head under torchvision's name `fc`."""
    for key in ("model", "pool", "mean", "std"):
        if getattr(config, key) is not None:
            raise ValueError(f"{key}: the classifier's checkpoint decides it; leave {key} out, or set what=trunk")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", api.Unfinished)  # is among the notes
        found = api.load(config.checkpoint, device="cpu", abstain=ABSTAIN)
    model, checkpoint = found.classifier, found.checkpoint
    check_size(model.encoder, config.size_px or checkpoint.size_px)
    head = {f"fc.{name}": value for name, value in model.head.state_dict().items()}
    state = {**as_elsewhere(model.encoder.state_dict()), **head}
    decisions = Decisions(
        temperature=found.temperature,
        validation_tiles=checkpoint.fitted.tiles,
        positive=found.positive,
        threshold=found.operating_point,
        abstain_below=found.decide_from,
        abstain=ABSTAIN,
    )
    return Exported(
        Probabilities(model, temperature=found.temperature) if config.outputs == "probabilities" else model,
        model.encoder,
        state,
        config.size_px or checkpoint.size_px,
        scale_of(config, checkpoint.scale),
        checkpoint.mean,
        checkpoint.std,
        checkpoint,
        model.head,
        decisions,
    )


def describe(
    config: ExportConfig,
    exported: Exported,
    *,
    outputs: int,
    files: dict[str, ExportedFile],
    timm: timm_folder.Fitted | None,
) -> ExportReport:
    """Return what the JSON file says; `outputs` is C or K."""
    encoder, made, size = exported.encoder, exported.checkpoint, exported.size_px
    notes = unfinished_notes(config.checkpoint) if config.what == "classifier" else []
    if encoder.output_stride != 32:
        notes.append(
            f"output_stride {encoder.output_stride}: other programs load the tensors into a {encoder.name} whose last "
            "stage has stride 2, which gives other features; the graph formats keep the stride"
        )
    if encoder.stem != "standard" or encoder.name in (SMALL, "resnet18_pathmnist"):
        notes.append(f"no other package has a {encoder.name} with stem {encoder.stem}; the graph formats need none")
    if timm is not None:
        notes += timm_folder.notes(timm, exported)
        one = PUBLISHED.get(encoder.name)
        if one is not None and one.terms != hub.FREE_TERMS:
            given = f"; check that license={config.license} agrees" if config.license is not None else ""
            notes.append(f"the terms of {one.name} ({one.terms}) hold for what is made of its weights{given}")
    if "wsinfer" in config.formats:
        notes += wsinfer.notes(exported)
    stainless = {"timm": "timm does", "wsinfer": "WSInfer and QuPath do"}
    if stain_of(made) not in (None, "none"):
        notes += [
            f"tiles were stain-normalised ({stain_of(made)}) in training, which {who} not do"
            for name, who in stainless.items()
            if name in config.formats
        ]
    if config.mpp is not None and (made is None or made.mpp is None):
        notes.append(f"mpp {config.mpp:g} is as given with mpp=: the checkpoint does not say it")
    meaning = "pooled features"
    if config.what == "classifier":
        meaning = f"{config.outputs}, in the order of classes"
        tensors = [name for name in config.formats if name in TENSOR_FILES]
        if config.outputs == "probabilities" and tensors:
            notes.append(f"{' and '.join(tensors)} hold weights, whose outputs are logits: divide by the temperature")
    return ExportReport(
        what=config.what,
        checkpoint=config.checkpoint,
        encoder=encoder.name,
        stem=encoder.stem,
        output_stride=encoder.output_stride,
        kwargs=encoder.kwargs,
        pooling=encoder.pooling,
        num_features=encoder.num_features,
        size_px=size,
        mpp=exported.scale.mpp,
        mpp_range=exported.scale.mpp_range,
        mean=exported.mean,
        std=exported.std,
        input=ModelInput(
            shape=("batch", 3, size, size),
            dtype="float32",
            pixels="RGB, uint8 / 255, then (x - mean) / std for each channel",
            resize=RESIZED,
            stain=stain_of(made),
        ),
        classes=None if made is None else made.classes,
        kind=None if made is None else made.kind,
        epoch=None if made is None else made.epoch,
        c=None if made is None else made.c,
        data_fingerprint=None if made is None else made.fingerprint,
        config=None if made is None else made.config,
        history=() if made is None else made.trained_on,
        sscl=__version__,
        torch=torch.__version__,
        notes=tuple(notes),
        output=ModelOutput(shape=("batch", outputs), dtype="float32", meaning=meaning),
        files=files,
        decisions=exported.decisions,
    )


def stain_of(checkpoint: Checkpoint | None) -> str | None:
    """Return the stain normalisation of a classifier's tiles; None where nobody knows it, or several sources differ."""
    if checkpoint is None:
        return None
    found = {source.stain for source in sources_of(checkpoint.config).values()}
    return found.pop() if len(found) == 1 else None


def example_input(size_px: int, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return three tiles of noise as a model gets them, (3, 3, S, S)."""
    pixels = torch.rand(3, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return augment.normalise(pixels, mean=torch.tensor(mean), std=torch.tensor(std))
