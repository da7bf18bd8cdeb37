"""How coarse maps are, and what makes them finer."""

from __future__ import annotations

import torch

from sscl.explain.cam import class_maps
from sscl.explain.cells import map_cells
from sscl.explain.kinds import MapKind
from sscl.models.encoders import build_encoder
from sscl.models.heads import Classifier


def classifier(name: str = "resnet18", **how: object) -> Classifier:
    return Classifier(build_encoder(name, **how), num_classes=2)  # type: ignore[arg-type]


def test_cells_are_those_of_the_maps_and_the_layer_named_has_more() -> None:
    for name, how, size_px in (
        ("resnet18", {"stem": "small", "output_stride": 16}, 32),
        ("timm:test_efficientnet", {}, 64),
    ):
        model = classifier(name, **how)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        cells = map_cells(model, size_px=size_px)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        model.eval()
        tile = torch.rand(1, 3, size_px, size_px)
        assert class_maps(model, tile, target=0)[0].shape == (1, cells.rows, cells.columns)
        assert cells.finer is not None
        layer, side = cells.finer
        assert class_maps(model, tile, target=0, kind=MapKind(layers=(layer,)))[0].shape == (1, side, side)
        assert side > cells.rows
        of_layer = map_cells(model, size_px=size_px, kind=MapKind(layers=(layer,)))
        assert (of_layer.rows, of_layer.columns) == (side, side)


def test_two_by_two_is_coarse_and_what_is_finer_is_said() -> None:
    said = str(map_cells(classifier(), size_px=64))
    for words in ("2 x 2 cells of 32 px", "layer=encoder.layer3", "data.size_px", "model.output_stride=16"):
        assert words in said
    assert "output_stride" not in str(map_cells(classifier(output_stride=16), size_px=64))


def test_seven_by_seven_is_as_in_the_paper() -> None:
    assert str(map_cells(classifier(), size_px=224)) == "maps have 7 x 7 cells of 32 px"


def test_modules_keep_their_modes() -> None:
    model = classifier()
    model.encoder.bn1.eval()  # type: ignore[operator, union-attr]
    map_cells(model, size_px=64)
    assert [name for name, module in model.named_modules() if not module.training] == ["encoder.bn1"]


def test_named_layers_see_the_blank_tile_in_evaluation_mode_too() -> None:
    """A model that trains keeps its batch-norm statistics."""
    model = classifier().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    map_cells(model, size_px=64, kind=MapKind(layers=("encoder.layer3",)))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
