"""Which tensors a file of weights may hold: plain ones, of finite numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sscl.words import short, some

MOST_DEEP = 100  # containers within each other; an optimizer has four
MOST_VALUES = 2_000_000  # read in two seconds; a checkpoint with the names of its tiles has some 100,000
LONGEST_TEXT = 2**20


def leaves(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every value in dictionaries and lists within each other, with the keys that lead to it.

    Raises:
        ValueError: more of them, or deeper, than is read; one that contains itself is endlessly deep.
    """
    left, seen = [("", content, 0)], 0
    while left:
        name, value, depth = left.pop()
        seen += 1
        if depth > MOST_DEEP:
            raise ValueError(f"{short(name)}: more than {MOST_DEEP} lists and dictionaries within each other")
        if seen > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values beside its tensors; save its state_dict alone")
        if isinstance(value, (Mapping, list, tuple)):
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(f"{name}.{short(str(key))}".removeprefix("."), one, depth + 1) for key, one in pairs]
            left += reversed(inner)
        else:
            yield name, value


def unusual(tensor: torch.Tensor) -> str:
    """Return in what a tensor differs from a plain one on the CPU, empty if in nothing."""
    if tensor.is_meta or tensor.device.type != "cpu":
        return "has no values"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "is sparse or nested"
    if tensor.is_quantized or tensor.is_complex():
        return f"holds {tensor.dtype} numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"repeats few values to the shape {tuple(tensor.shape)}"
    return ""


def fault_in(content: Mapping[str, Any], *, unread: Collection[str] = ()) -> str:
    """Return which value of a checkpoint no training leaves there: a number that is none, a tensor of another kind.

    Args:
        content: tensors and plain values, in containers within each other.
        unread: keys of `content` whose tensors stay on disk: their numbers are not looked at.

    Returns:
        Its name and what is wrong with it, in words; empty if all are sound.
    """
    checked = set()
    for name, value in leaves(content):
        if isinstance(value, torch.Tensor):
            if found := unusual(value):
                return f"{name} {found}"
            if name.partition(".")[0] in unread:
                continue
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)  # encoder and model share theirs
            if key not in checked and (found := _not_finite(value)):
                return f"{name} {found}"
            checked.add(key)
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{name} is {value}"
        elif isinstance(value, str) and len(value) > LONGEST_TEXT:
            return f"{name} is a text of {len(value):,} characters"
        elif isinstance(value, int) and abs(value) >= 2**64:
            return f"{name} is a number beyond 64 bits"
    return ""


def _not_finite(tensor: torch.Tensor) -> str:
    """Return how many numbers of a tensor are NaN or infinite, in words; empty if none is."""
    # A sum is six times as fast to check, and finite only if all are; of finite numbers it may overflow.
    if not tensor.is_floating_point() or tensor.sum(dtype=torch.float32).isfinite():
        return ""
    wrong = tensor.numel() - int(tensor.isfinite().sum())
    return f"holds {wrong:,} of {tensor.numel():,} numbers that are NaN or infinite" if wrong else ""


def misfits(module: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """Return which tensors of a state dict are not those of a module, in words; empty if all find their place."""
    own = module.state_dict()
    both = [key for key in own if key in state]
    faults = (
        ("missing", [key for key in own if key not in state]),
        ("left over", [key for key in state if key not in own]),
        ("of another shape", [key for key in both if own[key].shape != state[key].shape]),
        ("of another type", [key for key in both if own[key].is_floating_point() != state[key].is_floating_point()]),
    )
    return "; ".join(f"{what}: {named(keys)}" for what, keys in faults if keys)


def named(names: list[str]) -> str:
    """Return the first three of many names of tensors, and how many more there are."""
    return some([short(name, most=100) for name in names], most=3, first=3)
