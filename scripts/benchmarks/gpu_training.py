"""GPU rows of training: the command against the bare step, every way to train, memory, gradient caching, lightly."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_measure import Bench, Found, Observed, command, observe, per_call, trace
from sscl.cores import cpu_cores
from sscl.draws import Augmentation
from sscl.losses import cross_view_info_nce, nt_xent
from sscl.metrics_log import MetricsRow, read_metrics
from sscl.models.encoders import build_encoder
from sscl.models.heads import ContrastiveModel, build_projection
from sscl.train import optim
from sscl.train.step import ContrastiveStep, Views
from step import QUICK, Case, against_lightly, caching, our_step, row, some_tiles, synthetic_step, views_of

R50, R18 = Case("resnet50", "standard", 224, 256), Case("resnet18", "standard", 224, 256)
P28 = Case("resnet18_pathmnist", "standard", 28, 512)
HELD = 512  # tiles of the health metrics, held out of training
CAP_GIB, CONTEXT_GIB = 7.5, 0.5  # an 8 GB card, of which the CUDA context takes some
VIEWS_TARGET = ">= 5500"  # an H200's


def tiles_file(bench: Bench, case: Case, *, count: int, held: int = HELD) -> Path:
    """Return an .npz file of `count` training tiles besides those of the health metrics, in two classes."""
    path = bench.work / f"tiles-{case.size_px}-{count}.npz"
    if not path.exists():
        some = some_tiles(replace(case, batch_size=max(8, min(128, count // 4))))
        images = np.resize(some, (count + held, *some.shape[1:]))
        parts: dict[str, Any] = {"train_images": images, "train_labels": np.arange(len(images))[:, None] % 2}
        for split in ("val", "test"):
            parts |= {f"{split}_images": some[:8], f"{split}_labels": np.arange(8)[:, None] % 2}
        np.savez(path, classes=np.array(["a", "b"]), **parts)
    return path


def pretrain(
    bench: Bench, case: Case, *, precision: str, epochs: int, steps: int, words: tuple[str, ...] = (), keep: str = "run"
) -> tuple[list[MetricsRow], str]:
    """Run `sscl pretrain` and return its log, and what it printed."""
    held = 2 * case.batch_size if bench.quick else HELD
    file = tiles_file(bench, case, count=case.batch_size * steps, held=held)
    run = bench.work / keep
    printed = command(
        "pretrain",
        "--overwrite",
        f"run={run}",
        f"data={{source: pathmnist, root: {file}, size_px: {case.size_px}, cache_dir: {bench.work / 'cache'}}}",
        f"model={{name: {case.encoder}, stem: {case.stem}}}",
        "projection={kind: mlp, hidden: 2048, dim: 128}",
        f"train.batch_size={case.batch_size}",
        f"train.epochs={epochs}",
        "train.warmup_epochs=0",
        "train.learning_rate=0.01",
        f"health.tiles={held}",
        f"device={bench.device}",
        f"precision={precision}",
        "progress=false",
        *words,
    )
    return read_metrics(run / "metrics.jsonl"), printed


def against_bare_step(
    bench: Bench, *, case: Case, precision: str, target: str, closely: bool = False, views_target: str = ""
) -> Found:
    """Measure `sscl pretrain` against the step on tensors that are there; `closely`: also the views, and a trace."""
    case, precision = small(bench, case, precision)
    bare = synthetic_step(case, device=bench.device, precision=precision)
    before = per_call(bare, bench)
    steps, epochs = (2, 2) if bench.quick else (64 if case.size_px < 64 else 16, 4)
    log, _ = pretrain(bench, case, precision=precision, epochs=epochs, steps=steps)
    after = per_call(bare, bench, seconds=2)
    theirs = 2 * case.batch_size / min(before, after)
    ours = max(2 * line["tiles_per_second"] for line in log[1:])  # the first epoch has cuDNN's trials
    at = f"{case}, {precision}"
    found = Found(details={"bare_ms": [1e3 * before, 1e3 * after], "log": log})
    found.rows.append(
        row(
            f"sscl pretrain against the bare step, {at}",
            ours=ours,
            peer="the same step on tensors that are there",
            theirs=theirs,
            unit="views/s",
            ratio=ours / theirs,
            target=target,
        )
    )
    if views_target:
        found.rows.append(row(f"views a second, {at}", ours=ours, unit="views/s", target=f"{views_target} views/s"))
    if closely:
        del bare
        images = torch.from_numpy(some_tiles(case)[: case.batch_size]).to(bench.device)
        taken = per_call(views_of(images, case, precision=precision, steps=steps), bench, seconds=2, block=2) / steps
        fraction = taken * ours / (2 * case.batch_size)
        found.rows.append(
            row(f"augmentation, fraction of the step, {at}", ours=fraction, unit="of the step", ratio=fraction)
            | {
                "target": "<= 0.02" if case.encoder == "resnet50" else "",
                "note": f"{1e3 * taken:.2f} ms, of {steps} steps that are drawn together",
            }
        )
        trace(our_step(case, some_tiles(case), device=bench.device, precision=precision)[1], bench)
    try:
        with observe(bench) as seen:
            log, _ = pretrain(bench, case, precision=precision, epochs=1, steps=steps)
        with observe(bench) as longer:
            pretrain(bench, case, precision=precision, epochs=1, steps=2 * steps)
    except Exception as error:  # what was measured before is kept
        found.rows.append(row(f"the GPU is busy, {at}", unit="of the time", note=f"{type(error).__name__}: {error}"))
        return found
    found.details["observed"] = seen.details()
    found.rows += observed_rows(seen, longer, log, at=at, steps=steps)
    return found


def observed_rows(
    seen: Observed, longer: Observed, log: list[MetricsRow], *, at: str, steps: int
) -> list[dict[str, Any]]:
    """Return what the command did to the device: how busy it was, how often the host waited for it.

    `longer` is of twice the steps: a line that waits in every step waits more often there, one that moves the weights
    or writes them does not.
    """
    training_s = sum(line["seconds"] for line in log)
    if seen.busy is None or seen.span is None:
        return [row(f"the GPU is busy, {at}", unit="of the time", note="no kernels were seen")]
    more = {line: count - seen.waits.get(line, 0) for line, count in longer.waits.items()}
    often = {line: count for line, count in more.items() if count >= steps}
    return [
        row(
            f"the GPU is busy in `sscl pretrain`, {at}",
            ours=seen.busy,
            unit="of the time",
            note=f"from the first kernel to the last, epochs' ends and the checkpoint included; {training_s:.2f} of "
            f"{seen.span:.2f} s are training; {(seen.kernels or 0) / steps:.0f} kernels a step",
        ),
        row(
            f"lines that wait for the device in every step, {at}",
            ours=float(len(often)),
            unit="lines",
            target="<= 0 lines",
            note=", ".join(f"{line} ({count})" for line, count in often.items()),
        ),
    ]


def between_epochs(bench: Bench) -> Found:
    """Measure how much of the time is training on a set of MHIST's size, in batches of 64."""
    case, precision = small(bench, replace(R50, batch_size=64), "auto")
    steps, epochs = (2, 2) if bench.quick else (34, 12)
    log, printed = pretrain(bench, case, precision=precision, epochs=epochs, steps=steps)
    what = f"training, fraction of the time of all epochs, {steps * case.batch_size} tiles"
    seconds = [line["seconds"] for line in log]
    share = sum(seconds) / sum(line["seconds"] / line["busy"] for line in log)  # busy is that of each epoch
    note = f"{case}, {epochs} epochs, a median of {statistics.median(seconds):.2f} s each, as metrics.jsonl has it"
    line = row(what, ours=share, unit="of the time", target=">= 0.9 of the time", note=note)
    return Found([line], {"log": log, "printed": printed})


def small(bench: Bench, case: Case, precision: str) -> tuple[Case, str]:
    """Return case and precision, at toy size those that any machine can do."""
    return (QUICK, "fp32" if not bench.on_gpu else precision) if bench.quick else (case, precision)


def compiled(bench: Bench, *, case: Case, precision: str, target: str) -> Found:
    """Measure the compiled step, from the store on, and how long its compilation took."""
    case, precision = small(bench, case, precision)
    options = {} if bench.quick else {"compile": True}
    _, run = our_step(case, some_tiles(case), device=bench.device, precision=precision, **options)
    started = time.perf_counter()
    run()
    bench.finish()
    first = time.perf_counter() - started
    taken = per_call(run, bench)
    at = f"{case}, {precision}, compiled"
    rate = 2 * case.batch_size / taken
    unit = {"unit": "views/s", "target": f"{target} views/s" if target else "", "note": f"the first call {first:.1f} s"}
    return Found([row(f"views a second, {at}", ours=rate, **unit)], {"ms": 1e3 * taken})


def ways(bench: Bench, *, compile: bool = False) -> Found:
    """Take three steps of every way to train: the loss is finite, the weights move."""
    kinds: dict[str, dict[str, Any]] = {
        "fp32 sgd": {},
        "bf16 adamw": {"precision": "bf16", "optimizer": "adamw"},
        "fp16 lars": {"precision": "fp16", "optimizer": "lars"},
        "fp16 sgd, microbatches": {"precision": "fp16", "microbatch": 4},
        "bf16 lars, microbatches": {"precision": "bf16", "optimizer": "lars", "microbatch": 4},
        "cross view, clean second view": {"loss": cross_view_info_nce, "clean_second": True},
        "all colours": {"colours": True},
    }
    if bench.quick:
        kinds = {name: kinds[name] for name in ("bf16 adamw", "cross view, clean second view")}
    if compile:
        kinds = {f"{name}, compiled": kinds[name] for name in ("bf16 adamw", "fp16 sgd, microbatches") if name in kinds}
    found = Found()
    for name, options in kinds.items():
        if not bench.on_gpu and options.get("precision") == "fp16":
            continue
        try:
            loss, moved = three_steps(bench, compile=compile and bench.on_gpu, **options)
            found.details[name] = {"loss": loss, "moved": moved, "well": math.isfinite(loss) and moved > 0}
        except Exception as error:  # the other ways are tried
            found.details[name] = {"well": False, "error": f"{type(error).__name__}: {str(error)[:300]}"}
    broken = [name for name, way in found.details.items() if not way["well"]]
    count = float(len(found.details) - len(broken))
    what = f"ways to train that work{', compiled' if compile else ''}"
    note = f"of {len(found.details)}" + (f"; not: {', '.join(broken)}" if broken else "")
    found.rows.append(row(what, ours=count, unit="ways", target=f">= {len(found.details)} ways", note=note))
    return found


def three_steps(
    bench: Bench,
    *,
    precision: str = "fp32",
    optimizer: optim.Name = "sgd",
    colours: bool = False,
    clean_second: bool = False,
    **options: Any,
) -> tuple[float, float]:
    """Return the loss after three steps of a ResNet18, or of the toy net, and how far its weights moved."""
    device, side = bench.device, 32 if bench.quick else 64
    torch.manual_seed(0)
    encoder = build_encoder(QUICK.encoder if bench.quick else "resnet18")
    model = ContrastiveModel(encoder, projection=build_projection(encoder.num_features))
    model = model.to(device).to(memory_format=torch.channels_last).train()
    before = [p.detach().clone() for p in model.parameters()]
    groups = optim.parameter_groups(model, learning_rate=0.1, weight_decay=1e-4)
    steps = optim.build_optimizer(optimizer, groups)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16", init_scale=256.0)
    kind = Augmentation(stain_probability=0.8, grayscale_probability=0.3) if colours else Augmentation()
    half = torch.full((3,), 0.5, device=device)
    views = Views(kind, 0, half, half, side, precision, clean_second)
    step = ContrastiveStep(model, views=views, scaler=scaler, **options)
    images = torch.randint(0, 255, (8, side, side, 3), dtype=torch.uint8, device=device)
    rows = torch.arange(8, device=device)
    for epoch in range(3):
        steps.zero_grad(set_to_none=True)
        result = step.backward(images, views.batch(rows, torch.zeros_like(rows), epoch=epoch))
        scaler.step(steps)
        scaler.update()
    moved = max((p - q).abs().max().item() for p, q in zip(model.parameters(), before, strict=True))
    return result.losses.mean().item(), moved


def loss_memory(bench: Bench) -> Found:
    """Measure NT-Xent of 65,536 projections: time, and memory beyond its inputs."""
    rows, dim = (256, 16) if bench.quick else (65536, 128)
    a, b = (torch.randn(rows // 2, dim, device=bench.device).requires_grad_() for _ in range(2))
    what = f"NT-Xent, memory beyond its inputs, 2N = {rows:,} x {dim}"

    def run() -> None:
        a.grad = b.grad = None
        nt_xent(a, b).backward()  # type: ignore[no-untyped-call]

    run()
    bench.finish()
    if not bench.on_gpu:
        return Found([row(what, unit="GiB", target="<= 1 GiB", note="needs a GPU")])
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    taken = per_call(run, bench, seconds=2, block=1)
    beyond = (torch.cuda.max_memory_allocated(bench.device) - before) / 2**30
    return Found([row(what, ours=beyond, unit="GiB", target="<= 1 GiB", note=f"{1e3 * taken:.1f} ms with gradients")])


@contextmanager
def capped(bench: Bench) -> Iterator[None]:
    """Let torch have no more memory than on a card of 8 GB."""
    if not bench.on_gpu:
        yield
        return
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GIB * 2**30 / total), bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def large_batch(bench: Bench, *, precision: str, microbatch: int) -> Found:
    """Run an epoch of one batch of 4,096 pairs by gradient caching, health metrics and checkpoint after it."""
    case, precision = small(bench, replace(R50, batch_size=4096), precision)
    microbatch = 2 if bench.quick else microbatch
    what = f"4,096 pairs of ResNet50 at 224 px, {precision}, microbatches of {microbatch}, with the health metrics"
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    with capped(bench):
        words = (f"train.microbatch={microbatch}",)
        log, printed = pretrain(bench, case, precision=precision, epochs=1, steps=1, words=words)
    details: dict[str, Any] = {"log": log, "printed": printed}
    if not bench.on_gpu:
        return Found([row(what, unit="GiB", target="<= 8 GiB", note="needs a GPU")], details)
    peak = torch.cuda.max_memory_reserved(bench.device) / 2**30 + CONTEXT_GIB
    note = f"torch's, and {CONTEXT_GIB} for the context; torch was held to {CAP_GIB} GiB; {log[-1]['seconds']:.1f} s"
    return Found([row(what, ours=peak, unit="GiB", target="<= 8 GiB", note=note)], details)


def cached(bench: Bench) -> Found:
    """Measure gradient caching against the step on the whole batch."""
    case, _ = small(bench, R50, "")
    seconds = 0.3 if bench.quick else 12.0
    return Found([caching(case, device=bench.device, part=case.batch_size // 4, seconds=seconds)])


def lightly(bench: Bench, *, case: Case, per_core: bool = False) -> Found:
    """Measure lightly's loop beside ours; `per_core`: our loop against the tiles that one of its workers makes."""
    case, _ = small(bench, case, "")
    (line,) = against_lightly(case, device=bench.device, seconds=0.3 if bench.quick else 12.0)
    if per_core:
        line |= {"what": f"{line['what']}, for each core of lightly's", "target": ">= 10"}
        if line["ratio"] is not None:
            line |= {"theirs": line["theirs"] / cpu_cores(), "ratio": line["ratio"] * cpu_cores()}
    return Found([line])


__all__ = [
    "P28",
    "R18",
    "R50",
    "against_bare_step",
    "cached",
    "compiled",
    "large_batch",
    "lightly",
    "loss_memory",
    "ways",
]
