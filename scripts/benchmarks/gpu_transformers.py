"""GPU row of a large transformer: memory and time of a step, whole and with LoRA and gradient checkpointing."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gpu_measure import Bench, Found
from sscl.device import autocast
from sscl.draws import Augmentation
from sscl.models.blocks import checkpoint_blocks
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier, ContrastiveModel, build_projection
from sscl.models.lora import add_lora
from sscl.train import memory, optim
from sscl.train.step import ContrastiveStep, Views
from step import row

WAYS = {"whole": (None, False), "checkpointing": (None, True), "LoRA": (8, False), "LoRA, checkpointing": (8, True)}
STEPS = 3  # the first is not timed


def vit_l(bench: Bench) -> Found:
    """Measure fine-tuning on 64 tiles, and NT-Xent on 128 tiles in microbatches of 32, of a ViT-L at 224 px in bf16."""
    found = Found()
    for kind in ("finetune", "pretrain"):
        for way, (rank, checkpointing) in list(WAYS.items())[-1 if bench.quick else 0 :]:
            what = f"{'tiny ViT' if bench.quick else 'ViT-L'}, {kind}, {way}: memory at most"
            gc.collect()
            if bench.on_gpu:
                torch.cuda.empty_cache()
            try:
                found.rows.append(measured(bench, kind, what, rank=rank, checkpointing=checkpointing))
            except Exception as error:  # the other ways are measured
                note = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                found.rows.append(row(what, unit="GiB", note=note))
    return found


def measured(bench: Bench, kind: str, what: str, *, rank: int | None, checkpointing: bool) -> dict[str, Any]:
    """Return a row: the largest memory that torch had in use, beside the estimate, and the time of a step."""
    tiles, part, side = (4, 2, 32) if bench.quick else (64 if kind == "finetune" else 128, 32, 224)
    before = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else 0
    torch.manual_seed(0)
    with bench.device:
        encoder = build_encoder("timm:test_vit" if bench.quick else "timm:vit_large_patch16_224")
    encoder = encoder.to(bench.device)
    if rank is not None:
        add_lora(encoder, rank=rank, alpha=16, targets=("qkv", "proj"), size_px=side)
    if checkpointing:
        checkpoint_blocks(encoder)
    model: nn.Module = Classifier(encoder, num_classes=2)
    if kind == "pretrain":
        model = ContrastiveModel(encoder, projection=build_projection(encoder.num_features, kind="mlp"))
    model = model.to(bench.device).to(memory_format=torch.channels_last).train()
    parts = memory.training_bytes(
        model,
        optimizer="adamw",
        shape=(tiles if kind == "finetune" else 2 * part, 3, side, side),
        device_type=bench.device.type,
        precision="bf16",
    )
    estimated = sum(parts.values()) / 2**30
    groups = optim.parameter_groups(model, learning_rate=1e-4, weight_decay=0.01)
    optimizer = optim.build_optimizer("adamw", groups)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    gradient = (labels_of if kind == "finetune" else pairs_of)(bench, model, tiles=tiles, part=part, side=side)
    seconds = []
    for _ in range(STEPS):
        bench.finish()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        gradient()
        optimizer.step()
        bench.finish()
        seconds.append(time.perf_counter() - started)
    note = f"{1e3 * statistics.mean(seconds[1:]):.0f} ms a step of {tiles} tiles, bf16"
    said = {"peer": "the estimate", "theirs": estimated, "unit": "GiB"}
    if not bench.on_gpu:
        return row(what, **said, note=f"{note}; needs a GPU")
    peak = (torch.cuda.max_memory_allocated(bench.device) - before) / 2**30
    whole = rank is None and not checkpointing
    target = "" if whole else "<= 16 GiB"
    return row(what, ours=peak, **said, ratio=peak / estimated, target=target, note=note)


def labels_of(bench: Bench, model: nn.Module, *, tiles: int, part: int, side: int) -> Callable[[], None]:
    """Return what leaves the gradient of a batch with labels, as `sscl finetune` computes it."""
    images = torch.rand(tiles, 3, side, side, device=bench.device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(tiles, device=bench.device) % 2

    def gradient() -> None:
        with autocast(bench.device, "bf16"):
            logits = model(images)
        torch.autograd.backward(nn.functional.cross_entropy(logits.float(), labels))

    return gradient


def pairs_of(bench: Bench, model: nn.Module, *, tiles: int, part: int, side: int) -> Callable[[], None]:
    """Return what leaves the gradient of a batch without labels, as `sscl pretrain` computes it."""
    half = torch.full((3,), 0.5, device=bench.device)
    views = Views(Augmentation(), 0, half, half, side, "bf16")
    step = ContrastiveStep(model, views=views, microbatch=part)
    images = torch.randint(0, 255, (tiles, side, side, 3), dtype=torch.uint8, device=bench.device)
    rows = torch.arange(tiles, device=bench.device)
    drawn = views.batch(rows, torch.zeros_like(rows), epoch=0)
    return lambda: step.backward(images, drawn) and None
