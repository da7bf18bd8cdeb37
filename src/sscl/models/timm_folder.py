"""An encoder or a classifier as a folder that timm reads: model.safetensors and config.json.

    timm.create_model("local-dir:FOLDER", pretrained=True)  # or hf-hub:USER/NAME, once it is on the hub

B tiles, C features, K classes, L tokens, S the side of a tile in pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import nn

from sscl import __version__
from sscl.config.encoders import RESNETS
from sscl.models.encoders import TimmEncoder
from sscl.models.exported import Exported, as_elsewhere
from sscl.models.timm_models import extra
from sscl.writing import write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
EQUAL = 1e-4  # largest difference, of the largest output
LITE = "tf_efficientnet_lite0"  # the same tensors in the same order, and padding that follows the tile's size
INSTEAD = "torchscript and onnx hold it"
# How timm may pool: as the model does by itself; the class token; the mean of the normalised patch tokens, for which
# the argument has two names.
POOLINGS: tuple[dict[str, Any], ...] = (
    {},
    {"global_pool": "token"},
    {"global_pool": "token", "fc_norm": True},
    {"global_pool": "avg", "fc_norm": False},
    {"global_pool": "avg", "use_fc_norm": False},
)
TOKENS: dict[str, Any] = {"global_pool": ""}


class NoEqual(ValueError):
    """timm has no model that computes the same."""


@dataclass(frozen=True)
class Fitted:
    """The model of timm that computes the same as one of ours.

    Attributes:
        architecture: its name. arguments: of `timm.create_model` beside it, those that JSON can hold.
        in_code: those that it cannot, such as a kind of layer; whoever loads the model gives them again.
        net: the model with our weights, in evaluation mode.
        tokens: whether it gives all tokens, (B, L, C), since timm has no pooling like ours.
    """

    architecture: str
    arguments: Mapping[str, Any]
    in_code: Mapping[str, Any]
    net: nn.Module
    tokens: bool = False


def fit(exported: Exported, *, example: torch.Tensor) -> Fitted:
    """Return the model of timm that gives the same outputs for an example, (B, 3, S, S).

    Raises:
        NoEqual: there is none; what holds the model instead is said.
        ValueError: timm is not installed.
    """
    extra("timm", extra="timm")
    name, arguments = architecture(exported)
    plain, in_code = _split(arguments)
    with torch.no_grad():
        expected = exported.logits(example)
        for pooling in POOLINGS:
            net = _filled(name, {**arguments, **pooling}, exported)
            if net is not None and _difference(net(example), expected) <= EQUAL * float(expected.abs().max()):
                return Fitted(name, {**plain, **pooling}, in_code, net)
        if exported.head is None:
            net = _filled(name, {**arguments, **TOKENS}, exported)
            if net is not None and _difference(_pooled(net, example), expected) <= EQUAL * float(expected.abs().max()):
                return Fitted(name, {**plain, **TOKENS}, in_code, net, tokens=True)
    what, instead = ("head", "; what=trunk exports the encoder alone") if exported.head is not None else ("pooling", "")
    raise NoEqual(
        f"formats: timm's {name} has no {what} for features pooled as here ({exported.encoder.pooling}); "
        f"{INSTEAD}{instead}"
    )


def _pooled(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return class token and mean of the patch tokens of a model that gives all tokens, (B, 2C)."""
    tokens = net(x)
    if tokens.ndim != 3:
        return tokens  # type: ignore[no-any-return]
    return torch.cat([tokens[:, 0], tokens[:, cast(Any, net).num_prefix_tokens :].mean(1)], dim=1)


def architecture(exported: Exported) -> tuple[str, Mapping[str, Any]]:
    """Return the name of timm's model that an encoder may equal, and its arguments.

    Raises:
        NoEqual: there is none.
    """
    encoder = exported.encoder
    if isinstance(encoder, TimmEncoder):
        config = encoder.net.pretrained_cfg
        arguments = {
            key: value for key, value in encoder.net._model_args.items() if key != "num_classes"
        }  # all, as built
        if arguments.get("dynamic_img_size") and config.get(
            "fixed_input_size"
        ):  # else its positions would be resampled
            arguments.setdefault("img_size", config["input_size"][-1])
        return config["architecture"], arguments
    if encoder.name == "efficientnet_lite0":
        return LITE, {}
    if encoder.name in RESNETS and encoder.stem == "standard" and encoder.output_stride == 32:
        return encoder.name, {}
    what = encoder.name
    if encoder.name in RESNETS:
        what += f" with stem {encoder.stem}" if encoder.stem != "standard" else " without the last stage's stride"
    raise NoEqual(f"formats: timm has no {what}; {INSTEAD}")


def _split(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that JSON can hold, and the others."""
    plain, others = {}, {}
    for name, value in arguments.items():
        try:
            json.dumps(value)
            plain[name] = value
        except TypeError:
            others[name] = value
    return plain, others


def _filled(name: str, arguments: Mapping[str, Any], exported: Exported) -> nn.Module | None:
    """Return a model of timm with our weights, in evaluation mode; None where it lacks the arguments or the tensors."""
    classes = len(exported.classes)
    try:
        net: nn.Module = extra("timm", extra="timm").create_model(name, num_classes=classes, **arguments)
    except (TypeError, AssertionError, ValueError, RuntimeError):  # each a way in which models refuse an argument
        return None
    state = as_elsewhere(exported.encoder.state_dict())
    heads: dict[str, torch.Tensor] = {}
    if exported.head is not None:
        parts: Any = cast(Any, net).pretrained_cfg["classifier"]  # a name, or those of two heads that are averaged
        for part in (parts,) if isinstance(parts, str) else parts:
            heads |= {f"{part}.{key}": value for key, value in exported.head.state_dict().items()}
    there = {key: value.shape for key, value in net.state_dict().items()}
    if name == LITE:
        state = dict(zip((key for key in there if key not in heads), state.values(), strict=True))
    state |= heads
    if {key: value.shape for key, value in state.items()} != there:
        return None
    net.load_state_dict(state)
    return net.eval()


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two outputs; infinity where their shapes differ."""
    return float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")


def write(fitted: Fitted, exported: Exported, folder: Path, *, example: torch.Tensor) -> float:
    """Write the two files, let timm read them, and return the largest difference of an output from ours.

    Of a model that gives tokens it is the difference of these.
    """
    state = {key: value.contiguous() for key, value in fitted.net.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, metadata={"format": "pt"}))  # save_file's can be read by the owner alone
    write_json(folder / CONFIG, described(fitted, exported))
    again = extra("timm", extra="timm").create_model(f"local-dir:{folder}", pretrained=True, **fitted.in_code).eval()
    with torch.no_grad():
        return _difference(again(example), fitted.net(example) if fitted.tokens else exported.logits(example))


def described(fitted: Fitted, exported: Exported) -> dict[str, object]:
    """Return what config.json says. The part `sscl` is for readers and sscl, timm has no place for it."""
    config: Any = fitted.net.pretrained_cfg
    fixed = bool(config.get("fixed_input_size")) and not fitted.arguments.get("dynamic_img_size")
    classes = exported.classes
    found: dict[str, object] = {
        "architecture": fitted.architecture,
        "num_classes": len(classes),
        "num_features": exported.encoder.num_features,
    }
    if classes:
        found["label_names"] = list(classes)
    if fitted.arguments:
        found["model_args"] = dict(fitted.arguments)
    found["pretrained_cfg"] = {
        "custom_load": False,
        "input_size": [3, exported.size_px, exported.size_px],
        "fixed_input_size": fixed,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash",  # both sides, as `images.resized`
        "mean": list(exported.mean),
        "std": list(exported.std),
        "num_classes": len(classes),
        "pool_size": None,
        "first_conv": config.get("first_conv"),
        "classifier": config.get("classifier"),
    }
    told: dict[str, object] = {
        "version": __version__,
        "encoder": exported.encoder.name,
        "pool": exported.encoder.pooling,
        "mpp": exported.scale.mpp,
    }
    if exported.scale.mpp_range:
        told["mpp_range"] = list(exported.scale.mpp_range)
    if fitted.in_code:
        told["kwargs"] = {key: named(value) for key, value in fitted.in_code.items()}
    if exported.decisions is not None:
        told |= {"logits": "not calibrated: probabilities are softmax(logits / temperature)"}
        told |= exported.decisions.model_dump(mode="json")
    return found | {"sscl": told}


def notes(fitted: Fitted, exported: Exported) -> list[str]:
    """Return what whoever loads the folder must know, a sentence each."""
    found = []
    if exported.decisions is not None:
        found.append(
            f"timm's logits are not calibrated: divide them by {exported.decisions.temperature:.4g}, the temperature "
            "in config.json"
        )
    if fitted.tokens:
        found.append(
            f"timm has no pooling {exported.encoder.pooling}: the model gives all tokens, README.md pools them"
        )
    if fitted.in_code:
        given = ", ".join(f"{name}={named(value)}" for name, value in fitted.in_code.items())
        found.append(f"config.json cannot hold {given}: give it to timm.create_model again")
    return found


def named(layer: object) -> str:
    """Return what a kind of layer is called in timm.layers."""
    kinds: dict[str, object] = vars(extra("timm.layers", extra="timm"))
    return next(name for name, found in kinds.items() if found is layer)
