"""What a training run will need of memory, and what to do where that is more than there is.

B views in one pass, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sscl.device import autocast, half_precision
from sscl.memory import advice
from sscl.models.blocks import without_checkpointing
from sscl.models.dry_run import fake_inputs, state_of
from sscl.words import readable

# Of a process on a GPU besides its tensors: kernels that are loaded when first used (the context itself is not in what
# is free) and the scratch memory of cuDNN and cuBLAS. Assumed, not measured.
WORKSPACES = 512 * 2**20
NEAR = 0.8  # of what is free: the estimate is from below, and a CPU's memory is shared with what starts later
SMALL_PX = 128  # up to this side a CPU computes a few tiles sooner than it imports what computes none
# Values an optimizer keeps for each parameter.
OPTIMIZER_STATE = {"sgd": 1, "lars": 1, "adamw": 2}


def activation_bytes(
    model: nn.Module, *, shape: tuple[int, int, int, int], device_type: str, precision: str = "fp32"
) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, or a backward pass makes again.

    The pass runs on fake tensors, which have shapes and no values, or on two and three small tiles for all: it takes a
    fraction of a second, no memory worth speaking of, and leaves the model as it is, its batch-norm statistics
    included. Counted is every storage that autograd saves, once; parameters, buffers and the input are not counted, but
    what autocast makes of them is. `torch.compile` may keep less. With gradient checkpointing it is the inputs of all
    blocks, what is saved outside them, and all that the largest block saves.

    Args:
        model: in the mode in which it will train, before it is wrapped for several ranks or compiled.
        shape: of the input, (B, 3, H, W).
        device_type: "cuda" or "cpu", where it will train; without CUDA the count is that of a CPU.
        precision: fp32, bf16 or fp16, the autocast of the training.

    Raises:
        ValueError: the precision is none of these.
    """
    device = torch.device(device_type if device_type == "cpu" or torch.cuda.is_available() else "cpu")
    count, _, height, width = shape
    few = (2, 3)  # a batch norm needs two
    small = device.type == "cpu" and precision == "fp32" and count > few[1] and height * width <= SMALL_PX**2
    if small and not any(type(part).__module__.startswith("timm.") for part in model.modules()):
        given = [_kept(model, shape=(n, 3, height, width), device=device, precision=precision, real=True) for n in few]
        return _in_all([low + (count - few[0]) * (high - low) for low, high in zip(*given, strict=True)])
    return _in_all(_kept(model, shape=shape, device=device, precision=precision))


def _in_all(kept: Sequence[int]) -> int:
    """Return the bytes that a pass keeps at a time: what stands outside the blocks, and those of the largest one."""
    return kept[0] + max(kept[1:], default=0)


def _kept(
    model: nn.Module, *, shape: tuple[int, int, int, int], device: torch.device, precision: str, real: bool = False
) -> list[int]:
    """Return the bytes that a forward pass saves: outside the blocks that compute theirs again, and in each of them.

    Args:
        real: compute it. FakeTensorMode, which does not, imports torch's compiler, and that takes longer than torch.
    """
    there: set[int] = set()
    saved: dict[int, tuple[nn.Module | None, int]] = {}  # by storage: the block that keeps it, None: kept in any case
    alive = []  # a storage that goes could leave its number to the next
    inside: list[nn.Module] = []

    def save(tensor: torch.Tensor, block: nn.Module | None) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in there:
            alive.append(storage)
            saved[storage._cdata] = (block, storage.nbytes())

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in saved:
            save(tensor, inside[-1] if inside else None)
        return tensor

    def enter(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        save(inputs[0], None)
        inside.append(block)

    mode = torch.random.fork_rng([]) if real else FakeTensorMode()
    with mode, torch.enable_grad(), without_checkpointing(model) as blocks:
        hooks = [block.register_forward_pre_hook(enter) for block in blocks]
        hooks += [block.register_forward_hook(lambda *_: inside.clear()) for block in blocks]
        state, images = fake_inputs(model, shape=shape, device=device)
        there |= {value.untyped_storage()._cdata for value in (*state.values(), images)}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(device, precision):
            torch.func.functional_call(model, state, (images,))
        for hook in hooks:
            hook.remove()
    kept = dict.fromkeys([None, *blocks], 0)
    for block, size in saved.values():
        kept[block] += size
    return list(kept.values())


def training_bytes(
    model: nn.Module, *, optimizer: str, shape: tuple[int, int, int, int], device_type: str, precision: str
) -> dict[str, int]:
    """Return the bytes that each part of a training takes; frozen parameters have no gradients and no state.

    Args:
        model, shape, device_type, precision: as for `activation_bytes`.
        optimizer: sgd, lars or adamw.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    return {
        "parameters": sum(value.nbytes for value in state_of(model).values()),
        "gradients": trained,
        f"{optimizer} state": trained * OPTIMIZER_STATE[optimizer],
        "activations": activation_bytes(model, shape=shape, device_type=device_type, precision=precision),
        "views": shape[0] * 3 * shape[2] * shape[3] * 4,
    }


def report(
    *,
    command: str,
    model: nn.Module,
    optimizer: str,
    shape: tuple[int, int, int, int],
    device: torch.device,
    free: int | None,
    precision: str,
    store_bytes: int,
    budget_gb: float,
) -> list[str]:
    """Return lines that say what a training will take, to be printed before it starts.

    It is an estimate from below: the loss and the gradients that live for a moment in the backward pass come on top.

    Args:
        command: pretrain or finetune, for the advice where it does not fit.
        model: all that is trained, as for `activation_bytes`.
        optimizer: sgd, lars or adamw.
        shape: what goes through the model at a time, (B, 3, H, W): the views of a batch, or of a microbatch.
        device, precision: of the training.
        free: bytes of the GPU, or of the machine, that nobody used before the work started; None: nothing says so.
        store_bytes: the tiles, uint8.
        budget_gb: up to which size the tiles go to a GPU, GiB (data.device_budget_gb).

    Raises:
        ValueError: a GPU that two views alone would fill, so that no smaller batch helps.
    """
    count, side = shape[0], shape[2]
    on_gpu = device.type == "cuda"
    resident = on_gpu and store_bytes <= budget_gb * 2**30
    if not on_gpu:
        where = "in memory, or read as needed"
    elif resident:
        where = f"on the GPU (data.device_budget_gb {budget_gb:.3g})"
    else:
        where = f"not on the GPU, above data.device_budget_gb {budget_gb:.3g}: each batch is copied there"
    notes = {"activations": f"of {count} views at {side} px, {precision}", "views": f"{count} at {side} px"}
    found = training_bytes(model, optimizer=optimizer, shape=shape, device_type=device.type, precision=precision)
    parts = [(name, size, notes.get(name, "")) for name, size in found.items()]
    parts.append(("tiles", store_bytes, where))
    if on_gpu:
        parts.append(("workspaces", WORKSPACES, "assumed for CUDA's kernels, cuDNN and cuBLAS"))
    need = sum(size for name, size, _ in parts if name != "tiles" or resident)
    total = ("total", need, "" if resident else "without the tiles")
    if free is not None:
        total = ("total", need, f"of {readable(free)} that are free {'on the GPU' if on_gpu else 'in memory'}")
    lines = [f"  {name:<12} {readable(size):>10}  {note}".rstrip() for name, size, note in (*parts, total)]
    if free is not None and need > free and not on_gpu:
        lines.append(f"warning: this does not fit; {advice(command, on_gpu=False)}")
    elif free is not None and need > NEAR * free and not on_gpu:
        lines.append(f"warning: this is close to what is free, and it may take more; {advice(command, on_gpu=False)}")
    elif free is not None and need > free:
        kept, views = (size for name, size, _ in parts if name in ("activations", "views"))
        fixed = sum(size for name, size, _ in parts if name not in ("activations", "views", "tiles", "workspaces"))
        least = fixed + 2 * (kept + views) // count  # a batch norm needs two
        if least > free:
            raise ValueError(
                f"data.size_px: training on a single tile of {side} px takes {readable(least)}, and the GPU has "
                f"{readable(free)} free; lower data.size_px, choose a smaller model.name, or use device=cpu"
            )
        lines.append(f"warning: this does not fit; {advice(command, half=half_precision(device))}")
    return ["memory, estimated:", *lines]
