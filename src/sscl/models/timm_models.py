"""Models of timm by name, with arguments in plain words."""

from __future__ import annotations

import contextlib
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sscl.config.encoders import FOLDER, HUB, TIMM, Kwargs, Pool
from sscl.config.messages import shown
from sscl.config.published import PUBLISHED
from sscl.memory import least_free
from sscl.words import closest, nearest, readable, short, some

_PATIENCE_S = 3  # for each address of the hub
# What decides something that another key of sscl decides, or reads a file of its own accord.
OURS = {
    "num_classes": "the classes of the tiles decide it",
    "in_chans": "tiles have 3 channels",
    "global_pool": "model.pool decides it",
    "pretrained": "model.weights decides it",
    "pretrained_cfg": "model.mean and model.std decide it",
    "pretrained_cfg_overlay": "model.mean and model.std decide it",
    "pretrained_strict": "every tensor must find its place",
    "checkpoint_path": "model.weights decides it",
    "cache_dir": "HF_HOME decides it",
    "features_only": "the last features are used",
}
# Classes that timm takes, which have no names there.
_CLASSES = {"mlp_layer": ("Mlp", "GluMlp", "SwiGLU", "SwiGLUPacked")}
# Which timm takes as they are, and torch refuses in the first step.
_FRACTIONS = ("drop_rate", "drop_path_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate")


def extra(package: str, *, extra: str) -> Any:
    """Return a package of an extra.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f"model.name: needs the package {package}; pip install 'sscl[{extra}]'") from error


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub's client from telling of each of its five tries; what comes of them is said once."""
    log = extra("huggingface_hub.utils.logging", extra="timm")
    level = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)


def check_timm_name(name: str) -> None:
    """Raise ValueError unless a model of timm is called so; `name` has its `timm:`.

    Of an unknown model the nearest name is said; of unknown weights of a known one those that there are, since a name
    nearby would be those of another encoder.
    """
    timm, model = extra("timm", extra="timm"), name.removeprefix(TIMM)
    if any(sign in model for sign in "/:"):
        raise ValueError(
            f"model.name: got {name!r}; a repository of the hub is {HUB}USER/MODEL, a folder with its config.json "
            f"{FOLDER}PATH"
        )
    architecture, dot, weights = model.partition(".")
    if timm.is_model(architecture):
        known = timm.list_pretrained(f"{architecture}.*") if dot else []
        if not dot or model in known:
            return
        of_table = next((one for one in PUBLISHED.values() if one.hub.rpartition("/")[2] == model), None)
        if of_table is not None:
            raise ValueError(
                f"model.name: timm has no weights {weights}, got {name!r}; they are model.name={of_table.name}"
            )
        there = some([one.partition(".")[2] for one in known]) or "none"
        raise ValueError(f"model.name: timm has no weights {weights} of {architecture}, got {name!r}; it has {there}")
    near = closest(architecture, timm.list_models())
    hint = "see timm.list_models()" if near is None else f"did you mean {TIMM}{near}?"
    raise ValueError(f"model.name: timm has no model {architecture}, got {name!r}; {hint}")


def create(model: str, *, kwargs: Kwargs, pretrained: bool = False) -> nn.Module:
    """Return a model of timm without its classifier; tiles may have any size where the model can take them.

    Args:
        model: its name at timm. kwargs: its arguments. pretrained: with timm's weights, which it downloads once.

    Raises:
        ValueError: it has no such argument, cannot be built with it, or not in this memory; the weights cannot be had.
    """
    timm = extra("timm", extra="timm")
    given = {"dynamic_img_size": True, **_checked(kwargs)}
    on_meta = _check_room(timm, model, given, kwargs=kwargs)
    with torch.device("meta") if pretrained and on_meta else contextlib.nullcontext():  # no values: others come
        try:
            try:
                net = _created(timm, model, given)
            except TypeError as error:
                if "dynamic_img_size" not in str(error) or "dynamic_img_size" in kwargs:
                    raise
                del given["dynamic_img_size"]
                net = _created(timm, model, given)
        except Exception as error:  # whatever timm's layers make of such numbers
            raise _refused(model, kwargs, error) from error
    if not pretrained:
        return net
    silent = unreachable_hub()
    try:
        with quiet_hub(), _offline(silent is not None):
            return _created(timm, model, given, pretrained=True)
    except Exception as error:  # the hub client's, its HTTP library's, the system's, or timm has no weights
        why = silent or (str(error) or type(error).__name__).splitlines()[0].split(". ")[0][:160]
        raise ValueError(
            f"model.weights: timm could not load pretrained weights of {model} ({why}); "
            "check the connection, or give model.weights=PATH"
        ) from error


def unreachable_hub() -> str | None:
    """Return why the hub's address takes no connection; None where it takes one, or where a proxy would.

    Its client would try five times, which takes 25 s.
    """
    constants = extra("huggingface_hub.constants", extra="timm")
    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return None
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE_S).close()
    except OSError as error:
        return f"{address.hostname}: {error.strerror or error}"
    return None


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Have the hub's client look into its cache alone, where that is wanted."""
    constants = extra("huggingface_hub.constants", extra="timm")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _created(timm: Any, model: str, given: dict[str, Any], **more: Any) -> nn.Module:
    net: nn.Module = timm.create_model(model, num_classes=0, **given, **more)
    return net


def _check_room(timm: Any, model: str, given: dict[str, Any], *, kwargs: Kwargs) -> bool:
    """Raise ValueError where a model's parameters need more memory than is free: the system would end the process.

    Returns whether it can be built on torch's meta device; if not, nothing is known.
    """
    key = f"{model} {given}"
    if key not in _parameters:
        _parameters[key] = _count_parameters(timm, model, given)
    free, needed = least_free(), 4 * _parameters[key]
    if free is not None and needed > free.size:
        key, what = ("model.kwargs", f"{model} with {', '.join(kwargs)}") if kwargs else ("model.name", model)
        raise ValueError(
            f"{key}: the weights of {what} take {readable(needed)} of memory, and {readable(free.size)} are free "
            f"{free.limit}; take a smaller model"
        )
    return needed > 0


_parameters: dict[str, int] = {}  # of a model with its arguments: an evaluation builds the same one several times


def _count_parameters(timm: Any, model: str, given: dict[str, Any]) -> int:
    """Return how many a model has, counted on the meta device, which keeps none; 0: it cannot be built there."""
    for one in (given, {key: value for key, value in given.items() if key != "dynamic_img_size"}):
        # Whatever timm's layers make of such numbers, or of tensors without values: building it says what is wrong.
        with contextlib.suppress(Exception), torch.device("meta"):
            return sum(parameter.numel() for parameter in _created(timm, model, one).parameters())
    return 0


def features_shape(net: nn.Module, *, side: int, known_as: str) -> tuple[int, ...]:
    """Return the shape of the features of one tile, computed once for all models of a name with its arguments.

    Empty where they are no tensor: CoaT and CrossViT have several.
    """
    if known_as not in _shapes:
        with torch.no_grad():
            found = net.eval().forward_features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
        net.train()
        _shapes[known_as] = tuple(found.shape) if isinstance(found, torch.Tensor) else ()
    return _shapes[known_as]


_shapes: dict[str, tuple[int, ...]] = {}


def _checked(kwargs: Kwargs) -> dict[str, Any]:
    """Return arguments as timm takes them: layers that have no names there as classes."""
    found: dict[str, Any] = dict(kwargs)
    for key, value in kwargs.items():
        if key in OURS:
            raise ValueError(f"model.kwargs.{key}: {OURS[key]}; leave it out")
        if key in _CLASSES:
            if value not in _CLASSES[key]:
                raise ValueError(f"model.kwargs.{key}: got {shown(value)}; {nearest(str(value), _CLASSES[key])}")
            found[key] = getattr(extra("timm.layers", extra="timm"), str(value))
        if key in _FRACTIONS and isinstance(value, (int, float)) and not 0 <= value < 1:
            raise ValueError(f"model.kwargs.{key}: must be from 0 to less than 1, got {shown(value)}")
    return found


def _refused(model: str, kwargs: Kwargs, error: Exception) -> Exception:
    """Return the error of arguments that a model cannot be built with; without any it is a fault of another kind."""
    if not kwargs:
        return error
    reason = short(str(error).partition("__init__() ")[2] or str(error) or type(error).__name__, most=200)
    return ValueError(f"model.kwargs: timm cannot build {model} with {', '.join(kwargs)} ({reason})")


def has_class_token(net: nn.Module) -> bool:
    """Return whether a model has a class token that may be its feature."""
    return getattr(net, "num_prefix_tokens", 0) > 0 and getattr(net, "cls_token", None) is not None


def default_pool(net: nn.Module) -> Pool:
    """Return what the feature is where nothing says it: what timm's classifier reads, or the mean."""
    return "class" if has_class_token(net) and getattr(net, "global_pool", None) == "token" else "mean"


def has_plain_blocks(net: nn.Module) -> bool:
    """Return whether a model computes its features as timm's VisionTransformer does: blocks, then a norm."""
    kind = extra("timm.models.vision_transformer", extra="timm").VisionTransformer
    return isinstance(net, kind) and type(net).forward_features is kind.forward_features


def checkpoint_blocks(blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """Return what blocks make of tokens, with their insides computed again on the way back instead of kept."""
    found: torch.Tensor = extra("timm.models", extra="timm").checkpoint_seq(blocks, x)
    return found
