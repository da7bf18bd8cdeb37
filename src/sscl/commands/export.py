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

import contextlib
import hashlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from sscl import __version__, api, augment, run, writing
from sscl.config import EncoderConfig, ExportConfig, PredictConfig
from sscl.data.images import RESIZED
from sscl.memory import raise_if_short
from sscl.models.checkpoint import Checkpoint, run_of, unfinished_notes
from sscl.models.encoders import Encoder
from sscl.models.exports import Decisions, ExportedFacts, ExportedFile, ExportReport, ModelInput, ModelOutput
from sscl.models.resnet import SMALL
from sscl.models.start import frozen_encoder
from sscl.records import write_record
from sscl.words import next_command

SUFFIXES = {
    "safetensors": ".safetensors",
    "pt": ".pt",
    "torchscript": ".torchscript.pt",
    "torch_export": ".pt2",
    "onnx": ".onnx",
}
TOLERANCE = 1e-4  # of the largest output
ABSTAIN: float = PredictConfig.model_fields["abstain"].default
TENSOR_FILES = ("safetensors", "pt")


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        model: (B, 3, S, S) -> (B, C) or (B, K), in evaluation mode on the CPU.
        encoder: the encoder in it, or the model itself.
        state: its tensors by the names they get in the files.
        size_px: S. mean, std: channel means and standard deviations of pixels in 0-1.
        checkpoint: the facts of the sscl checkpoint it comes from; None for other weights.
        decisions: of a classifier.
    """

    model: nn.Module
    encoder: Encoder
    state: dict[str, torch.Tensor]
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checkpoint: Checkpoint | None
    decisions: Decisions | None = None


class Probabilities(nn.Module):
    """A classifier whose outputs are probabilities, softmax(logits / temperature)."""

    def __init__(self, classifier: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the probabilities, (B, 3, S, S) -> (B, K)."""
        return torch.softmax(self.classifier(x) / self.temperature, dim=1)


def main(config: ExportConfig, *, overwrite: bool = False) -> None:
    """Write the files, compare each with the model, and describe them in a JSON file.

    Raises:
        ValueError, FileNotFoundError: bad input, in one line; then nothing is written.
    """
    if "onnx" in config.formats:
        check_onnx()
    out = folder_of(config)
    stem = "encoder" if config.what == "trunk" else "classifier"
    files: dict[str, ExportedFile] = {}
    # An earlier export may go, for all its .pt files; a run with its checkpoints may not.
    again = (out / "encoder.json").is_file() or (out / "classifier.json").is_file()
    again = again and not (out / "checkpoints").exists()
    inputs = {"checkpoint": config.checkpoint}
    with run.whole_folder(out, config, overwrite=overwrite, inputs=inputs, trains=again) as folder:
        exported = trunk(config) if config.what == "trunk" else classifier(config)
        example = example_input(exported.size_px, mean=exported.mean, std=exported.std)
        with torch.no_grad():
            expected = exported.model(example)
        for name in config.formats:
            path = folder / f"{stem}{SUFFIXES[name]}"
            files[path.name] = write_checked(exported, name, path, what=config.what, example=example, expected=expected)
        report = describe(config, exported, outputs=expected.shape[1], files=files)
        write_record(folder / f"{stem}.json", report)
    print(described(report))
    print(f"wrote {out}/{stem}.json, {', '.join(files)}")
    if config.what == "classifier":
        print(next_command("predict", run_of(config.checkpoint), "NEW_TILES"))
    else:
        weights = next((out / name for name, file in files.items() if file.kind in TENSOR_FILES), config.checkpoint)
        print(next_command("finetune", "TILES", f"model.name={report.encoder}", f"model.weights={weights}", "run=RUN"))


def folder_of(config: ExportConfig) -> Path:
    """Return the folder to write.

    Raises:
        ValueError: none is given or known.
    """
    if config.out is None and config.checkpoint == "imagenet":
        raise ValueError("out: missing; imagenet has no run folder to write to")
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
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def check_onnx() -> None:
    """Raise ValueError where ONNX is asked for and its extra is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"formats: onnx needs {package}, not installed; pip install 'sscl[onnx]'") from error


def trunk(config: ExportConfig) -> Exported:
    """Return the encoder of a run, a checkpoint or another program's file.

    Raises:
        ValueError: the weights do not fit, or nothing says the size of the tiles.
        FileNotFoundError: no such run or file.
    """
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
    state = _as_elsewhere(encoder.state_dict())
    return Exported(encoder, encoder, state, start.size_px, start.mean, start.std, start.checkpoint)


def _as_elsewhere(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors by the names that they have in the package that an encoder is from: without `net.` before all."""
    prefix = "net." if all(name.startswith("net.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def classifier(config: ExportConfig) -> Exported:
    """Return the classifier of a finetune checkpoint, its head under torchvision's name `fc`.

    Raises:
        ValueError: another checkpoint, or keys that the checkpoint decides.
        FileNotFoundError: no such run or file.
    """
    for key in ("model", "pool", "mean", "std"):
        if getattr(config, key) is not None:
            raise ValueError(f"{key}: the classifier's checkpoint decides it; leave {key} out, or set what=trunk")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", api.Unfinished)  # is among the notes
        found = api.load(config.checkpoint, device="cpu", abstain=ABSTAIN)
    model, checkpoint = found.classifier, found.checkpoint
    head = {f"fc.{name}": value for name, value in model.head.state_dict().items()}
    state = {**_as_elsewhere(model.encoder.state_dict()), **head}
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
        checkpoint.mean,
        checkpoint.std,
        checkpoint,
        decisions,
    )


def describe(config: ExportConfig, exported: Exported, *, outputs: int, files: dict[str, ExportedFile]) -> ExportReport:
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
    data = checkpoint.config.data
    found = {source.stain for source in (data if isinstance(data, tuple) else (data,))}
    return found.pop() if len(found) == 1 else None


def example_input(size_px: int, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return three tiles of noise as a model gets them, (3, 3, S, S)."""
    pixels = torch.rand(3, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return augment.normalise(pixels, mean=torch.tensor(mean), std=torch.tensor(std))


def write_checked(
    exported: Exported, name: str, path: Path, *, what: str, example: torch.Tensor, expected: torch.Tensor
) -> ExportedFile:
    """Write one file, read it back, and return its digest and how far its outputs are from the model's.

    Args:
        exported: the model.
        name: one of SUFFIXES.
        path: the file.
        what: trunk or classifier.
        example, expected: input (3, 3, S, S) and the model's output for it.

    Raises:
        ValueError: the format cannot hold this model, or what was read back gives other outputs.
    """
    scale = float(expected.abs().max())
    try:
        with quiet(), torch.no_grad(), writing.naming(path):
            if name in TENSOR_FILES:
                difference = write_tensors(exported, name, path, what=what)
            else:
                write_graph(exported.model, name, path, example=example[:2])  # a batch of another size than the check's
                found = run_graph(name, path, example)
                difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    except OSError:
        raise
    except Exception as error:  # exporters raise their own kinds for a model that they cannot write
        raise_if_short(error)
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise ValueError(f"formats: {name} cannot hold {exported.encoder.name} ({reason}); leave it out") from error
    if not difference <= TOLERANCE * scale:
        raise ValueError(
            f"formats: the outputs of the {name} file differ from the model's by {difference:.2e} (largest output "
            f"{scale:.3g}, allowed {TOLERANCE:g} of that); leave it out"
        )
    writing.sync(path)
    return ExportedFile(
        kind=name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        bytes=path.stat().st_size,
        max_difference=difference,
        scale=scale,
    )


def write_tensors(exported: Exported, name: str, path: Path, *, what: str) -> float:
    """Write the state dict, and return the largest difference of a tensor read back: 0, or infinity for lost ones."""
    state = {key: value.contiguous() for key, value in exported.state.items()}
    if name == "pt":
        torch.save(state, path)
        found = torch.load(path, weights_only=True)
    else:
        facts = ExportedFacts.model_validate(
            {
                "what": what,
                "encoder": exported.encoder.name,
                "stem": exported.encoder.stem,
                "output_stride": exported.encoder.output_stride,
                "kwargs": exported.encoder.kwargs,
                "pooling": exported.encoder.pooling,
                "size_px": exported.size_px,
                "mean": exported.mean,
                "std": exported.std,
                "classes": None if exported.checkpoint is None else exported.checkpoint.classes,
                "sscl": __version__,
            }
        )
        # save_file would make a file that only its owner may read.
        path.write_bytes(save(state, metadata={"format": "pt", "sscl": facts.model_dump_json()}))
        found = load_file(path)
    same = found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())
    return 0.0 if same else float("inf")


def write_graph(model: nn.Module, name: str, path: Path, *, example: torch.Tensor) -> None:
    """Write the computation itself, for any number of tiles of the example's size."""
    if name == "torchscript":
        torch.jit.save(torch.jit.trace(model, example), path)  # type: ignore[no-untyped-call]
        return
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    if name == "torch_export":
        torch.export.save(program, path)
    else:
        names = {"input_names": ["tiles"], "output_names": ["outputs"]}
        torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False, **names)  # type: ignore[arg-type]


def run_graph(name: str, path: Path, x: torch.Tensor) -> torch.Tensor:
    """Return what a written graph gives for x, (B, 3, S, S)."""
    if name == "torchscript":
        return torch.jit.load(path)(x)  # type: ignore[no-any-return, no-untyped-call]
    if name == "torch_export":
        return torch.export.load(path).module()(x)  # type: ignore[no-any-return]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"tiles": x.numpy()})[0])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' deprecation warnings off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
