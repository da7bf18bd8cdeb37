"""sscl export: the trunk or the classifier as files that other programs read, each checked against the net.

The tensors of a ResNet have torchvision's names, so its files load strictly elsewhere:

    net = torchvision.models.resnet50()
    net.fc = torch.nn.Identity()
    net.load_state_dict(torch.load("encoder.pt", weights_only=True))

    net = timm.create_model("resnet50", num_classes=0)
    net.load_state_dict(safetensors.torch.load_file("encoder.safetensors"))

A classifier's files are `classifier.*` and hold `fc.weight` and `fc.bias` too, for `resnet50(num_classes=K)`.
B tiles, C features, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from sscl import __version__, augment, run, writing
from sscl.config import EncoderConfig, ExportConfig, plain
from sscl.models.checkpoint import Checkpoint, run_of
from sscl.models.classifier import load_classifier
from sscl.models.start import frozen_encoder
from sscl.run import check_inputs_outside

SUFFIXES = {
    "safetensors": ".safetensors",
    "pt": ".pt",
    "torchscript": ".torchscript.pt",
    "torch_export": ".pt2",
    "onnx": ".onnx",
}
TOLERANCE = 1e-4  # of the largest output
TENSOR_FILES = ("safetensors", "pt")


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        net: (B, 3, S, S) -> (B, C) or (B, K), in evaluation mode on the CPU.
        state: its tensors by the names they get in the files.
        facts: what encoder.json says of it.
    """

    net: nn.Module
    state: dict[str, torch.Tensor]
    facts: dict[str, Any]


def main(config: ExportConfig, *, overwrite: bool = False) -> None:
    """Write the files, compare each with the net, and describe them in a JSON file.

    Raises:
        ValueError, FileNotFoundError: input that a user can mend, in one line; then nothing is written.
    """
    if "onnx" in config.formats:
        check_onnx()
    if config.out is None and config.checkpoint == "imagenet":
        raise ValueError("out: missing; imagenet has no run folder to write to")
    out = Path(config.out) if config.out is not None else run_of(config.checkpoint) / f"export_{config.what}"
    # An earlier export may go, for all its .pt files; a run with its checkpoints may not.
    again = (out / "encoder.json").is_file() or (out / "classifier.json").is_file()
    run.check_run_folder(out, overwrite=overwrite, trains=again and not (out / "checkpoints").exists())
    check_inputs_outside(out, {"checkpoint": config.checkpoint})
    exported = trunk(config) if config.what == "trunk" else classifier(config)
    facts = exported.facts
    stem = "encoder" if config.what == "trunk" else "classifier"
    example = example_input(facts["size_px"], mean=facts["mean"], std=facts["std"])
    with torch.no_grad():
        expected = exported.net(example)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        files = {}
        for name in config.formats:
            path = Path(folder) / f"{stem}{SUFFIXES[name]}"
            files[path.name] = write_checked(exported, name, path, example=example, expected=expected)
        run.start_folder(out, config=plain(config), overwrite=overwrite)
        for name in files:
            with writing.replacing(out / name) as temporary:
                os.replace(Path(folder) / name, temporary)
    shape = ["batch", *expected.shape[1:]]
    meaning = "pooled features" if config.what == "trunk" else "logits, in the order of classes"
    facts = {**facts, "output": {"shape": shape, "dtype": "float32", "meaning": meaning}, "files": files}
    writing.write_json(out / f"{stem}.json", facts)

    size = facts["size_px"]
    print(
        f"{facts['encoder']}, {config.what} of {config.checkpoint}: (batch, 3, {size}, {size}) to (batch, {shape[1]})"
    )
    width = max(map(len, files))
    for name, file in files.items():
        said = "tensors read back equal" if file["kind"] in TENSOR_FILES else "outputs differ from the net's by"
        said += "" if file["kind"] in TENSOR_FILES else f" {file['max_difference']:.1e} at most, of {file['scale']:.3g}"
        print(f"  {name:<{width}}  {file['bytes'] / 1e6:7.1f} MB  {said}")
    for note in facts["notes"]:
        print(f"note: {note}")
    print(f"wrote {out}/{stem}.json, {', '.join(files)}")


def check_onnx() -> None:
    """Raise ValueError where ONNX is asked for and its extra is not installed."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ValueError(f"formats: onnx needs {package}, not installed; pip install 'sscl[onnx]'") from error


def trunk(config: ExportConfig) -> Exported:
    """Return the encoder of a run, a checkpoint or a foreign file.

    Raises:
        ValueError: the weights do not fit, or nothing says the size of the tiles.
        FileNotFoundError: no such run or file.
    """
    start = frozen_encoder(
        EncoderConfig(
            model=config.model,
            weights=config.checkpoint,
            stem=config.stem,
            size_px=config.size_px,
            mean=config.mean,
            std=config.std,
        )
    )
    if start.size_px is None:
        raise ValueError(f"size_px: missing; {config.checkpoint} does not say the side of its tiles, such as 224")
    encoder = start.encoder.cpu().eval()
    preprocessing = {"size_px": start.size_px, "mean": list(start.mean), "std": list(start.std)}
    state = dict(encoder.state_dict())
    return Exported(encoder, state, describe(config, encoder, preprocessing, start.checkpoint))


def classifier(config: ExportConfig) -> Exported:
    """Return the classifier of a finetune checkpoint, its head under torchvision's name `fc`.

    Raises:
        ValueError: another checkpoint, or keys that the checkpoint decides.
        FileNotFoundError: no such run or file.
    """
    for key in ("model", "mean", "std"):
        if getattr(config, key) is not None:
            raise ValueError(f"{key}: the classifier's checkpoint says it; leave {key} out, or set what=trunk")
    net, checkpoint = load_classifier(config.checkpoint, device=torch.device("cpu"))
    preprocessing = {
        "size_px": config.size_px or checkpoint.size_px,
        "mean": list(checkpoint.mean),
        "std": list(checkpoint.std),
    }
    head = {f"fc.{name}": value for name, value in net.head.state_dict().items()}
    facts = describe(config, net.encoder, preprocessing, checkpoint)
    return Exported(net, {**net.encoder.state_dict(), **head}, facts)


def describe(
    config: ExportConfig,
    encoder: Any,
    preprocessing: dict[str, Any],
    checkpoint: Checkpoint | None,
) -> dict[str, Any]:
    """Return what the JSON file says of the net; what nobody knows of a foreign file's is None."""
    size = preprocessing["size_px"]
    notes = []
    if encoder.output_stride != 32:
        notes.append(
            f"output_stride {encoder.output_stride}: elsewhere the tensors load as a {encoder.name} with stride 2 in "
            "its last stage, which gives other features; the graph formats keep it"
        )
    if encoder.stem != "standard":
        notes.append(
            f"stem {encoder.stem}: a {encoder.name} with another first convolution, which no other package has"
        )
    return {
        "what": config.what,
        "checkpoint": config.checkpoint,
        "encoder": encoder.name,
        "stem": encoder.stem,
        "output_stride": encoder.output_stride,
        "num_features": encoder.num_features,
        **preprocessing,
        "input": {
            "shape": ["batch", 3, size, size],
            "dtype": "float32",
            "pixels": "RGB, uint8 / 255, then (x - mean) / std for each channel",
        },
        "classes": None if checkpoint is None else list(checkpoint.classes),
        "kind": None if checkpoint is None else checkpoint.kind,
        "epoch": None if checkpoint is None else checkpoint.epoch,
        "data_fingerprint": None if checkpoint is None else checkpoint.fingerprint,
        "config": None if checkpoint is None else plain(checkpoint.config),
        "history": [] if checkpoint is None else [plain(data) for data in checkpoint.trained_on],
        "sscl": __version__,
        "torch": torch.__version__,
        "notes": notes,
    }


def example_input(size_px: int, *, mean: list[float], std: list[float]) -> torch.Tensor:
    """Return three tiles of noise as a net gets them, (3, 3, S, S)."""
    pixels = torch.rand(3, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    return augment.normalise(pixels, mean=torch.tensor(mean), std=torch.tensor(std))


def write_checked(
    exported: Exported, name: str, path: Path, *, example: torch.Tensor, expected: torch.Tensor
) -> dict[str, Any]:
    """Write one file, read it back, and return its digest and how far it is from the net.

    Args:
        name: one of SUFFIXES.
        example, expected: input (3, 3, S, S) and the net's output for it.

    Raises:
        ValueError: the format cannot hold this net, or what was read back gives other outputs.
    """
    scale = float(expected.abs().max())
    try:
        with quiet(), torch.no_grad():
            if name in TENSOR_FILES:
                difference = write_tensors(exported, name, path)
            else:
                write_graph(exported.net, name, path, example=example[:2])  # a batch of another size than the check's
                found = run_graph(name, path, example)
                difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    except OSError:
        raise
    except Exception as error:  # exporters raise their own kinds for a net that they cannot write
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise ValueError(f"formats: {name} cannot hold {exported.facts['encoder']} ({reason}); leave it out") from error
    if not difference <= TOLERANCE * scale:
        raise ValueError(
            f"formats: the {name} file gives other outputs than the net ({difference:.2e} apart, of {scale:.3g}; "
            f"allowed is {TOLERANCE:g} of that); leave it out"
        )
    return {
        "kind": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "max_difference": difference,
        "scale": scale,
    }


def write_tensors(exported: Exported, name: str, path: Path) -> float:
    """Write the state dict, and return the largest difference of a tensor read back: 0, or infinity for lost ones."""
    state = {key: value.contiguous() for key, value in exported.state.items()}
    if name == "pt":
        torch.save(state, path)
        found = torch.load(path, weights_only=True)
    else:
        kept = ("what", "encoder", "stem", "output_stride", "size_px", "mean", "std", "classes", "sscl")
        facts = {key: exported.facts[key] for key in kept}
        # save_file would make a file that only its owner may read.
        path.write_bytes(save(state, metadata={"format": "pt", "sscl": json.dumps(facts)}))
        found = load_file(path)
    same = found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())
    return 0.0 if same else float("inf")


def write_graph(net: nn.Module, name: str, path: Path, *, example: torch.Tensor) -> None:
    """Write the computation itself, for any number of tiles of the example's size."""
    if name == "torchscript":
        torch.jit.save(torch.jit.trace(net, example), path)  # type: ignore[no-untyped-call]
        return
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (example,), dynamic_shapes=({0: batch},))
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
    """Keep the exporters' remarks on their own future off the terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
