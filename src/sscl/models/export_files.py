"""The files of `sscl export`: tensors and graphs, each read back and compared with the model before it is kept.

B tiles, C features, K classes, S the side of a tile in pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import nn

from sscl import __version__, writing
from sscl.memory import raise_if_short
from sscl.models import timm_folder, wsinfer
from sscl.models.exported import Exported
from sscl.models.exports import ExportedFacts, ExportedFile
from sscl.models.timm_folder import Fitted

NAMES = {  # of the file of each format; {} = encoder or classifier
    "safetensors": "{}.safetensors",
    "pt": "{}.pt",
    "torchscript": "{}.torchscript.pt",
    "torch_export": "{}.pt2",
    "onnx": "{}.onnx",
    "timm": timm_folder.WEIGHTS,
    "wsinfer": wsinfer.GRAPH,
}
CONFIGS = {"timm": timm_folder.CONFIG, "wsinfer": wsinfer.CONFIG}  # of those that have a second file
FACTS = "sscl.json"  # in files that keep others in themselves
TOLERANCE = 1e-4  # of the largest output
TENSOR_FILES = ("safetensors", "pt")


def write_checked(
    exported: Exported,
    name: str,
    path: Path,
    *,
    what: str,
    example: torch.Tensor,
    expected: torch.Tensor,
    timm: Fitted | None = None,
) -> ExportedFile:
    """Write one file, read it back, and return its digest and how far its outputs are from the model's.

    Args:
        exported: the model.
        name: one of NAMES.
        path: the file.
        what: trunk or classifier.
        example, expected: input (3, 3, S, S) and the model's output for it.
        timm: the model of timm for the format of that name.

    Raises:
        ValueError: the format cannot hold this model, or what was read back gives other outputs.
    """
    try:
        with quiet(), torch.no_grad(), writing.naming(path):
            if timm is not None and name == "timm":
                difference = timm_folder.write(timm, exported, path.parent, example=example)
            elif name in TENSOR_FILES:
                difference = write_tensors(exported, name, path, what=what)
            else:
                kind, model = name, exported.model
                if name == "wsinfer":
                    kind, model = "torchscript", wsinfer.FromPixels(exported).eval()
                    expected = exported.logits(example) / wsinfer.temperature_of(exported)
                    example = example * model.std + model.mean  # pixels in 0-1 again
                    wsinfer.write_config(exported, path.with_name(wsinfer.CONFIG))
                facts = facts_of(exported, what=what)
                other = example[:2]  # another size of batch than the check's
                write_graph(model, kind, path, example=other, facts=facts)
                found = run_graph(kind, path, example)
                difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    except OSError:
        raise
    except Exception as error:  # exporters raise their own kinds for a model that they cannot write
        raise_if_short(error)
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours its own
        reason = (said.strip().splitlines() or ["no reason given"])[0][:200]
        raise ValueError(f"formats: {name} cannot hold {exported.encoder.name} ({reason}); leave it out") from error
    scale = float(expected.abs().max())
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
        # save_file would make a file that only its owner may read.
        path.write_bytes(save(state, metadata={"format": "pt", "sscl": facts_of(exported, what=what)}))
        found = load_file(path)
    same = found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())
    return 0.0 if same else float("inf")


def facts_of(exported: Exported, *, what: str) -> str:
    """Return the JSON that a file keeps in itself, see `ExportedFacts`."""
    facts = {
        "what": what,
        "encoder": exported.encoder.name,
        "stem": exported.encoder.stem,
        "output_stride": exported.encoder.output_stride,
        "kwargs": exported.encoder.kwargs,
        "pooling": exported.encoder.pooling,
        "size_px": exported.size_px,
        "mpp": exported.scale.mpp,
        "mpp_range": exported.scale.mpp_range,
        "mean": exported.mean,
        "std": exported.std,
        "classes": None if exported.checkpoint is None else exported.checkpoint.classes,
        "sscl": __version__,
    }
    return ExportedFacts.model_validate(facts).model_dump_json()


def write_graph(model: nn.Module, name: str, path: Path, *, example: torch.Tensor, facts: str) -> None:
    """Write the computation itself, for any number of tiles of the example's size, without paths of this machine.

    Args:
        facts: what the file says of the model, see `facts_of`: in sscl.json of TorchScript and torch.export, under
            "sscl" of the metadata of ONNX.
    """
    if name == "torchscript":
        # Without torch's check, which traces again: the written graph is compared with the model, on other tiles.
        traced = torch.jit.trace(model, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, path, _extra_files={FACTS: facts})
        _remove_debugging(path)
        return
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    if name == "torch_export":
        torch.export.save(program, path, extra_files={FACTS: facts})
    else:
        names = {"input_names": ["tiles"], "output_names": ["outputs"]}
        found = torch.onnx.export(program, (), dynamo=True, verbose=False, **names)  # type: ignore[arg-type]
        assert found is not None
        found.model.metadata_props["sscl"] = facts
        found.save(path, external_data=False)


def _remove_debugging(path: Path) -> None:
    """Write a TorchScript file again without what torch keeps for its error messages: lines and files of the code."""
    whole = path.with_name(f"{path.name}.whole")
    path.rename(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                new.writestr(entry.filename, old.read(entry))
    whole.unlink()


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
