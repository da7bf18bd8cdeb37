"""How coarse a model's maps are: their cells, the size of a cell in pixels, and what makes them finer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sscl.explain.kinds import GRADCAM, MapKind
from sscl.explain.layers import blocks_of, grid_of, layer_features
from sscl.models.encoders import ResNet
from sscl.models.heads import Classifier

FINE = 7  # cells of a side, those of a 224 px tile in the paper of Grad-CAM; fewer give boxes of much of the tile


@dataclass(frozen=True)
class MapCells:
    """The maps of a model.

    Attributes:
        rows, columns: of cells. size_px: side of the tile.
        finer: the last block whose output has more cells, and how many a side, ("encoder.layer3", 4); None if none has.
        strided: whether `model.output_stride=16` would give twice as many a side. patches: whether cells are patches.
    """

    rows: int
    columns: int
    size_px: int
    finer: tuple[str, int] | None
    strided: bool
    patches: bool = False

    @property
    def coarse(self) -> bool:
        """Whether boxes of such maps tell little."""
        return min(self.rows, self.columns) < FINE

    def __str__(self) -> str:
        width = self.size_px / self.columns
        said = f"maps have {self.rows} x {self.columns} cells of {width:.3g} px"
        if not self.coarse:
            return said
        ways = (
            [] if self.finer is None else [f"gradcam layer={self.finer[0]} ({self.finer[1]} x {self.finer[1]} cells)"]
        )
        ways += ["training with a larger data.size_px", *(["model.output_stride=16"] if self.strided else [])]
        ways += ["an encoder of smaller patches"] if self.patches else []
        return f"{said}, which is coarse; finer: {', or '.join(ways)}"


def map_cells(model: Classifier, *, size_px: int, kind: MapKind = GRADCAM) -> MapCells:
    """Return the cells of the maps of a model's last features, or of named layers (of several the finest).

    One blank tile passes through the model in evaluation mode, which changes nothing of it.
    """
    sides: dict[str, tuple[int, int]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                sides.pop(name, None)
                sides[name] = (int(output.shape[2]), int(output.shape[3]))

        return hook

    device = next(model.parameters()).device
    blank = torch.zeros(1, 3, size_px, size_px, device=device)
    modes = [(module, module.training) for module in model.modules()]
    with contextlib.ExitStack() as stack:
        stack.callback(_set_modes, modes)
        model.eval()
        for name, module in _blocks(model):
            stack.callback(module.register_forward_hook(keep(name)).remove)
        with torch.no_grad():
            rows, columns = map(int, grid_of(model, model.forward_features(blank)).shape[2:])
        if kind.layers:
            found, _ = layer_features(model, blank, kind.layers)
            shapes = [tuple(map(int, grid_of(model, of).shape[2:])) for of in found]
            rows, columns = max(shapes, key=lambda shape: shape[0] * shape[1])
    finer = next((name for name, side in reversed(sides.items()) if side[0] > rows and side[1] > columns), None)
    return MapCells(
        rows=rows,
        columns=columns,
        size_px=size_px,
        finer=None if finer is None else (finer, sides[finer][1]),
        strided=not kind.layers and isinstance(model.encoder, ResNet) and model.encoder.output_stride == 32,
        patches=bool(blocks_of(model)),
    )


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


def _blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the sequences of a model and the blocks in them, which is what a map is usually taken of."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and name and len(module):
            found[name] = module
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            parts = module.named_children()
            found |= {f"{name}.{key}": part for key, part in parts if any(True for _ in part.children())}
    return list(found.items())
