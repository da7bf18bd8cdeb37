"""sscl encoders: the encoders that have a name, what each expects, and whether its weights are on this disk."""

from __future__ import annotations

import textwrap
from typing import Any

import torch

from sscl.config import EncodersConfig, shown
from sscl.config.encoders import ENCODERS, OWN, TIMM
from sscl.config.published import PUBLISHED, Published
from sscl.evaluate.tables import as_text
from sscl.models.encoders import check_name
from sscl.models.pixels import preprocessing_of
from sscl.models.published import on_this_disk, resolve
from sscl.models.timm_models import create, default_pool
from sscl.words import count, next_command

_WIDTH = 80  # columns
LEGEND = (
    "* gated: accept the terms on the encoder's page first (sscl encoders NAME).",
    "patch/tile: sides in px. feature: what a tile becomes; width: its numbers.",
    "µm/px: of its tiles. NC: not for commercial use.",
    "here: whether the weights are in the hub's cache on this disk.",
    "Not verified with the published weights: docs/encoders.md.",
)


def main(config: EncodersConfig) -> None:
    """Print the table of encoders, or all facts of one.

    Raises:
        ValueError: no such encoder.
        FileNotFoundError: no such folder, or a repository that is not on this disk.
    """
    if config.name is None:
        print(listing())
        print(f"\n{next_command('encoders', 'NAME')}")
        return
    check_name_of(config.name)
    facts = of_table(PUBLISHED[config.name]) if config.name in PUBLISHED else of_any(config.name)
    width = max(map(len, facts))
    for key, value in facts.items():
        print(textwrap.fill(f"{key:<{width}}  {value}", _WIDTH, subsequent_indent=" " * (width + 2)))
    words = [f"model.name={config.name}"]
    if config.name in PUBLISHED or config.name.startswith(TIMM):
        words.append("model.weights=published")
    elif OWN[config.name].imagenet != "none":
        words.append("model.weights=imagenet")
    print(f"\n{next_command('finetune', 'TILES', *words, 'run=RUN')}")


def check_name_of(name: str) -> None:
    """Raise ValueError, with the nearest names, unless an encoder is called so."""
    try:
        if name not in PUBLISHED and not name.startswith(("timm:hf-hub:", "timm:local-dir:")):
            check_name(name)
    except ValueError as error:
        raise ValueError(str(error).replace("model.name: ", "name: ", 1)) from None


def listing() -> str:
    """Return both tables, published encoders and those without a publisher's weights, at most 80 columns wide."""
    header = ("name", "params", "width", "patch/tile", "µm/px", "feature", "terms", "here")
    rows = [
        (
            one.name,
            _millions(one.parameters),
            str(one.features),
            f"{one.patch_px}/{one.size_px}",
            _scale(one),
            one.pooling,
            _terms(one),
            "no" if on_this_disk(one) is None else "yes",
        )
        for one in PUBLISHED.values()
    ]
    own = [("name", "weights", "width", "feature", "ImageNet weights")]
    own += [
        (name, _millions(OWN[name].parameters), str(OWN[name].features), "mean", OWN[name].imagenet)
        for name in ENCODERS
    ]
    published = as_text([header, *rows]).splitlines()
    return "\n".join(
        [
            "Published encoders of histopathology: model.name=NAME model.weights=published",
            "",
            *published,
            "",
            *LEGEND,
            "",
            "Encoders to train, or to start from ImageNet: model.weights=imagenet",
            "",
            as_text(own),
            "",
            "Any other of timm: timm:NAME, timm:hf-hub:USER/MODEL, timm:local-dir:FOLDER.",
        ]
    )


def of_table(one: Published) -> dict[str, str]:
    here = on_this_disk(one)
    cells = one.size_px // one.patch_px
    gated = "; gated: accept them on its page, then hf auth login or HF_TOKEN" if one.gated else ""
    facts = {
        "name": one.name,
        "page": one.page,
        "terms": f"{one.terms}{gated}",
        "on this disk": "no" if here is None else str(here),
        "weights": f"{count(one.parameters, 'parameter')}, {one.parameters * 4 / 1e9:.1f} GB in float32",
        "model of timm": one.architecture,
        "arguments": ", ".join(f"{key}={shown(value)}" for key, value in one.kwargs.items()) or "none",
        "feature": f"{one.pooling}, {one.features} numbers",
        "tiles": f"{one.size_px} px, in patches of {one.patch_px} px: {cells} x {cells} cells",
        "µm per pixel": _scale(one),
        "mean": _numbers(one.normalisation[0]),
        "std": _numbers(one.normalisation[1]),
        "by hand": f"download its file of weights, and give model.name={one.name} model.weights=PATH",
    }
    if one.note:
        facts["note"] = one.note
    return facts | {"verified": "with small models of these arguments, not with the published weights"}


def of_any(name: str) -> dict[str, str]:
    """Return the facts of another encoder: one of ENCODERS, or of timm."""
    if name in OWN:
        own, (mean, std) = OWN[name], preprocessing_of(name)
        return {
            "name": name,
            "weights": count(own.parameters, "parameter"),
            "feature": f"mean, {own.features} numbers",
            "ImageNet weights": own.imagenet,
            "mean": _numbers(mean),
            "std": _numbers(std),
        }
    named = resolve(name, kwargs={}, pool=None)
    if named.name in PUBLISHED:
        return of_table(PUBLISHED[named.name])
    check_name(named.name)
    with torch.device("meta"):
        net = create(named.name.removeprefix(TIMM), kwargs=named.kwargs)
    mean, std = preprocessing_of(named.name)
    told: Any = net
    pool, width = named.pool or default_pool(net), getattr(net, "head_hidden_size", None) or told.num_features
    size_px = named.size_px or told.pretrained_cfg["input_size"][-1]
    return {
        "name": name,
        "model of timm": named.name.removeprefix(TIMM),
        "arguments": ", ".join(f"{key}={shown(value)}" for key, value in named.kwargs.items()) or "none",
        "weights": count(sum(value.numel() for value in net.parameters()), "parameter"),
        "feature": f"{pool}, {2 * width if pool == 'class_mean' else width} numbers",
        "tiles": f"{size_px} px",
        "mean": _numbers(named.mean or mean),
        "std": _numbers(named.std or std),
    }


def _millions(parameters: int) -> str:
    if parameters >= 1e9:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.0f} M" if parameters >= 1e7 else f"{parameters / 1e6:.1f} M"


def _scale(one: Published) -> str:
    if one.mpp is None:
        return "not said"
    low, high = one.mpp
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _terms(one: Published) -> str:
    return one.terms.split(",")[0].removesuffix(" 4.0").replace("non-commercial", "NC") + ("*" if one.gated else "")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
