"""Maps of a transformer's attention: LeGrad and attention rollout, without and with gradients.

timm's attention is fused: its matrices are never there. While a map is made they are computed in the open, from the
same queries, keys, masks and norms; the model itself stays as it is.
B tiles, E heads, N tokens (class and register tokens, then patches), h x w cells of their grid, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sscl.explain.kinds import MapKind
from sscl.explain.layers import blocks_of, cells_of, grid_of
from sscl.explain.targets import AnyTarget, Target, score_of, target_classes
from sscl.models.heads import Classifier
from sscl.words import nearest

_SOFTMAX = (Tensor.softmax, torch.softmax, F.softmax)
See = Callable[[Tensor], Tensor]  # an attention matrix (B, E, N, N) as it was -> as the model goes on with it
After = Callable[[str, Tensor, Tensor], Tensor | None]  # block, its matrix, its output (B, N, C) -> another output


def attention_maps(model: nn.Module, images: Tensor, *, target: AnyTarget, kind: MapKind) -> tuple[Tensor, Tensor]:
    """Return raw maps (B, h, w), nowhere negative, and the logits (B, K).

    With A the attention of a block and G the score's gradient with respect to it, both (E, N, N):

    - legrad: ReLU(G), its mean over heads, queries and blocks, at the keys that are patches (Bousselham et al.,
      arXiv:2404.03214). A block's score is what the norm, the pooling and the head make of that block's tokens.
      The authors' code pools by the mean of all tokens; here it is as this model pools, so with a class token only its
      own row counts. `kind.layers` names blocks; none = all.
    - rollout: the product of (mean over heads of A + identity) / 2 over blocks (Abnar & Zuidema, arXiv:2005.00928): how
      far the feature's tokens look at each patch. No class is in it.
    - gradrollout: R = R + mean over heads of ReLU(A x G) times R, block by block, for one score (Chefer et al.,
      arXiv:2103.15679, Eq. 5 and 6). It keeps the graph of all blocks.

    Args:
        model: a `Classifier` in evaluation mode. images: (B, 3, H, W). target: see `targets.target_classes`.

    Raises:
        ValueError: no transformer whose blocks attend to all its tokens, or no such block.
    """
    blocks = blocks_of(model)
    if not blocks or not isinstance(model, Classifier):
        raise _refused(kind.method, model, "it has no such blocks")
    for name in kind.layers:
        if name not in blocks:
            raise ValueError(
                f"layer: got {name!r}, must be blocks of the transformer; {nearest(name, blocks, cutoff=0)}"
            )
    constants = {name: value.detach() for name, value in model.named_parameters()}

    def run() -> Tensor:
        logits: Tensor = torch.func.functional_call(model, constants, (images,))
        return logits

    make = {"legrad": _legrad, "rollout": _rollout, "gradrollout": _gradrollout}[kind.method]
    tokens, logits = make(model, blocks, run, lambda: _named(model, images, target), kind)
    if cells_of(model, tokens[:, :, None]) is None:
        raise _refused(kind.method, model, "its blocks have no class token")
    return grid_of(model, tokens.detach()[:, :, None])[:, 0], logits.detach()


def _named(model: Classifier, images: Tensor, target: AnyTarget) -> Tensor:
    """Return the classes of the score, see `targets.target_classes`; the model runs first only if it decides them."""
    if isinstance(target, Target) and target.label is None:
        with torch.no_grad():
            return target_classes(model(images), target)
    return target_classes(images.new_zeros(len(images), model.head.out_features), target)


Run = Callable[[], Tensor]  # the model on the tiles


def _legrad(
    model: Classifier, blocks: Mapping[str, nn.Module], run: Run, named: Run, kind: MapKind
) -> tuple[Tensor, Tensor]:
    """Return LeGrad at each token, (B, N), and the logits. Each block has a graph of its own, which ends with it."""
    wanted, of = kind.layers or tuple(blocks), named()
    found: list[Tensor] = []
    said: list[Tensor] = []

    def after(name: str, attention: Tensor, output: Tensor) -> Tensor:
        if name in wanted:
            said.append(_logits_of(model, output))
            (gradient,) = torch.autograd.grad(score_of(said[-1], of, gamma=kind.gamma).sum(), attention)
            found.append(gradient.clamp_min(0).mean((1, 2)))
        return output.detach()

    with _watched(blocks, lambda attention: attention.detach().requires_grad_(True), after, kind.method, model):
        logits = run()
    last = list(blocks)[-1]
    if last in wanted and not torch.allclose(said[-1], logits, rtol=1e-3, atol=1e-3):
        raise _refused(kind.method, model, "what follows its last block is more than a norm, the pooling and the head")
    return torch.stack(found).mean(0), logits


def _logits_of(model: Classifier, tokens: Tensor) -> Tensor:
    """Return what the model would say if this block, which gave (B, N, C), were its last, (B, K)."""
    encoder: Any = model.encoder
    normed = encoder.net.norm(tokens)
    logits: Tensor = model.head(encoder.pool(normed if encoder.pooling != "mean" else model.grid(normed)))
    return logits


def _rollout(
    model: Classifier, blocks: Mapping[str, nn.Module], run: Run, named: Run, kind: MapKind
) -> tuple[Tensor, Tensor]:
    """Return the attention rollout at each token, (B, N), and the logits."""
    rolled: list[Tensor] = []

    def see(attention: Tensor) -> Tensor:
        mixed = (attention.mean(1) + _identity(attention)) / 2
        rolled[:] = [mixed @ rolled[0] if rolled else mixed]
        return attention

    with torch.no_grad(), _watched(blocks, see, None, kind.method, model):
        logits = run()
    return _at_the_feature(model, rolled[0]), logits


def _gradrollout(
    model: Classifier, blocks: Mapping[str, nn.Module], run: Run, named: Run, kind: MapKind
) -> tuple[Tensor, Tensor]:
    """Return the rollout of attention times gradient at each token, (B, N), and the logits."""
    seen: list[Tensor] = []

    def see(attention: Tensor) -> Tensor:
        seen.append(attention if attention.requires_grad else attention.detach().requires_grad_(True))
        return seen[-1]

    with _watched(blocks, see, None, kind.method, model):
        logits = run()
    gradients = torch.autograd.grad(score_of(logits, named(), gamma=kind.gamma).sum(), seen)
    rolled = identity = _identity(seen[0])
    for attention, gradient in zip(seen, gradients, strict=True):
        rolled = rolled + (attention.detach() * gradient).clamp_min(0).mean(1) @ rolled
    return _at_the_feature(model, rolled - identity), logits


def _identity(attention: Tensor) -> Tensor:
    return torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)


def _at_the_feature(model: Classifier, rolled: Tensor) -> Tensor:
    """Return the rows (B, N, N) of the tokens that the feature is made of, as one, (B, N)."""
    first: int = model.encoder.net.num_prefix_tokens  # type: ignore[assignment, union-attr]
    rows = {"class": rolled[:, 0], "mean": rolled[:, first:].mean(1)}
    rows["class_mean"] = (rows["class"] + rows["mean"]) / 2
    return rows[model.encoder.pooling]


@contextlib.contextmanager
def _watched(
    blocks: Mapping[str, nn.Module], see: See, after: After | None, method: str, model: Classifier
) -> Iterator[None]:
    """Show the attention matrix of each block to `see` while the context lasts, and each block's output to `after`.

    Raises:
        ValueError: a block that does not attend to all its tokens, once.
    """
    mode = _OpenAttention(see)

    def opened(module: nn.Module, given: tuple[Any, ...]) -> None:
        mode.tokens, mode.matrices = given[0].shape[1], []

    def closed(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, given: Any, output: Tensor) -> Tensor | None:
            mode.tokens = 0
            if len(mode.matrices) != 1:
                how = "never" if not mode.matrices else f"{len(mode.matrices)} times"
                raise _refused(method, model, f"{name} does so {how}")
            return None if after is None else after(name, mode.matrices[0], output)

        return hook

    with contextlib.ExitStack() as stack:
        for name, block in blocks.items():
            stack.callback(block.register_forward_pre_hook(opened).remove)
            stack.callback(block.register_forward_hook(closed(name)).remove)
        stack.enter_context(mode)
        yield


def _refused(method: str, model: nn.Module, why: str) -> ValueError:
    name = getattr(getattr(model, "encoder", None), "name", "the model")
    return ValueError(
        f"method: {method} needs a transformer whose blocks attend to all tokens, and {name} is none ({why}); "
        "gradcam, hirescam, layercam and eigencam need a feature map only"
    )


@dataclass
class _OpenAttention(TorchFunctionMode):
    """Computes attention step by step, and shows its matrices, where torch would compute it in one."""

    see: See
    tokens: int = 0  # of the block that runs; 0 = none does
    matrices: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.tokens:
            return self._attend(*args, **kwargs)
        found = func(*args, **kwargs)
        return self._shown(found) if func in _SOFTMAX and self._whole(found) else found

    def _whole(self, matrix: Tensor) -> bool:
        """Return whether this is an attention of all tokens to all."""
        return self.tokens > 0 and matrix.ndim == 4 and matrix.shape[2:] == (self.tokens, self.tokens)

    def _shown(self, matrix: Tensor) -> Tensor:
        self.matrices.append(self.see(matrix))
        return self.matrices[-1]

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any
    ) -> Tensor:
        """Return what torch's function of this name does, for matrices of all tokens step by step."""
        scale = others.get("scale")
        if others.get("is_causal") or others.get("enable_gqa"):
            return F.scaled_dot_product_attention(query, key, value, attn_mask, **others)
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if attn_mask is not None:
            hidden = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
        attention = scores.softmax(-1)
        return (self._shown(attention) if self._whole(attention) else attention) @ value
