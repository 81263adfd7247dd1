"""Adaptive width: ordinary layers run on the first channels of their parameters (AdaVid, arXiv 2504.12513).

    linear        y[:o] = W[:o, :i] x[:i] + b[:o]
    norms         statistics over the d channels at hand, first d weights
    attention     first d / head_dim heads, each of its full size
    MLP           first ratio * d hidden channels
    between       a narrower next layer drops the last channels, a wider one gets zeros appended (the paper leaves
                  this open; zeros are ours)

How many channels are active is never stored: it is the last dimension of the input, and an argument where a layer
changes it. At full width every function here calls the layer itself, so the result is bit for bit the plain layer's.
Below it weights are sliced without a copy: CPU matrix products take rows at a stride as fast as dense ones. Weights
outside the slices get a gradient of exactly zero. `copy_first` writes the same slices into a smaller module of its own.

Letters: B batch, N tokens, D all channels, d active channels, o output channels, A heads, K channels of one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import PointError

STACKED = "qkv"  # a layer of this name holds three matrices on top of each other: queries, keys, values


def first(parameter: Tensor, count: int) -> Tensor:
    """The first `count` entries of a parameter of one dimension: itself when it has no more, else a view.

    Raises:
        ValueError: it has fewer.
    """
    if parameter.shape[0] == count:
        return parameter
    if parameter.shape[0] < count:
        raise ValueError(f"the input has {count} channels, the layer only {parameter.shape[0]}")
    return parameter[:count]


def linear(x: Tensor, layer: nn.Linear, out_features: int | None = None) -> Tensor:
    """The first `out_features` outputs of `layer` for the first inputs: (..., d) to (..., o).

    Args:
        x: as many channels as are active, at most `layer.in_features`.
        layer: an ordinary linear layer.
        out_features: outputs o wanted; `None` takes all.

    Raises:
        ValueError: more inputs or outputs than the layer has.
    """
    rows, columns = layer.weight.shape
    wanted = rows if out_features is None else out_features
    if (wanted, x.shape[-1]) == (rows, columns):
        result: Tensor = layer(x)
        return result
    if wanted > rows or x.shape[-1] > columns:
        raise ValueError(f"the layer maps {columns} to {rows} channels, it cannot map {x.shape[-1]} to {wanted}")
    bias = None if layer.bias is None else layer.bias[:wanted]
    return F.linear(x, layer.weight[:wanted, : x.shape[-1]], bias)


def stacked_linear(x: Tensor, layer: nn.Linear, out_features: int | None = None, parts: int = 3) -> tuple[Tensor, ...]:
    """The first outputs of each of the matrices that `layer` stacks, such as queries, keys and values.

    One product at full width, one per part below it: the rows of a narrow part do not lie side by side.

    Args:
        x: (..., d).
        layer: `parts` matrices of equal height on top of each other.
        out_features: outputs o of each part; `None` takes d, or all where the layer gets all its inputs.
        parts: number of matrices.

    Returns:
        `parts` tensors (..., o); at full width they are views of one.
    """
    rows, columns = layer.weight.shape[0] // parts, layer.weight.shape[1]
    d = x.shape[-1]
    wanted = out_features or (rows if d == columns else d)
    if (wanted, d) == (rows, columns):
        return tuple(layer(x).chunk(parts, dim=-1))
    if wanted > rows or d > columns:
        raise ValueError(f"each of {parts} parts maps {columns} to {rows} channels, it cannot map {d} to {wanted}")
    weights = layer.weight.unflatten(0, (parts, rows))[:, :wanted, :d]  # (P*R, D) -> (P, o, d)
    biases = [None] * parts if layer.bias is None else layer.bias.unflatten(0, (parts, rows))[:, :wanted]  # (P, o)
    return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """LayerNorm over the d channels of x (..., d), with the first d weights and biases of `norm`."""
    d = x.shape[-1]
    if (d,) == norm.normalized_shape:
        result: Tensor = norm(x)
        return result
    bias = None if norm.bias is None else first(norm.bias, d)
    return F.layer_norm(x, (d,), first(norm.weight, d), bias, norm.eps)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """(B, N, A*K) to (B, A, N, K), a view: as many heads as the channels hold."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, A, N, K) to (B, N, A*K)."""
    return x.transpose(1, 2).flatten(2)


def fit_width(x: Tensor, width: int) -> Tensor:
    """The residual stream for a layer of `width` channels: (..., d) to (..., width), cut (a view) or zero-padded."""
    d = x.shape[-1]
    if d == width:
        return x
    return x[..., :width] if width < d else F.pad(x, (0, width - d))


def widths_of(width: int | Sequence[int] | None, limits: Sequence[int], head_dim: int, model: str) -> tuple[int, ...]:
    """One width per layer for what an operating point asks.

    Args:
        width: one for all layers, one per layer, or `None` for the full width.
        limits: full width of every layer.
        head_dim: channels of one attention head; heads are kept or dropped whole.
        model: name for the messages.

    Raises:
        PointError: a width is no multiple of `head_dim` within 1 head to the layer's full width, or their number is
            not that of the layers.
    """
    if width is None:
        return tuple(limits)
    widths = (width,) * len(limits) if isinstance(width, int) else tuple(width)
    if len(widths) != len(limits):
        raise PointError(
            f"{model} has {len(limits)} layers, so width must be one number or {len(limits)} of them, "
            f"got {len(widths)}: {widths}"
        )
    for layer, (wanted, limit) in enumerate(zip(widths, limits, strict=True)):
        if wanted % head_dim or not head_dim <= wanted <= limit:
            allowed = ", ".join(str(n) for n in range(head_dim, limit + 1, head_dim))
            raise PointError(
                f"width {wanted} of layer {layer} of {model} does not hold whole heads of {head_dim} channels within "
                f"the layer's {limit}; allowed: {allowed}, or None for all of them"
            )
    return widths


class ElasticSizes:
    """What widths mean for the sizes of a model; a mixin for frozen dataclasses with the fields below."""

    embed_dim: int
    depth: int
    num_heads: int
    widths: tuple[int, ...] | None

    def check_widths(self) -> None:
        """A list of widths to a tuple, as JSON has lists.

        Raises:
            ValueError: heads do not divide the channels.
            PointError: `widths` are not whole heads within the channels, or not one per block.
        """
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads must divide embed_dim {self.embed_dim}, got {self.num_heads}")
        if self.widths is not None:
            object.__setattr__(self, "widths", tuple(self.widths))
        if self.widths:
            self._widths_of(self.widths, (self.embed_dim,) * self.depth)

    @property
    def head_dim(self) -> int:
        """Channels of one head of a block; widths are multiples of it."""
        return self.embed_dim // self.num_heads

    @property
    def full_widths(self) -> tuple[int, ...]:
        """Channels that each block holds."""
        return self.widths or (self.embed_dim,) * self.depth

    def widths_at(self, width: int | Sequence[int] | None) -> tuple[int, ...]:
        """Active channels of each block at an operating point's `width`.

        Raises:
            PointError: `width` is no multiple of `head_dim`, more than a block holds, or not one per block.
        """
        return self._widths_of(width, self.full_widths)

    def _widths_of(self, width: int | Sequence[int] | None, limits: tuple[int, ...]) -> tuple[int, ...]:
        return widths_of(width, limits, self.head_dim, type(self).__name__.removesuffix("Config"))


def sample_widths(
    generator: torch.Generator, depth: int, widths: Sequence[int], *, decreasing: bool = False
) -> tuple[int, ...]:
    """A random width per layer for one training step, as AdaVid trains (arXiv 2504.12513).

    Args:
        generator: source of the draws.
        depth: number of layers.
        widths: what may be drawn.
        decreasing: draw schedules that never grow, all of them equally likely, instead of every layer by itself. The
            paper does not give the distribution; this one is ours.
    """
    choices = sorted(widths, reverse=True)
    if decreasing:  # a schedule is where, in `depth` layers and `len - 1` bars in a row, the bars stand
        slots = torch.randperm(depth + len(choices) - 1, generator=generator)
        bars = set(slots[: len(choices) - 1].tolist())
        drawn, index = [], 0
        for slot in range(len(slots)):
            if slot in bars:
                index += 1
            else:
                drawn.append(choices[index])
        return tuple(drawn)
    return tuple(choices[i] for i in torch.randint(len(choices), (depth,), generator=generator).tolist())


@torch.no_grad()
def copy_first(source: nn.Module, target: nn.Module) -> None:
    """Fill `target` with the leading part of what `source` holds under the same names, each a dense copy.

    Every dimension is cut to its first entries, except in a layer called "qkv", whose three matrices are cut one by
    one. So a target built at a smaller width computes what the source computes at that width.

    Raises:
        ValueError: a name is missing in the source, or its tensor is smaller there.
    """
    stored = source.state_dict()
    for name, wanted in target.state_dict().items():
        value = stored.get(name)
        if (
            value is None
            or value.ndim != wanted.ndim
            or any(s < w for s, w in zip(value.shape, wanted.shape, strict=True))
        ):
            shape = "nothing" if value is None else tuple(value.shape)
            raise ValueError(f"{name} needs a tensor of at least {tuple(wanted.shape)}, the source has {shape}")
        parts = 3 if STACKED in name.split(".") else 1
        whole = value.unflatten(0, (parts, -1)) if value.ndim else value  # (P, R, ...)
        part = (
            wanted.unflatten(0, (parts, -1)) if value.ndim else wanted
        )  # (P, r, ...), a view: writing it fills target
        part.copy_(whole[tuple(slice(n) for n in part.shape)])
