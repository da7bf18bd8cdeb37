"""Files of weights, of sscl and of other programs: find the trunk in them, fill an encoder with it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sscl.config.published import PUBLISHED
from sscl.models.checkpoint import Checkpoint, TensorDict, is_checkpoint, parse_checkpoint
from sscl.models.exports import ExportedFacts, exported_facts
from sscl.models.tensors import fault_in, misfits, named
from sscl.models.torch_files import read_torch_file
from sscl.models.transformers import timms_names, transformer_of
from sscl.words import count, listed

# Where training programs put the state dict; the first one found is used. `teacher` before `student`, as
# DINO's authors evaluate it (arXiv:2104.14294, section 3.1).
WRAPPERS = ("state_dict", "model_state_dict", "model", "teacher", "student", "net", "network", "encoder", "backbone")
# The running average of the weights, which is what is evaluated: it goes first, as in timm's load_state_dict.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?)(?=[._])")
# What torch's own wrappers put before every name: DataParallel and DistributedDataParallel, torch.compile.
OUTER = ("module.", "_orig_mod.")
# lightly cuts torchvision's ResNet with `nn.Sequential(*list(resnet.children())[:-1])`, so positions become names.
POSITIONS = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class Rule:
    """How the tensors of a trunk are called in the files of one origin.

    Attributes:
        origin: in words.
        prefix: what stands before the trunk's names.
        mark: a name below the prefix by which the origin is recognised.
        heads: beginnings of names below the prefix that are not the trunk's and are dropped.
        elsewhere: beginnings of names outside the prefix that are dropped.
        mean, std: what the weights expect of pixels in 0-1; None: not part of the origin.
        positions: whether the names are positions in an nn.Sequential.
    """

    origin: str
    prefix: str
    mark: str = "conv1.weight"
    heads: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    positions: bool = False


_HALF = (0.5, 0.5, 0.5)
# lightly: projection_head, prediction_head and the copies *_momentum of its examples, the memory bank in criterion.
# solo-learn (solo/methods/*.py): classifier, projector, predictor, momentum_*, prototypes, queue*, DINO's head.
_HEADS = (
    "projection_head",
    "prediction_head",
    "backbone_momentum.",
    "criterion.",
    "classifier.",
    "projector.",
    "predictor.",
    "momentum_",
    "prototypes",
    "queue",
    "head.",
)
RULES = (
    # github.com/ozanciga/self-supervised-histopathology: trunk and projection are one ResNet18 whose fc is a Sequential
    # with parameters at 1 and 3. Its README does not say the normalisation, its author does: mean = std = 0.5.
    Rule("Ciga et al.", "model.resnet.", heads=("fc.1.", "fc.3."), mean=_HALF, std=_HALF),
    Rule("Ciga et al.", "resnet.", heads=("fc.1.", "fc.3."), mean=_HALF, std=_HALF),
    # github.com/facebookresearch/moco, main_lincls.py: encoder_q up to before its embedding layer fc.
    Rule("MoCo", "encoder_q.", heads=("fc.",), elsewhere=("encoder_k.", "queue")),
    # github.com/facebookresearch/moco-v3, moco/builder.py: the projection is base_encoder.fc.
    Rule("MoCo v3", "base_encoder.", heads=("fc.",), elsewhere=("momentum_encoder.", "predictor.")),
    Rule("lightly", "backbone.", mark="0.weight", elsewhere=_HEADS, positions=True),
    Rule("solo-learn, lightly or DINO", "backbone.", heads=("fc.",), elsewhere=_HEADS),
    # solo-learn before version 1.0.3, lightning-bolts.
    Rule("solo-learn", "encoder.", heads=("fc.",), elsewhere=("projection.", "momentum_", *_HEADS)),
    # The names are torchvision's; timm's ResNets share them.
    Rule("torchvision or timm", "", heads=("fc.",)),
    Rule("efficientnet-lite-pytorch", "", "_conv_stem.weight", ("_fc.",), (), (127 / 255,) * 3, (128 / 255,) * 3),
    Rule("timm", "", mark="patch_embed.proj.weight", heads=("head.", "mask_token", "dino_head.", "ibot_head.")),
    Rule("timm", "", mark="conv_stem.weight", heads=("classifier.",)),
    Rule("timm", "", mark="conv1.0.weight", heads=("fc.",)),  # ResNets of a deep stem, such as resnet50d
    Rule("timm", "", mark="stem.0.weight", heads=("head.fc.",)),
)
# The same trunks below any prefix, each with a name that only a trunk has.
ANYWHERE = (
    (Rule("torchvision or timm", "", heads=("fc.",)), "layer1.0.conv1.weight"),
    (Rule("torchvision in a Sequential", "", mark="0.weight", positions=True), "4.0.conv1.weight"),
    *((rule, rule.mark) for rule in RULES if rule.mark not in ("conv1.weight", "0.weight")),
)
# Models of other packages keep the names they have there, below `net.` in an sscl encoder.
_OTHER = Rule("sscl", "net.", mark="", heads=("fc.",))


@dataclass(frozen=True)
class Trunk:
    """An encoder's tensors and what the file says about them.

    Attributes:
        state: tensors by the encoder's own names (torchvision's for a ResNet); what found no place in the rule for the
            file's origin is in it too, by its whole name, and `load_trunk` refuses it.
        mean, std: channel means and standard deviations, of pixels in 0-1, that the weights expect; None: the file does
            not say.
        origin: where the names come from, in words; the prefix that was stripped, which of two sets of weights was
            taken, and what was left out.
        checkpoint: the facts of an sscl checkpoint; None for any other file.
        exported: those of a .safetensors file of `sscl export`; None for any other file.
    """

    state: TensorDict
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    origin: str
    checkpoint: Checkpoint | None = None
    exported: ExportedFacts | None = None


def read_trunk(path: str | Path) -> Trunk:
    """Return the trunk in a file of weights: an sscl checkpoint, or one whose names `RULES` knows.

    The trunk is renamed to the encoder's names, what the rule knows to be heads or copies is dropped, and all else is
    kept for `load_trunk` to refuse. Batch norms without their `num_batches_tracked` (files before torch 0.4.1) get 0
    there, and `origin` says so: nothing computes with it as long as the batch norm has a momentum.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not readable, or contains no encoder that sscl knows.
    """
    content = read_torch_file(path)
    if is_checkpoint(content):
        checkpoint = parse_checkpoint(content, source=path)
        return Trunk(
            state=checkpoint.encoder,
            mean=checkpoint.mean,
            std=checkpoint.std,
            origin="sscl",
            checkpoint=checkpoint.without_tensors(),
        )
    tensors, said = _tensors(content)
    while outer := next((name for name in OUTER if tensors and all(key.startswith(name) for key in tensors)), None):
        tensors = {key.removeprefix(outer): value for key, value in tensors.items()}
    rule = next((rule for rule in RULES if _has(tensors, rule.prefix + rule.mark)), None)
    if rule is None:
        rule, more = _rule_anywhere(tensors, source=path)
        said += more
    state, left_out = _renamed(tensors, rule)
    state = timms_names(state)
    if found := fault_in(state):
        raise ValueError(f"model.weights: {path}: {found}; get the file again or take an earlier checkpoint")
    norms = [key.removesuffix("running_var") for key in state if key.endswith("running_var")]
    untracked = [f"{norm}num_batches_tracked" for norm in norms if f"{norm}num_batches_tracked" not in state]
    if untracked:
        said.append("num_batches_tracked set to 0")
        state |= {key: torch.tensor(0) for key in untracked}
    if left_out:
        said.append(f"left out: {left_out}")
    exported = exported_facts(path)
    if exported is not None:
        return Trunk(state=state, mean=exported.mean, std=exported.std, origin="sscl export", exported=exported)
    return Trunk(state=state, mean=rule.mean, std=rule.std, origin="; ".join([rule.origin, *said]))


def _rule_anywhere(tensors: TensorDict, *, source: str | Path) -> tuple[Rule, list[str]]:
    """Return a rule for the one prefix below which all tensors of a trunk lie, and what to say about it.

    What lies elsewhere is dropped. Of two trunks the average is taken.
    """
    for rule, sign in ANYWHERE:
        ends = [key.removesuffix(sign) for key in tensors if key == sign or key.endswith(f".{sign}")]
        prefixes = [prefix for prefix in ends if f"{prefix}{rule.mark}" in tensors]
        averages = [prefix for prefix in prefixes if _AVERAGE.search(prefix)]
        if len(prefixes) > 1 and len(averages) != 1:
            raise ValueError(
                f"model.weights: {source} contains several encoders ({named(prefixes)}); save the one you mean alone"
            )
        if prefixes:
            chosen = (averages or prefixes)[0]
            said = [f"prefix {chosen} stripped"] if chosen else []
            said += [f"the average (EMA), not {prefix}" for prefix in prefixes if prefix != chosen]
            return replace(rule, prefix=chosen, elsewhere=("",)), said
    if _has(tensors, _OTHER.prefix):
        return _OTHER, []
    raise ValueError(
        f"model.weights: {source} contains no encoder that sscl knows "
        f"({named(list(tensors)) or 'no tensors by name; of a whole model save its state_dict()'}); expected an sscl "
        "checkpoint or a state dict of torchvision, timm, lightly, solo-learn, MoCo, Ciga"
    )


def _renamed(tensors: TensorDict, rule: Rule) -> tuple[TensorDict, str]:
    """Return a file's tensors by the encoder's names, and what the rule knows to be heads or copies, in words."""
    state: TensorDict = {}
    dropped: Counter[str] = Counter()
    for key, value in tensors.items():
        inside = key.startswith(rule.prefix)
        name = key.removeprefix(rule.prefix)
        if name.startswith(rule.heads) if inside else key.startswith(rule.elsewhere):
            dropped[(name if inside else key).partition(".")[0]] += 1
            continue
        if inside and rule.positions:
            position, _, rest = name.partition(".")
            name = f"{POSITIONS[position]}.{rest}" if position in POSITIONS else key
        state[name] = value
    return state, named([f"{name} ({count(number, 'tensor')})" for name, number in dropped.items()])


def _has(tensors: TensorDict, mark: str) -> bool:
    return any(key.startswith(mark) for key in tensors) if mark.endswith(".") else mark in tensors


def _tensors(content: Any) -> tuple[TensorDict, list[str]]:
    """Return the tensors by name, below the wrapping keys of training programs, and which of two sets they are."""
    said: list[str] = []
    while isinstance(content, dict):
        inside = [key for key in (*AVERAGES, *WRAPPERS) if _holds_tensors(content.get(key))]
        if not inside:
            break
        if inside[0] in AVERAGES:
            other = next((key for key in inside if key in WRAPPERS), None)
            said = [f"the average of the weights (EMA, {inside[0]}){f', not {other}' if other else ''}"]
        content = content[inside[0]]
    found = content if isinstance(content, dict) else {}
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    if tensors.pop("n_averaged", None) is not None:  # torch.optim.swa_utils.AveragedModel
        said = ["an average of weights (AveragedModel)"]
    return tensors, said


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(
        isinstance(inner, torch.Tensor) or _holds_tensors(inner) for inner in value.values()
    )


def load_trunk(encoder: nn.Module, state: TensorDict, *, source: str) -> None:
    """Fill an encoder of `models.build_encoder`; every tensor must find its place.

    The tensors of another package's model may have their names there, without the prefix `net.`.

    Raises:
        ValueError: missing, left-over or wrongly shaped tensors, named, and which ResNet the weights look like.
    """
    module: Any = encoder
    if all(key.startswith("net.") for key in encoder.state_dict()):
        module, state = encoder.net, {key.removeprefix("net."): value for key, value in state.items()}
    if faults := misfits(module, state):
        looks, own = transformer_of(state), transformer_of(encoder.state_dict())
        if looks and own:
            total = sum(value.numel() for value in state.values())
            same = [one.name for one in PUBLISHED.values() if one.parameters == total]
            like = f", as {listed(same, last='or')}" if same else ""
            raise ValueError(
                f"model.weights: {source} does not fit {encoder.name} ({faults}); the file has {looks}"
                f"{like}; {encoder.name} has {own}; set "
                "model.name and model.kwargs to those of the weights"
            )
        looks = resnet_of(state) or (looks and f"a vision transformer of {looks}")
        raise ValueError(
            f"model.weights: {source} does not fit {encoder.name} with the {encoder.stem} stem ({faults}); "
            f"{f'it looks like {looks}; ' if looks else ''}set model.name and model.stem to those of the weights"
        )
    module.load_state_dict(state)


def resnet_of(state: TensorDict) -> str | None:
    """Return which ResNet the tensors look like, by their blocks, "resnet50 with the standard stem"; None if none."""
    stages = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    bottleneck = "layer1.0.conv3.weight" in state
    known: dict[tuple[tuple[int, ...], bool], str] = {
        ((2, 2, 2, 2), False): "resnet18",
        ((3, 4, 6, 3), False): "resnet34",
        ((3, 4, 6, 3), True): "resnet50",
        ((3, 4, 23, 3), True): "resnet101",
        ((3, 8, 36, 3), True): "resnet152",
    }
    name = known.get((stages, bottleneck))
    if name is None or "conv1.weight" not in state:
        return name
    return f"{name} with the {'standard' if state['conv1.weight'].shape[-1] == 7 else 'small'} stem"
