"""Batch norm over the tiles of all ranks, as one process would normalise the whole batch.

W ranks with B tiles each, C channels. torch's SyncBatchNorm allows ranks of unequal batches, for which the host waits
at every layer, works on GPUs alone, and drops the activation of timm's norms. Here all ranks hold equally many tiles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sscl import ranks

# timm's norms with an activation apply these two of their parts, in this order.
PARTS_AFTER = ("drop", "act")

Running = tuple[torch.Tensor, torch.Tensor, float]  # running mean and variance, and the momentum that moves them
Statistics = tuple[torch.Tensor, torch.Tensor]  # mean, 1 / sqrt(var + eps)
Normalised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x normalised, and its statistics
Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]  # at x, weight and bias


def synchronise_batch_norm(module: nn.Module) -> None:
    """Have the batch norms within the module use the statistics of all ranks' tiles while they train.

    In place: parameters, buffers, hooks and the keys of the state dict stay. Does nothing in a single process.

    Raises:
        ValueError: a kind of batch norm that computes something else besides.
    """
    if ranks.world_size() == 1:
        return
    norms = {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}
    for name, norm in norms.items():
        plain = type(norm).forward is _BatchNorm.forward
        if not (plain or isinstance(norm, BatchNormOverRanks) or set(PARTS_AFTER) <= norm._modules.keys()):
            raise ValueError(
                f"model.name: its layer {name} is a {type(norm).__name__}, which can't be computed over several "
                "ranks; train on one device, or choose another model"
            )
    for norm in norms.values():
        # Not a new module: optimizers, hooks and lists of norms elsewhere go on holding the right one.
        norm.__class__ = BatchNormOverRanks


class BatchNormOverRanks(_BatchNorm):
    """A batch norm that normalises by the tiles of all ranks in training, and as torch's in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (B, C, ...) normalised, after timm's dropout and activation where the norm has them."""
        y = self._over_ranks(x) if self.training and ranks.world_size() > 1 else super().forward(x)
        for name in PARTS_AFTER:
            if name in self._modules:
                y = getattr(self, name)(y)
        return y

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass

    def _over_ranks(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.track_running_stats or mean is None or var is None:
            return self._normalised(x, None)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        if self.momentum is not None:
            return self._normalised(x, (mean, var, self.momentum))
        # The plain mean over all batches. Their count stays on the device.
        batch_mean, batch_var = torch.zeros_like(mean), torch.zeros_like(var)
        y = self._normalised(x, (batch_mean, batch_var, 1.0))
        fraction = self.num_batches_tracked.to(mean.dtype).reciprocal()
        mean.lerp_(batch_mean, fraction)
        var.lerp_(batch_var, fraction)
        return y

    def _normalised(self, x: torch.Tensor, running: Running | None) -> torch.Tensor:
        """Return x normalised by the batch; the running statistics move towards the batch's."""
        y: torch.Tensor = _Normalise.apply(x, self.weight, self.bias, *(running or (None, None, 0.0)), self.eps)
        return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias with the statistics of all ranks; moves the running ones.

    One message each way: two values a channel and rank. The gradient at x is that of the sum of the ranks' losses, as
    in `ranks.gather`; those at weight and bias are this rank's, for DistributedDataParallel to average.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor | None,
        var: torch.Tensor | None,
        momentum: float,
        eps: float,
    ) -> torch.Tensor:
        running = None if mean is None or var is None else (mean, var, momentum)
        normalise = _forward_cuda if _has_kernels(x) else _forward
        y, mean, invstd = normalise(x, weight, bias, running, eps)
        ctx.save_for_backward(x, weight, mean, invstd)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        differentiate = _backward_cuda if _has_kernels(x) else _backward
        at_x, at_weight, at_bias = differentiate(grad, x, weight, (mean, invstd), at_x=ctx.needs_input_grad[0])
        at_weight = at_weight if ctx.needs_input_grad[1] else None
        at_bias = at_bias if ctx.needs_input_grad[2] else None
        return at_x, at_weight, at_bias, None, None, None, None


def _has_kernels(x: torch.Tensor) -> bool:
    """Return whether to use torch's kernels for statistics that are shared; the compiler has faster ones of its own."""
    return x.device.type == "cuda" and not torch.compiler.is_compiling()


# --- torch's kernels, on CUDA ---


def _forward_cuda(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, running: Running | None, eps: float
) -> Normalised:
    x = _dense(x)
    if running is None:  # without them the kernel wants counts in the precision of x
        running = (torch.zeros(x.shape[1], device=x.device), torch.zeros(x.shape[1], device=x.device), 0.0)
    running_mean, running_var, momentum = running
    shared = ranks.gather_values(torch.cat(torch.batch_norm_stats(x, eps)))  # (W, 2C): mean, 1 / sqrt(var + eps)
    means, invstds = shared.chunk(2, dim=1)
    counts = torch.full((len(shared),), x.numel() // x.shape[1], dtype=running_mean.dtype, device=x.device)
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        x, means, invstds, running_mean, running_var, momentum, eps, counts
    )
    return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps), mean, invstd


def _backward_cuda(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, found: Statistics, *, at_x: bool
) -> Gradients:
    grad, x, (mean, invstd) = _dense(grad), _dense(x), found
    sum_grad, sum_grad_x, at_weight, at_bias = torch.batch_norm_backward_reduce(
        grad, x, mean, invstd, weight, True, weight is not None, weight is not None
    )
    if not at_x:
        return None, at_weight, at_bias
    sums = ranks.total(torch.cat([sum_grad, sum_grad_x]))
    counts = torch.full((ranks.world_size(),), x.numel() // x.shape[1], dtype=torch.int32, device=x.device)
    sum_grad, sum_grad_x = sums.chunk(2)
    gradient = torch.batch_norm_backward_elemt(grad, x, mean, invstd, weight, sum_grad, sum_grad_x, counts)
    return gradient, at_weight, at_bias


def _dense(x: torch.Tensor) -> torch.Tensor:
    """Return x in one of the layouts that the kernels take."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


# --- the same in plain operations ---


def _forward(
    x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, running: Running | None, eps: float
) -> Normalised:
    wide = _wide(x)
    var, mean = torch.var_mean(wide, _others(x), correction=0)
    shared = ranks.gather_values(torch.cat([mean, var]))  # (W, 2C)
    means, variances = shared.chunk(2, dim=1)
    # Of equally many values on each rank: the mean variance within ranks, and the variance between them.
    mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    if running is not None:
        running_mean, running_var, momentum = running
        count = len(shared) * (x.numel() // x.shape[1])
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    invstd = (var + eps).rsqrt()
    y = (wide - _along(mean, x)) * _along(invstd, x)
    if weight is not None:
        y = y * _along(weight, x)
    if bias is not None:
        y = y + _along(bias, x)
    return y.to(x.dtype), mean, invstd


def _backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor | None, found: Statistics, *, at_x: bool
) -> Gradients:
    wide_grad, others, (mean, invstd) = _wide(grad), _others(x), found
    normal = (_wide(x) - _along(mean, x)) * _along(invstd, x)
    at_bias, at_weight = wide_grad.sum(others), (wide_grad * normal).sum(others)
    gradient = None
    if at_x:
        count = ranks.world_size() * (x.numel() // x.shape[1])
        mean_grad, mean_grad_x = (ranks.total(torch.cat([at_bias, at_weight])) / count).chunk(2)
        scale = invstd if weight is None else invstd * weight
        gradient = (wide_grad - _along(mean_grad, x) - normal * _along(mean_grad_x, x)) * _along(scale, x)
        gradient = gradient.to(x.dtype)
    return gradient, at_weight, at_bias


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Return x in the precision of its statistics: at least float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _others(x: torch.Tensor) -> list[int]:
    return [i for i in range(x.dim()) if i != 1]


def _along(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return a value for each channel, (C,), in the shape that meets the channels of x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))
