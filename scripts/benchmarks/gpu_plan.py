"""Which rows scripts/gpu_check measures, in which order, and how long they take; nothing is imported here."""

from __future__ import annotations

BEGUN, MEASURED, FAILED, CUT, NOT_REACHED = "begun", "measured", "failed", "cut", "not reached"
LOST = 3  # exit status of gpu_rows.py after an error that CUDA does not recover from

# Seconds on an H100, about what they took on 2026-11-26 or, if not measured then, estimated: with less time left a row
# is not begun. The most important rows come first.
EXPECTED_S = {
    "facts": 2.0,
    "ceilings": 12.0,
    "resnet50 bf16": 64.0,
    "resnet18 bf16": 20.0,
    "28 px bf16": 32.0,
    "resnet50 fp16": 64.0,
    "nt-xent 65,536": 8.0,
    "4,096 pairs bf16": 20.0,
    "4,096 pairs fp32": 28.0,
    "gradient caching": 24.0,
    "mhist's size": 22.0,
    "ways to train": 20.0,
    "eval rate": 20.0,
    "predict rate": 12.0,
    "from slides": 45.0,
    "grad-cam": 6.0,
    "lightly resnet18": 32.0,
    "lightly 28 px": 32.0,
    "vit-l memory": 30.0,
    "compiled resnet50": 75.0,
    "compiled 28 px": 45.0,
    "compiled ways": 60.0,
}
FIRST = ("facts", "ceilings")  # before the tests
ROWS = tuple(name for name in EXPECTED_S if name not in FIRST)
# At toy size the others would measure the same again.
QUICK = (
    "resnet50 bf16",
    "nt-xent 65,536",
    "4,096 pairs fp32",
    "gradient caching",
    "ways to train",
    "vit-l memory",
    "eval rate",
    "predict rate",
    "from slides",
)


def limit_s(name: str) -> float:
    """Return the seconds after which a row is stopped as hanging."""
    return 3 * EXPECTED_S[name] + 20
