"""The published encoders of histopathology by name: one table of facts, none of it read from a file.

Compared in two sources each where there are two (2026-11-26): TRIDENT (trident/patch_encoder_models/load.py at
0120b8b), kaiko's eva, LazySlide, the pages of four on huggingface.co. Nobody has run the published weights with this
program; what is tested are small models of exactly these arguments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from sscl.words import closest

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_LUNIT = ((0.70322989, 0.53606487, 0.66096631), (0.21716536, 0.26081574, 0.20723464))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SWIGLU: dict[str, object] = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
_NC = "CC BY-NC-ND 4.0"


@dataclass(frozen=True)
class Published:
    """A published encoder.

    Attributes:
        name: as `model.name` has it.
        hub: its repository on huggingface.co.
        architecture, kwargs: at timm.
        features: width of its feature. parameters: how many. patch_px: side of a patch.
        normalisation: channel means and standard deviations of pixels in 0-1.
        mpp: µm per pixel of its tiles, lowest and highest; None: its makers do not say, or no source here does.
        terms: its licence, in words. gated: whether the page asks for an account and consent.
        pooling: what its makers use as the feature.
        size_px: side of its tiles.
        file: that of its weights, where it has another name than the hub's usual ones.
        note: what a user should know, or in what sources differ.
    """

    name: str
    hub: str
    architecture: str
    kwargs: dict[str, object]
    features: int
    parameters: int
    patch_px: int
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = _IMAGENET
    mpp: tuple[float, float] | None = (0.5, 0.5)
    terms: str = _NC
    gated: bool = True
    pooling: Literal["mean", "class", "class_mean"] = "class"
    size_px: int = 224
    file: str | None = None
    note: str = field(default="", compare=False)

    @property
    def page(self) -> str:
        """The address where its card is, and its terms are accepted."""
        return f"https://huggingface.co/{self.hub}"


_GIANT: dict[str, object] = {"img_size": 224, "init_values": 1e-5}
_KAIKO = "kaiko_ai_towards_large_pathology_fms"
_KAIKO_NOTE = "trained at several magnifications; no source here says which as µm per pixel"


def _kaiko(name: str, architecture: str, features: int, parameters: int, patch_px: int, side: int = 224) -> Published:
    return Published(
        name,
        f"1aurent/{architecture}.{_KAIKO}",
        architecture,
        {"img_size": side},
        features,
        parameters,
        patch_px,
        _HALF,
        mpp=None,
        terms="see its page",
        gated=False,
        note=_KAIKO_NOTE,
    )


def _lunit(name: str, patch_px: int, parameters: int) -> Published:
    architecture = f"vit_small_patch{patch_px}_224"
    return Published(
        name,
        f"1aurent/{architecture}.lunit_dino",
        architecture,
        {},
        384,
        parameters,
        patch_px,
        _LUNIT,
        mpp=(0.25, 0.5),
        terms="non-commercial",
        gated=False,
    )


_TABLE = (
    Published("uni", "MahmoodLab/UNI", "vit_large_patch16_224", {"init_values": 1e-5}, 1024, 303_350_784, 16),
    Published(
        "uni2_h",
        "MahmoodLab/UNI2-h",
        "vit_giant_patch14_224",
        {
            **_GIANT,
            **_SWIGLU,
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 5.33334,
            "reg_tokens": 8,
            "no_embed_class": True,
        },
        1536,
        681_394_176,
        14,
    ),
    Published(
        "virchow",
        "paige-ai/Virchow",
        "vit_huge_patch14_224",
        {**_SWIGLU, "mlp_ratio": 5.3375, "init_values": 1e-5},
        2560,
        631_229_184,
        14,
        terms="Apache-2.0",
        pooling="class_mean",
    ),
    Published(
        "virchow2",
        "paige-ai/Virchow2",
        "vit_huge_patch14_224",
        {**_SWIGLU, "mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4},
        2560,
        631_239_424,
        14,
        mpp=(0.25, 2.0),
        pooling="class_mean",
        note="its card gives 2, 1, 0.5 and 0.25 µm per pixel",
    ),
    Published(
        "h_optimus_0",
        "bioptimus/H-optimus-0",
        "vit_giant_patch14_reg4_dinov2",
        _GIANT,
        1536,
        1_134_774_272,
        14,
        _BIOPTIMUS,
        terms="Apache-2.0",
        gated=False,
    ),
    Published(
        "h_optimus_1",
        "bioptimus/H-optimus-1",
        "vit_giant_patch14_reg4_dinov2",
        _GIANT,
        1536,
        1_134_774_272,
        14,
        _BIOPTIMUS,
    ),
    Published(
        "h0_mini",
        "bioptimus/H0-mini",
        "vit_base_patch14_reg4_dinov2",
        {**_GIANT, **_SWIGLU, "mlp_ratio": 5.33334},
        768,
        85_739_520,
        14,
        _BIOPTIMUS,
        note="model.pool=class_mean gives 1,536 features, as some use it; mlp_ratio follows from its 86 M parameters",
    ),
    Published(
        "gigapath",
        "prov-gigapath/prov-gigapath",
        "vit_giant_patch14_dinov2",
        {**_GIANT, "patch_size": 16},
        1536,
        1_134_953_984,
        16,
        terms="its own, research only",
        note="its makers resize tiles to 256 px (bicubic) and cut out the central 224; here all of the tile is used",
    ),
    _kaiko("kaiko_s16", "vit_small_patch16_224", 384, 21_665_664, 16),
    _kaiko("kaiko_s8", "vit_small_patch8_224", 384, 21_670_272, 8),
    _kaiko("kaiko_b16", "vit_base_patch16_224", 768, 85_798_656, 16),
    _kaiko("kaiko_b8", "vit_base_patch8_224", 768, 85_807_872, 8),
    _kaiko("kaiko_l14", "vit_large_patch14_reg4_dinov2", 1024, 304_370_688, 14, side=518),
    _lunit("lunit_s16", 16, 21_665_664),
    _lunit("lunit_s8", 8, 21_670_272),
    Published(
        "gpfm",
        "majiabo/GPFM",
        "vit_large_patch14_dinov2",
        _GIANT,
        1024,
        303_227_904,
        14,
        mpp=None,
        gated=False,
        file="GPFM.pth",
        note=(
            "also a release of github.com/birkhoffkiki/GPFM, a file of DINOv2's names, which is read too; one user of "
            "the weights normalises by 0.5 instead of ImageNet's"
        ),
    ),
)
PUBLISHED: dict[str, Published] = {one.name: one for one in _TABLE}


def by_hub(repository: str) -> Published | None:
    """Return the encoder of a repository on huggingface.co, whatever its letters' case; None: not in the table."""
    wanted = repository.partition("@")[0].lower()
    return next((one for one in _TABLE if one.hub.lower() == wanted), None)


def like(name: str) -> list[str]:
    """Return the encoders of the table that a name may mean: written otherwise, begun, or misspelt.

    A number in a name tells one encoder from another, so none with other numbers is offered.

    Examples:
        >>> like("UNI2-h"), like("h_optimus"), like("virchwo2"), like("virchow3")
        (['uni2_h'], ['h_optimus_0', 'h_optimus_1'], ['virchow2'], [])
    """
    wanted = _letters(name)
    if not wanted:
        return []
    same = [one for one in PUBLISHED if _letters(one) == wanted]
    begun = same or [one for one in PUBLISHED if _letters(one).startswith(wanted)]
    if begun:
        return begun
    near = closest(name.lower(), [one for one in PUBLISHED if _digits(one) == _digits(name)], cutoff=0.7)
    return [] if near is None else [near]


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _digits(name: str) -> list[str]:
    return re.findall(r"\d", name)
