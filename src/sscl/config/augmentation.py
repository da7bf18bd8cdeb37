"""The random augmentation of a tile: its settings, and their defaults for both stages."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sscl.config.messages import shown
from sscl.config.sections import Section, setting


def _ordered(value: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    numbers = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
    if numbers and not value[0] <= value[1]:
        raise ValueError(f"must be [lowest, highest] with lowest <= highest, got {shown(value)}")
    return value


_Share = Annotated[float, Field(ge=1e-4, le=1)]
_Factor = Annotated[float, Field(ge=0.01, le=100)]
_Pixels = Annotated[float, Field(ge=0, le=100)]
# [lowest, highest]
ShareRange = Annotated[tuple[_Share, _Share], BeforeValidator(_ordered)]
FactorRange = Annotated[tuple[_Factor, _Factor], BeforeValidator(_ordered)]
PixelRange = Annotated[tuple[_Pixels, _Pixels], BeforeValidator(_ordered)]


class AugmentConfig(Section):
    """Random augmentation of a tile."""

    crop_scale: ShareRange = setting((0.2, 1.0), "area of the random crop as a fraction of the tile, [lowest, highest]")
    crop_ratio: FactorRange = setting((0.75, 4 / 3), "aspect ratio of the crop, width / height, [lowest, highest]")
    hflip_probability: float = setting(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip_probability: float = setting(0.5, "probability of a vertical flip", ge=0, le=1)
    affine_probability: float = setting(
        0.5, "probability of the affine transform (rotation, translation, scale, shear)", ge=0, le=1
    )
    rotation_degrees: float = setting(45.0, "largest rotation in either direction, degrees", ge=0, le=180)
    translation: float = setting(0.1, "largest shift in either direction, as a fraction of the side", ge=0, le=1)
    scale: FactorRange = setting((0.9, 1.1), "scale factor of the affine transform, [lowest, highest]")
    shear_degrees: float = setting(10.0, "largest shear in either direction, degrees", ge=0, le=60)
    blur_probability: float = setting(0.5, "probability of Gaussian blur", ge=0, le=1)
    blur_sigma_px: PixelRange = setting(
        (0.1, 2.0), "standard deviation of the blur, pixels at data.size_px, [lowest, highest]"
    )
    jitter_probability: float = setting(0.8, "probability of colour jitter", ge=0, le=1)
    brightness: float = setting(0.2, "x: the brightness factor is drawn from 1 - x to 1 + x", ge=0, le=10)
    contrast: float = setting(0.2, "x: the contrast factor is drawn from 1 - x to 1 + x", ge=0, le=10)
    saturation: float = setting(0.2, "x: the saturation factor is drawn from 1 - x to 1 + x", ge=0, le=10)
    hue: float = setting(
        0.05, "largest hue shift in either direction, as a fraction of the colour circle", ge=0, le=0.5
    )
    grayscale_probability: float = setting(0.0, "probability of conversion to grayscale", ge=0, le=1)
    stain_probability: float = setting(0.0, "probability of H&E stain jitter, in optical density", ge=0, le=1)
    stain_strength: float = setting(
        0.2, "x: factors of haematoxylin and eosin are drawn from 1 - x to 1 + x", ge=0, le=10
    )
    stain_shift: float = setting(
        0.05, "largest shift of haematoxylin and eosin in either direction, optical density", ge=0, le=10
    )


class FinetuneAugmentConfig(AugmentConfig):
    """Random augmentation of a tile: milder than in pretraining, so that the class stays visible."""

    crop_scale: ShareRange = setting((0.6, 1.0), "area of the random crop as a fraction of the tile, [lowest, highest]")
    blur_probability: float = setting(0.0, "probability of Gaussian blur", ge=0, le=1)
    hue: float = setting(
        0.04, "largest hue shift in either direction, as a fraction of the colour circle", ge=0, le=0.5
    )
