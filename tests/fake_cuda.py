"""CUDA without a GPU: tensors that say they are on a GPU, compute on the CPU, and obey a GPU's rules.

`fake_cuda()` is a machine with GPUs. In it the library's own code runs as it is, a command from its first line to its
last, with `device=cuda`. What torch refuses on a real GPU is refused: an operation on tensors of two devices, `numpy()`
of a tensor on a GPU. What makes a real host wait is written down with the line that did it, as are the kernels launched
and the bytes that they read and write, each tensor once. Values are those of the CPU, so that a run can be compared
with one there; only the views' Triton kernels are counted, not run: below compute capability 7.0 there are none.

Not shown are speed, memory, and differences between the CPU's kernels and CUDA's. An operation is counted as one
launch, although CUDA may split it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PAGED_BYTES = 64 * 1024  # below this the driver copies from ordinary memory without waiting for anything

# The host learns something from the device.
WAITS = {
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique2", "_unique2", "bincount"),
    *("unique_dim", "unique_consecutive", "linalg_svd", "_linalg_svd", "repeat_interleave"),
}
# Nothing is launched: a view, or memory without content.
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
FREE = {
    *EMPTY,
    *("detach", "alias", "_unsafe_view"),
    *("lift_fresh", "lift_fresh_copy", "record_stream", "_reshape_alias", "is_pinned", "set_", "resize_"),
}
MOVES = {"copy_", "_to_copy", "_foreach_copy_", "_foreach_copy"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
NESTED = (list, tuple, dict)
RESHAPE_IN_PLACE = {"t_", "transpose_", "squeeze_", "unsqueeze_", "resize_", "set_", "as_strided_", "swapaxes_"}


class FakeCudaTensor(torch.Tensor):
    """A tensor that says it is on a GPU; `held` has its values.

    Python is told of the GPU; torch's C++ takes it for a tensor on the CPU, because autograd's engine asks any other
    device for its streams. What C++ would therefore do wrong (moving it) is done here.
    """

    held: torch.Tensor
    place: torch.device
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device, requires_grad: bool = False) -> FakeCudaTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            requires_grad=requires_grad,
        )
        made.held, made.place = held, device
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Of a thread that the machine does not reach: another than the one that made it."""
        if _MACHINES:
            return _MACHINES[-1].compute(func, args, kwargs or {})
        raise RuntimeError(f"{func}: a fake CUDA tensor outlived its fake_cuda()")

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], device: torch.device, size: Any, stride: Any) -> Any:
        return FakeCudaTensor(inner["held"], device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.place

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return self.place.index

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            return self.to(args[0].device, args[0].dtype, *args[1:], copy=copy, **kwargs)
        device, dtype, free, order = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or _MACHINES[-1].device(device) == self.place:
            return super().to(dtype=dtype or self.dtype, copy=copy, memory_format=order or torch.preserve_format)
        return aten._to_copy.default(self, dtype=dtype, device=device, non_blocking=free, memory_format=order)

    def cpu(self, memory_format: Any = torch.preserve_format) -> Any:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format) -> Any:
        return self.to(
            "cuda" if device is None else torch.device("cuda", device) if isinstance(device, int) else device
        )

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, dtype: Any = None) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # type: ignore[no-untyped-call] # torch.save copies to the host as well

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"FakeCudaTensor({tuple(self.shape)}, {self.dtype}, {self.device})"


class Stop(NamedTuple):
    """Where the host may have waited for the device.

    Attributes:
        what: what it did. line: of sscl, as file:function:lines into it. callers: functions of sscl on the stack.
    """

    what: str
    line: str
    callers: tuple[str, ...]


@dataclass
class Counts:
    """What happened.

    Attributes:
        launches, read_written: kernels and the bytes that they read and write, by operation.
        waits: the host waited for the device. copies: the host copied to the device from memory that is not pinned.
    """

    launches: Counter[str] = field(default_factory=Counter)
    read_written: Counter[str] = field(default_factory=Counter)
    waits: Counter[Stop] = field(default_factory=Counter)
    copies: Counter[Stop] = field(default_factory=Counter)

    def stops(self, function: str, *, times: int) -> list[str]:
        """Return the lines that waited or copied at least so often while a function of sscl was running."""
        found: Counter[str] = Counter()
        for stop, count in (self.waits + self.copies).items():
            if function in stop.callers:
                found[f"{stop.line} ({stop.what})"] += count
        return [f"{line}: {count} times" for line, count in found.items() if count >= times]


class FakeMachine(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode in which operations on fake CUDA tensors are checked, counted and computed."""

    def __init__(self, *, gpus: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gpus, self.current = gpus, 0
        self.counts = Counts()
        self._pinned: set[int] = set()

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count what is done inside by itself."""
        before, self.counts = self.counts, Counts()
        try:
            yield self.counts
        finally:
            self.counts = before

    def device(self, given: Any) -> torch.device:
        """Return a device with its number; torch.device("cuda") is the current one."""
        device = torch.device(given)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= self.gpus:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        return torch.device("cuda", index)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else every operation goes through a wrapper that imports the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation."""
        tensors: list[torch.Tensor] = []
        _gather((args, kwargs), tensors)
        there = [x for x in tensors if isinstance(x, FakeCudaTensor)]
        if len(there) < len(tensors) and any(
            isinstance(x, fake_tensor.FakeTensor) or x.device.type == "meta" for x in tensors
        ):
            return func(*args, **kwargs)
        wanted = kwargs.get("device")
        target = None if wanted is None else self.device(wanted)
        if target is not None and target.type == "cpu" and _asked_by_torch():
            target = next((x.device for x in tensors), self.device("cuda"))
        name = func._schema.name.split("::")[-1]
        if name == "is_pinned":
            return _storage(args[0]) in self._pinned
        pin = name == "_pin_memory" or kwargs.get("pin_memory")
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if not there and (target is None or target.type != "cuda"):
            made = args[0].clone() if name == "_pin_memory" else func(*args, **kwargs)
            if pin:
                self._pinned.add(_storage(made))
            return made
        device = target if target is not None else there[0].device
        if name == "as_strided_" and _same_places(*args):
            return args[0]
        self._check(func, name, tensors, args)
        self._note_waits(name, args, kwargs, device)
        held = {id(x.held): x for x in there}
        kwargs = {**kwargs, "device": torch.device("cpu")} if "device" in kwargs else kwargs
        plain_args, plain_kwargs = _mapped(_held, (args, kwargs))
        if func._schema.name == "sscl::views":
            return FakeCudaTensor(self._views(*plain_args), device)
        made = KERNELS.get(name, func)(*plain_args, **plain_kwargs)
        if name in EMPTY and made.is_floating_point():
            made.fill_(math.nan)  # what a GPU's memory holds is anything

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor) or device.type != "cuda":
                return x
            return held[id(x)] if id(x) in held else FakeCudaTensor(x, device)

        if name == "copy_":
            made = args[0]
        result = made if name == "copy_" else _mapped(wrap, made)
        self._count(func, name, there, result)
        return result

    def _views(
        self, images: torch.Tensor, table: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, *rest: Any
    ) -> Any:
        """Return the tiles as they are, in place of what `sscl.augment_triton` makes of them; count its kernels."""
        from sscl import augment_triton

        def kernel(name: str) -> Any:
            def launch(*args: Any, **kwargs: Any) -> None:
                self.counts.launches[name] += 1
                self.counts.read_written[name] += sum(x.nbytes for x in args if isinstance(x, torch.Tensor))

            return Kernel(launch)

        names = [name for name, x in vars(augment_triton).items() if type(x).__name__ == "JITFunction"]
        with mock.patch.multiple(augment_triton, **{name: kernel(name) for name in names}):
            out = augment_triton._launch(images, table, mean, std, *rest)
        tiles = images.repeat(len(table) // len(images), 1, 1, 1).permute(0, 3, 1, 2)
        return out.copy_((tiles / 255 - mean[:, None, None]) / std[:, None, None])

    def _check(self, func: Any, name: str, tensors: Sequence[torch.Tensor], args: Any) -> None:
        """Raise RuntimeError, as torch does, for tensors of several devices."""
        if name in RESHAPE_IN_PLACE:
            raise NotImplementedError(f"{func}: the harness does not know it")
        if name in MOVES or func._schema.name.startswith("c10d"):
            return
        if name in INDEXED:
            # Indices may be on the CPU, and must be where what they index is there.
            indices = [] if not args[0].is_cuda else [x for x in args[1] if x is not None]
            tensors = [x for x in tensors if not any(x is index for index in indices)]
        devices = {x.device for x in tensors if x.ndim or x.is_cuda}
        if len(devices) > 1 or (name.endswith("_") and isinstance(args[0], torch.Tensor) and not args[0].is_cuda):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {sorted(map(str, devices))} in {func}"
            )

    def _note_waits(self, name: str, args: Any, kwargs: dict[str, Any], device: torch.device) -> None:
        moved: list[tuple[torch.Tensor, torch.Tensor | torch.device]] = []
        free = bool(kwargs.get("non_blocking", False))
        if name in WAITS:
            self.counts.waits[_stop(f"{name}")] += 1
        elif name in INDEXED:
            for index in args[1]:
                if index is None:
                    continue
                if index.dtype in (torch.bool, torch.uint8):
                    self.counts.waits[_stop(f"{name} by a mask")] += 1
                elif not index.is_cuda:
                    moved.append((index, device))
        elif name == "_to_copy":
            moved.append((args[0], device))
        elif name == "copy_":
            moved, free = [(args[1], args[0])], free or (len(args) > 2 and bool(args[2]))
        for source, to in moved:
            there = to.device if isinstance(to, torch.Tensor) else to
            if source.device == there or source.numel() == 0:
                continue
            if not source.is_cuda:  # to the device
                if free and (_storage(source) in self._pinned or source.nbytes <= PAGED_BYTES):
                    continue
                self.counts.copies[_stop(f"{source.device.type} -> {there.type}")] += 1
            elif not (
                free and (there.type == "cuda" or (isinstance(to, torch.Tensor) and _storage(to) in self._pinned))
            ):
                self.counts.waits[_stop(f"{source.device.type} -> {there.type}")] += 1

    def _count(self, func: Any, name: str, read: Sequence[torch.Tensor], result: Any) -> None:
        found: list[torch.Tensor] = []
        _gather(result, found)
        written = [x for x in found if isinstance(x, FakeCudaTensor)]
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if views or name in FREE or not (read or written):
            return
        self.counts.launches[name] += 1
        self.counts.read_written[name] += sum(x.nbytes for x in (*read, *written))


@dataclass(frozen=True)
class Kernel:
    """Stands for one of Triton's, whatever the grid."""

    launch: Callable[..., None]

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.launch


_MACHINES: list[FakeMachine] = []


def _mapped(change: Callable[[Any], Any], x: Any) -> Any:
    """Return nested lists, tuples and dictionaries with every leaf changed."""
    if isinstance(x, (list, tuple)):
        return type(x)([_mapped(change, value) if isinstance(value, NESTED) else change(value) for value in x])
    if isinstance(x, dict):
        return {key: _mapped(change, value) for key, value in x.items()}
    return change(x)


def _gather(x: Any, found: list[torch.Tensor]) -> None:
    """Append the tensors in nested lists, tuples and dictionaries."""
    if isinstance(x, torch.Tensor):
        found.append(x)
    elif isinstance(x, NESTED):
        for value in x.values() if isinstance(x, dict) else x:
            if isinstance(value, torch.Tensor):
                found.append(value)
            elif isinstance(value, NESTED):
                _gather(value, found)


def _held(x: Any) -> Any:
    return x.held if isinstance(x, FakeCudaTensor) else x


def _same_places(x: torch.Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None = None) -> bool:
    """Return whether other strides, as pooling gives to 1 x 1 pixels, leave every element where it is."""
    moved = any(n > 1 and old != new for n, old, new in zip(size, x.stride(), stride, strict=True))
    return list(size) == list(x.shape) and not moved and offset in (None, x.storage_offset())


def _storage(x: torch.Tensor) -> int:
    return 0 if isinstance(x, FakeCudaTensor) else x.untyped_storage().data_ptr()


def _stop(what: str) -> Stop:
    line, callers = "", []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        _, inside, place = code.co_filename.rpartition("/sscl/")
        if inside:
            line = line or f"{place}:{code.co_name}:{frame.f_lineno - code.co_firstlineno}"
            callers.append(code.co_name)
        frame = frame.f_back
    return Stop(what, line, tuple(callers))


def _asked_by_torch() -> bool:
    """Return whether backward formulas or DistributedDataParallel ask for the CPU, where C++ thinks tensors are."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame.f_code.co_filename.endswith(("torch/autograd/graph.py", "torch/nn/parallel/distributed.py"))


# --- kernels that a CPU does not have ---


def _per_channel(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return x.reshape(1, -1, *[1] * (like.ndim - 2)).to(torch.float32 if like.dtype != torch.float64 else like.dtype)


def _dims(x: torch.Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _batch_norm_stats(x, eps):  # type: ignore[no-untyped-def]
    x = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    var, mean = torch.var_mean(x, _dims(x), correction=0)
    return mean, torch.rsqrt(var + eps)


def _batch_norm_gather_stats_with_counts(x, means, rstds, mean, var, momentum, eps, counts):  # type: ignore[no-untyped-def]
    counts = counts.reshape(-1, 1).to(means.dtype)
    total = counts.sum()
    whole = (means * counts).sum(0) / total
    squares = ((rstds.pow(-2) - eps + (means - whole).square()) * counts).sum(0)
    if mean is not None:
        mean.lerp_(whole.to(mean.dtype), momentum)
        var.lerp_((squares / (total - 1)).to(var.dtype), momentum)
    return whole, torch.rsqrt(squares / total + eps)


def _batch_norm_elemt(x, weight, bias, mean, rstd, eps):  # type: ignore[no-untyped-def]
    made = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    made = made if weight is None else made * _per_channel(weight, x) + _per_channel(bias, x)
    return made.to(x.dtype)


def _batch_norm_backward_reduce(grad, x, mean, rstd, weight, input_g, weight_g, bias_g):  # type: ignore[no-untyped-def]
    centred = x - _per_channel(mean, x)
    sums, products = grad.to(centred.dtype).sum(_dims(x)), (grad * centred).sum(_dims(x))
    kind = sums.dtype if weight is None else weight.dtype
    return sums, products, (products * rstd).to(kind) if weight_g else None, sums.to(kind) if bias_g else None


def _batch_norm_backward_elemt(grad, x, mean, rstd, weight, sums, products, counts):  # type: ignore[no-untyped-def]
    total = counts.sum()
    scale = _per_channel(rstd, x) * (1 if weight is None else _per_channel(weight, x))
    centred = (x - _per_channel(mean, x)) * _per_channel(rstd.square() * products / total, x)
    return ((grad - _per_channel(sums / total, x) - centred) * scale).to(x.dtype)


def _allgather_base_(out: torch.Tensor, x: torch.Tensor, *rest: Any) -> Any:
    """Gather as NCCL does, whatever the shapes; the fake process group cuts the first dimension."""
    _, work = torch.ops.c10d._allgather_base_(out.view(-1), x.reshape(-1), *rest)
    return out, work


def _in_float(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that computes in float32 what comes in 16 bits, which a CPU is slow at."""

    def run(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype not in (torch.float16, torch.bfloat16):
            return kernel(x, *args, **kwargs)
        up, down = (
            (lambda y: y.float() if torch.is_tensor(y) else y),
            (lambda y: y.to(x.dtype) if torch.is_tensor(y) else y),
        )
        return _mapped(down, kernel(*_mapped(up, (x, *args)), **kwargs))

    return run


KERNELS: dict[str, Callable[..., Any]] = {
    "batch_norm_stats": _batch_norm_stats,
    "batch_norm_gather_stats_with_counts": _batch_norm_gather_stats_with_counts,
    "batch_norm_elemt": _batch_norm_elemt,
    "batch_norm_backward_reduce": _batch_norm_backward_reduce,
    "batch_norm_backward_elemt": _batch_norm_backward_elemt,
    "_allgather_base_": _allgather_base_,
    "convolution": _in_float(aten.convolution.default),
    "convolution_backward": _in_float(aten.convolution_backward.default),
    "record_stream": lambda *_: None,
}


# --- the machine ---

_real_autocast, _real_grouped = torch.autocast, torch._C._group_tensors_by_device_and_dtype


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return _real_autocast("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _no_inference_mode(mode: bool) -> Any:
    """Return a mode without gradients: a tensor around another cannot be one of inference mode."""
    return torch.no_grad() if mode else contextlib.nullcontext()


def _grouped(lists: Any, with_indices: bool = False) -> Any:
    groups: Any = _real_grouped(lists, with_indices)
    return {(found[0][0][0].device, dtype): found for (_, dtype), found in groups.items()}


class _Event:
    """Waiting for one is a wait if nothing has been launched since it was recorded: the device is then idle."""

    def __init__(self, machine: FakeMachine, **_: Any) -> None:
        self._machine, self._at = machine, -1

    def record(self, stream: Any = None) -> None:
        self._at = self._machine.counts.launches.total()

    def wait(self, stream: Any = None) -> None:
        torch._C._ensureCUDADeviceGuardSet()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        if self._machine.counts.launches.total() == self._at:
            self._machine.counts.waits[_stop("event just recorded")] += 1


class _Stream:
    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def synchronize(self) -> None:
        self._machine.counts.waits[_stop("stream")] += 1

    def record_event(self, event: Any = None) -> Any:
        event = event or _Event(self._machine)
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        torch._C._ensureCUDADeviceGuardSet()

    def wait_stream(self, stream: Any) -> None:
        torch._C._ensureCUDADeviceGuardSet()


@contextlib.contextmanager
def fake_cuda(
    *, gpus: int = 1, capability: tuple[int, int] = (9, 0), memory_gb: float = 80, name: str = "pretended GPU"
) -> Iterator[FakeMachine]:
    """Be on a machine with GPUs.

    Args:
        capability: CUDA compute capability; bf16 is there from 8.0 on. memory_gb: of each, GiB, all of it free.
    """
    machine = FakeMachine(gpus=gpus)
    total = int(memory_gb * 2**30)
    properties = SimpleNamespace(
        name=name,
        total_memory=total,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=132,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        warp_size=32,
    )
    stream = _Stream(machine)

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        machine.current = machine.current if index is None else index

    def synchronize(device: Any = None) -> None:
        machine.counts.waits[_stop("synchronize")] += 1

    replaced = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpus,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "current_device": lambda: machine.current,
        "set_device": set_device,
        "is_bf16_supported": lambda including_emulation=True: including_emulation or capability >= (8, 0),
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: name,
        "get_arch_list": lambda: ["sm_{}{}".format(*capability)],
        "mem_get_info": lambda device=None: (total, total),
        "synchronize": synchronize,
        "Event": functools.partial(_Event, machine),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "Stream": lambda *args, **kwargs: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
    }
    lifted, benchmark = torch._C._only_lift_cpu_tensors(), torch.backends.cudnn.benchmark
    with contextlib.ExitStack() as stack:
        for key, value in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, key, value))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False))
        stack.enter_context(mock.patch.object(fake_tensor, "init_gpu_context", return_value=None))
        stack.enter_context(mock.patch.object(torch._C, "_InferenceMode", _no_inference_mode))
        stack.enter_context(mock.patch.object(torch, "autocast", _autocast))
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped))
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(x, device="cuda") makes x, then copies it
        _MACHINES.append(machine)
        try:
            with machine:
                yield machine
        finally:
            _MACHINES.pop()
            torch._C._set_only_lift_cpu_tensors(lifted)
            torch.backends.cudnn.benchmark = benchmark
