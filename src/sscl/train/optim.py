"""Optimizers: parameter groups, SGD, LARS, AdamW."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from sscl.config.training import FinetuneTrainConfig, PretrainTrainConfig
from sscl.models.blocks import rate_factors, undecayed
from sscl.models.encoders import Encoder

Name = Literal["sgd", "lars", "adamw"]


def parameter_groups(
    module: nn.Module, *, learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return two groups for each learning rate: weights, and what takes neither decay nor LARS's scaling, that is
    biases, norm parameters, tokens and position embeddings.

    Frozen parameters are left out. Each group carries its peak learning rate as `peak_lr`.

    Args:
        layer_decay: factor on the rate from one block of an `Encoder` to the one before; other modules have one rate.

    Raises:
        ValueError: an encoder whose blocks are not known, with a `layer_decay` below 1.
    """
    factors = rate_factors(module, layer_decay) if isinstance(module, Encoder) and layer_decay < 1 else {}
    exempt = undecayed(module) if isinstance(module, Encoder) else set()
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    for rate in sorted({factors.get(name, 1.0) * learning_rate for name, _ in trained}):
        common = {"lr": rate, "peak_lr": rate}
        groups[rate, True] = {"params": [], "weight_decay": weight_decay, "adapt": True, **common}
        groups[rate, False] = {"params": [], "weight_decay": 0.0, "adapt": False, **common}
    for name, p in trained:
        groups[factors.get(name, 1.0) * learning_rate, p.ndim > 1 and name not in exempt]["params"].append(p)
    return [group for group in groups.values() if group["params"]]


def build_optimizer(name: Name, groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Return SGD with momentum, LARS or AdamW over the groups of `parameter_groups`.

    There is no "adam": AdamW without weight decay is Adam, and with it the better one of the two. SGD and AdamW run
    fused when all parameters are on a GPU. A state loads from any device: how to compute is not taken from it.
    """
    if name == "lars":
        return LARS(groups, momentum=momentum)
    fused = _on_gpu(groups) or None  # None: torch's choice among the rest
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = AdamW(groups, lr=1e-3, fused=fused)
    else:
        optimizer = SGD(groups, lr=0.1, momentum=momentum, fused=fused)
        if fused and momentum > 0:
            _start_at_rest(optimizer)
    optimizer.register_load_state_dict_pre_hook(_keep_fused)
    return optimizer


def _start_at_rest(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter a momentum of zero, from which a first step is torch's first step to the bit.

    torch's fused SGD makes the momentum in its first step without filling it. Where a gradient scaler skips that step,
    as fp16 usually does, the second would add whatever the memory held (in torch 2.11 and 2.15).
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _on_gpu(groups: list[dict[str, Any]]) -> bool:
    return all(p.is_cuda for group in groups for p in group["params"])


def _keep_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return a state to load whose groups are fused as the optimizer's are.

    Half of that choice (how a gradient scaler is served) is made when an optimizer is built and does not change by
    loading, so a state from another device would leave it divided.
    """
    own = [{key: group[key] for key in ("fused", "foreach")} for group in optimizer.param_groups]
    # Groups that do not match in number are left for torch to refuse.
    groups = [{**group, **(own[i] if i < len(own) else {})} for i, group in enumerate(state["param_groups"])]
    return {**state, "param_groups": groups}


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to factor * its peak.

    The rate is a Python number, which a CUDA graph would freeze: capture forward and backward, not the step.
    """
    for group in optimizer.param_groups:
        group["lr"] = factor * group["peak_lr"]


# What is kept of each parameter: by the name of torch's class, and ours.
_KEPT = {"SGD": {"momentum_buffer"}, "LARS": {"momentum_buffer"}, "AdamW": {"step", "exp_avg", "exp_avg_sq"}}


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put an optimizer back to a state; its rates, decay and momentum stay those of the configuration.

    Raises:
        ValueError: the state is another optimizer's, or of other parameters.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for parameter, kept in optimizer.state.items():
        names = {name for name, value in kept.items() if value is not None}
        if names and names != _KEPT[type(optimizer).__name__]:
            raise ValueError(f"optimizer: holds {', '.join(sorted(map(str, names)))} of a parameter")
        for name in names:
            value = kept[name]
            shape = () if name == "step" else parameter.shape
            if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.shape != shape:
                raise ValueError(
                    f"optimizer: {name} of a parameter of shape {tuple(parameter.shape)} is none of its own"
                )


class _Uncompiled(torch.optim.Optimizer):
    """An optimizer that starts without torch's compiler.

    torch wraps these methods to keep them out of `torch.compile`, and the wrapper imports the compiler: 1.4 s before a
    run's first step. Steps are never compiled here (`step.py` compiles views, model and loss).
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_Uncompiled, torch.optim.SGD):
    """torch's SGD."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class AdamW(_Uncompiled, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class LARS(_Uncompiled):
    """SGD with momentum whose step in each weight tensor is scaled to trust * |w| / |g + decay * w|.

    Groups with `adapt: False` (biases, norms) take plain momentum steps. Nothing waits for the device: a gradient
    scaler (fp16) leaves its scale, and whether a gradient is infinite, on the optimizer as tensors, as for torch's
    fused ones. Scaling the steps takes a launch for each weight tensor (53 for ResNet50); all else a few for a group.

    Source: You et al., arXiv:1708.03888; momentum after the scaling and the learning rate outside it, as in SimCLR.
    """

    def __init__(self, params: Iterable[Any], *, lr: float = 0.1, momentum: float = 0.9, trust: float = 1e-3) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapt": True}
        super().__init__(params, defaults)
        self._step_supports_amp_scaling = True  # read by torch.amp.GradScaler

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        # Only there while a scaler calls this.
        scale: torch.Tensor | None = getattr(self, "grad_scale", None)
        found_inf: torch.Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = [p.grad for p in params]
            if scale is not None:
                updates = list(torch._foreach_mul(updates, scale.reciprocal()))
            if group["weight_decay"]:
                updates = list(torch._foreach_add(updates, params, alpha=group["weight_decay"]))
            if group["adapt"]:
                w, u = torch.stack(torch._foreach_norm(params)), torch.stack(torch._foreach_norm(updates))
                factors = torch.where((w > 0) & (u > 0), group["trust"] * w / u, 1.0)
                updates = list(torch._foreach_mul(updates, factors.unbind()))
            buffers = [self._momentum_of(p) for p in params]
            if found_inf is None and not params[0].is_cuda:
                torch._foreach_mul_(buffers, group["momentum"])
                torch._foreach_add_(buffers, updates)
                torch._foreach_add_(params, buffers, alpha=-group["lr"])
                continue
            # The same in one kernel, which also does nothing after an infinite gradient.
            torch._fused_sgd_(
                params,
                updates,
                buffers,
                weight_decay=0.0,
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
                found_inf=found_inf,
            )

    def _momentum_of(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: torch.Tensor = state["momentum_buffer"]
        return buffer


def optimizer_of(
    train: PretrainTrainConfig | FinetuneTrainConfig, parts: Sequence[tuple[nn.Module, float]]
) -> torch.optim.Optimizer:
    """Return the optimizer of a training, of parts with a peak rate each; the last part's is the one that is logged."""
    groups = [
        group
        for part, rate in parts
        for group in parameter_groups(
            part, learning_rate=rate, weight_decay=train.weight_decay, layer_decay=train.layer_decay
        )
    ]
    return build_optimizer(train.optimizer, groups, momentum=train.momentum)
