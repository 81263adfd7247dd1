"""TimeSformer: a vision transformer whose attention sees space and time together, apart, or space alone.

Papers: "Is Space-Time Attention All You Need for Video Understanding?", arXiv 2102.05095 (joint, divided, space), and
"Frozen in Time", arXiv 2104.00650 (frozen), whose encoder EgoVLP (arXiv 2206.01670) and LaViLa (arXiv 2212.04501) use.

    joint    x += attend(norm(x)) over all tokens of the clip;                             x += mlp(norm(x))
    space    the same within each frame, every frame with a class token of its own; frames are averaged at the end
    divided  patches += dense(attend(norm(patches))) over one site in all frames;
             x += attend(norm(x)) within each frame, the class token copied into every frame and averaged over them
    frozen   t = x + attend(norm(x)) over one site in all frames;  x += attend(norm(t)) within each frame;  here the
             class token is one key more in every group, and its own query sees the whole clip

Every layer runs on its first channels when the operating point says `width`, one number or one per layer, as AdaVid
(arXiv 2504.12513) does; what a model trained at full width alone is worth there is another matter.

Where we depart:
- tokens lie frame by frame; the released code keeps them site by site. No weight depends on it;
- the attention over time starts with a zero output layer, so an untrained block is an image block. Released code does
  so for `divided`; transformers' class does not;
- the paper describes space before time, released code does time first: `order` has both, time first by default;
- transformers' space-only model returns every frame of its own; like the released code we average them;
- a frame size other than the table's takes the nearest row of the table, as released code does. So do other frame
  counts, except that `frozen` takes the first rows when there are fewer frames, as its released code does.

Cost of a block for T frames of n patches, N = T n, class tokens aside: joint 12 N D^2 + 2 N^2 D, space
12 N D^2 + 2 N n D, divided 17 N D^2 + 2 N (T + n) D, frozen 16 N D^2 + 2 N (T + n) D multiply-accumulates; D is the
width of that block.

Letters: B batch, T frames, H W pixels, h w grid, n = h w patches of a frame, N = T n, D channels at hand, G groups,
A heads, K channels of one head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost, attention_macs, block_macs, linear_macs
from elastivid.core.errors import PointError, UnknownNameError, WeightsError, require_known_keys
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.block import Mlp, initialise_linears
from elastivid.layers.elastic import ElasticSizes, first, fit_width, layer_norm, linear, stacked_linear
from elastivid.layers.embed import patch_coordinates, patchify
from elastivid.models.base import VideoEncoder

EPS = 1e-6  # of every norm, as in all released checkpoints
STEPS = ("time", "space")


@dataclass(frozen=True)
class TimeSformerConfig(ElasticSizes):
    """Sizes of a TimeSformer.

    Args:
        embed_dim, depth, num_heads: width D, number of blocks, attention heads.
        patch_size: side of a patch in pixels.
        num_frames: rows of the table of times.
        image_size: side in pixels of the squares the table of places is for, or (height, width).
        mlp_ratio: hidden channels of an MLP over D.
        attention: "divided", "joint", "space" or "frozen"; see the module's text.
        order: which half of "divided" attention comes first, ("time", "space") or ("space", "time").
        num_classes: classes of the classifier; 0 for none.
        widths: channels of each block for a model that holds only the first ones (`TimeSformer.at` makes it); empty
            for all. Heads keep their size.

    Raises:
        UnknownNameError: `attention` is none of the four.
        ValueError: D is not a multiple of `num_heads`, the image not one of the patch, or `order` is no order.
        PointError: `widths` are not whole heads within D, or not one per block.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    num_frames: int = 8
    image_size: int | tuple[int, int] = 224
    mlp_ratio: float = 4.0
    attention: str = "divided"
    order: tuple[str, str] = STEPS
    num_classes: int = 0
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("image_size", "order"):  # JSON has lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.attention not in BLOCKS:
            raise UnknownNameError("attention", self.attention, BLOCKS)
        if any(side % self.patch_size for side in self.image_sides):
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if sorted(self.order) != sorted(STEPS) or (self.attention != "divided" and self.order != STEPS):
            raise ValueError(
                f"order must be ('time', 'space'), or ('space', 'time') for divided attention, got {self.order} "
                f"for {self.attention}"
            )
        self.check_widths()

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width in pixels that the table of places is for."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def table_grid(self) -> tuple[int, int]:
        """Rows and columns of the table of places."""
        height, width = self.image_sides
        return height // self.patch_size, width // self.patch_size

    def build(self) -> TimeSformer:
        """An untrained model of these sizes."""
        return TimeSformer(self)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> TimeSformerConfig:
        """Our config for that of a transformers `TimesformerConfig` (`to_dict()` or a checkpoint's config.json).

        Raises:
            WeightsError: a value we do not offer, or a key that `TimesformerConfig` does not have.
        """
        return cls(**_from_transformers(config))

    def cost(
        self, *, frames: int, size: int, tokens: int | None = None, width: int | Sequence[int] | None = None
    ) -> Cost:
        """Closed-form cost of one clip in float32: `frames` squares of `size` pixels at a width.

        The weights counted are those the model holds, because all of them stay loaded at any width.

        Raises:
            PointError: `tokens` is given, which is no axis of this model, or `width` cannot be.
        """
        OperatingPoint(tokens=tokens).require_axes(TimeSformer.supported_axes, "TimeSformer")
        sites = (size // self.patch_size) ** 2
        count = frames * sites
        widths = self.widths_at(width)
        macs = linear_macs(count, 3 * self.patch_size**2, widths[0])
        macs += sum(_block_cost(self.attention, frames, sites, dim, self.mlp_ratio) for dim in widths)
        macs += linear_macs(1, widths[-1], self.num_classes)
        attention = {"frozen": 10, "divided": 8}.get(self.attention, 7)  # times D: stream, norm, qkv, copies of groups
        hidden = 3 + 2 * self.mlp_ratio  # stream, block's input, norm, hidden layer before and after GELU
        widest = (count + frames) * max(widths) * max(attention, hidden)
        embedding = count * (3 * self.patch_size**2 + widths[0])
        return Cost(macs=macs, parameter_bytes=4 * _parameters(self), activation_bytes=int(4 * max(widest, embedding)))


@lru_cache(maxsize=64)
def _parameters(config: TimeSformerConfig) -> int:
    """Number of parameters of a model of these sizes."""
    with torch.device("meta"):
        return sum(p.numel() for p in TimeSformer(config).parameters())


def _block_cost(attention: str, frames: int, sites: int, dim: int, mlp_ratio: float) -> int:
    """MACs of one block over `frames` frames of `sites` patches."""
    tokens = 1 + frames * sites
    if attention == "joint":
        return block_macs(tokens, dim, mlp_ratio)
    if attention == "space":
        return frames * block_macs(1 + sites, dim, mlp_ratio)
    mlp = 2 * linear_macs(tokens, dim, int(dim * mlp_ratio))
    if attention == "divided":
        time = sites * block_macs(frames, dim, 0) + linear_macs(frames * sites, dim, dim)
        return time + frames * block_macs(1 + sites, dim, 0) + mlp
    projections = linear_macs(tokens, dim, 8 * dim)  # four of each attention
    time = attention_macs(1, tokens, dim) + sites * attention_macs(frames, 1 + frames, dim)
    space = attention_macs(1, tokens, dim) + frames * attention_macs(sites, 1 + sites, dim)
    return projections + time + space + mlp


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(K)) V, projected. Cost: 4 N D^2 + 2 N^2 D multiply-accumulates."""

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map groups of tokens (G, N, D) to (G, N, D); groups do not see each other."""
        return self.project(attend(*self.heads(x)))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each (..., A, K), of tokens (..., D)."""
        return tuple(
            y.unflatten(-1, (-1, self.head_dim)) for y in stacked_linear(x, self.qkv)
        )  # (..., D) -> (..., A, K)

    def project(self, x: Tensor) -> Tensor:
        """Map the heads' results (..., A, K) to (..., D)."""
        x = x.flatten(-2)  # (..., A, K) -> (..., D)
        return linear(x, self.proj, x.shape[-1])


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(K)) V of every group and head: (G, M, A, K), twice (G, N, A, K) to (G, M, A, K)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (G, A, ., K)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (G, M, A, K)


class JointBlock(nn.Module):
    """Attention over all tokens given, then the MLP: an image transformer's block.

    Args:
        dim: channels D.
        head_dim: channels K of one head.
        mlp_ratio: hidden channels of the MLP over D.
    """

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = SelfAttention(dim, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Map tokens (G, N, D) to (G, N, D); `frames` is not needed here."""
        x = x + self.attn(layer_norm(x, self.norm1))
        return x + self.mlp(layer_norm(x, self.norm2))


class DividedBlock(JointBlock):
    """Attention over time at every site and over space in every frame, in either order, then the MLP."""

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__(dim, head_dim, mlp_ratio)
        self.time_norm = nn.LayerNorm(dim, eps=EPS)
        self.time_attn = SelfAttention(dim, head_dim)
        self.time_dense = nn.Linear(dim, dim)
        self.order = STEPS

    @property
    def last_time_layer(self) -> nn.Linear:
        """What the result of the attention over time passes last."""
        return self.time_dense

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Map tokens (B, 1+N, D) of `frames` frames, class token first, to (B, 1+N, D)."""
        for step in self.order:
            x = self._over_time(x, frames) if step == "time" else self._over_space(x, frames)
        return x + self.mlp(layer_norm(x, self.norm2))

    def _over_time(self, x: Tensor, frames: int) -> Tensor:
        b, _, d = x.shape
        cls, patches = x[:, :1], x[:, 1:]
        sites = patches.unflatten(1, (frames, -1)).transpose(1, 2).flatten(0, 1)  # (B, T, n, D) -> (B*n, T, D)
        seen = linear(self.time_attn(layer_norm(sites, self.time_norm)), self.time_dense, d)
        seen = seen.unflatten(0, (b, -1)).transpose(1, 2).flatten(1, 2)  # (B*n, T, D) -> (B, N, D)
        return torch.cat([cls, patches + seen], dim=1)  # (B, 1+N, D)

    def _over_space(self, x: Tensor, frames: int) -> Tensor:
        patches = x[:, 1:].unflatten(1, (frames, -1))  # (B, T, n, D)
        framed = torch.cat([x[:, None, :1].expand(-1, frames, -1, -1), patches], dim=2)  # (B, T, 1+n, D)
        seen = self.attn(layer_norm(framed.flatten(0, 1), self.norm1))  # (B*T, 1+n, D)
        seen = seen.reshape(framed.shape)  # (B, T, 1+n, D)
        return x + torch.cat([seen[:, :, 0].mean(1, keepdim=True), seen[:, :, 1:].flatten(1, 2)], dim=1)  # (B, 1+N, D)


class FrozenBlock(JointBlock):
    """Divided attention in which the class token takes part in every group, with one residual around both halves."""

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__(dim, head_dim, mlp_ratio)
        self.time_norm = nn.LayerNorm(dim, eps=EPS)
        self.time_attn = SelfAttention(dim, head_dim)

    @property
    def last_time_layer(self) -> nn.Linear:
        """What the result of the attention over time passes last."""
        return self.time_attn.proj

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Map tokens (B, 1+N, D) of `frames` frames, class token first, to (B, 1+N, D)."""
        seen = x + grouped(self.time_attn, layer_norm(x, self.time_norm), frames, over_time=True)
        seen = layer_norm(seen, self.norm1)
        x = x + grouped(self.attn, seen, frames, over_time=False)
        del seen
        return x + self.mlp(layer_norm(x, self.norm2))


def grouped(attn: SelfAttention, x: Tensor, frames: int, *, over_time: bool) -> Tensor:
    """Attention of tokens (B, 1+N, D) within groups that all hold the class token: (B, 1+N, D).

    A group is one site in all frames (`over_time`) or one frame. The class token's query sees every token once.
    """
    b = x.shape[0]
    heads = attn.heads(x)
    groups = []
    for y in heads:
        patches = y[:, 1:].unflatten(1, (frames, -1))  # (B, T, n, A, K)
        groups.append(patches.transpose(1, 2) if over_time else patches)  # (B, n, T, A, K) or (B, T, n, A, K)
    q, k, v = heads
    cls = attend(q[:, :1], k, v)  # (B, 1, A, K)
    with_cls = [
        torch.cat([y[:, None, :1].expand(-1, group.shape[1], -1, -1, -1), group], dim=2).flatten(0, 1)
        for y, group in zip(heads[1:], groups[1:], strict=True)
    ]  # keys and values (B*n, 1+T, A, K) or (B*T, 1+n, A, K)
    seen = attend(groups[0].flatten(0, 1), *with_cls).unflatten(0, (b, -1))  # (B, n, T, A, K) or (B, T, n, A, K)
    seen = (seen.transpose(1, 2) if over_time else seen).flatten(1, 2)  # (B, N, A, K)
    return attn.project(torch.cat([cls, seen], dim=1))


BLOCKS = {"joint": JointBlock, "space": JointBlock, "divided": DividedBlock, "frozen": FrozenBlock}


class TimeSformer(VideoEncoder):
    """The encoder; see the module's text. Build it from a `TimeSformerConfig` or `PRESETS`."""

    supported_axes: ClassVar[frozenset[str]] = frozenset({"width"})

    def __init__(self, config: TimeSformerConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.full_widths
        dim = widths[0]
        rows, columns = config.table_grid
        self.patch_proj = nn.Linear(3 * config.patch_size**2, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1 + rows * columns, dim))  # the class token's first
        self.times = None if config.attention == "space" else nn.Parameter(torch.zeros(config.num_frames, dim))
        kind = BLOCKS[config.attention]
        self.blocks = nn.ModuleList(kind(width, config.head_dim, config.mlp_ratio) for width in widths)
        for block in self.blocks:
            if isinstance(block, DividedBlock):
                block.order = config.order
        self.norm = nn.LayerNorm(widths[-1], eps=EPS)
        self.classifier = nn.Linear(widths[-1], config.num_classes) if config.num_classes else None
        initialise_linears(self)
        for block in self.blocks:
            if isinstance(block, DividedBlock | FrozenBlock):
                nn.init.zeros_(block.last_time_layer.weight)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode clips.

        Args:
            video: (B, T, 3, H, W) float; H and W multiples of the patch size, any T.
            point: `width`, active channels D of every block, in whole heads; `None` is all of them.
            state: TimeSformer does not stream; must be `None`.

        Returns:
            `embedding` (B, D) for the D of the last block, the class token after the final norm; `logits` when there
            is a classifier; the tokens after the last block, before the final norm, with one class token (space-only:
            one per frame) in front.

        Raises:
            PointError: the point names an axis the model lacks or a width it cannot have, or a state was given.
            ValueError: `video` has the wrong shape.
        """
        point = point or OperatingPoint()
        point.require_axes(self.supported_axes, "TimeSformer")
        if state is not None:
            raise PointError("TimeSformer has no streaming state; pass state=None")
        widths = self.config.widths_at(point.width)
        p = self.config.patch_size
        x = linear(patchify(video.to(self.cls_token.dtype), p, 3), self.patch_proj, widths[0])  # (B, N, D)
        b, frames = video.shape[:2]
        grid = (frames, video.shape[3] // p, video.shape[4] // p)
        x = x + self._table(grid, widths[0])
        cls = first(self.cls_token[0, 0] + self.positions[0], widths[0]).expand(b, 1, -1)  # (B, 1, D)
        if self.config.attention == "space":
            x = x.reshape(b * frames, -1, x.shape[-1])  # (B, N, D) -> (B*T, n, D)
            cls = cls.repeat_interleave(frames, dim=0)  # (B*T, 1, D)
        x = torch.cat([cls, x], dim=1)  # (B, 1+N, D) or (B*T, 1+n, D)
        for block, width in zip(self.blocks, widths, strict=True):
            x = block(fit_width(x, width), frames)
        num_prefix = 1
        if self.config.attention == "space":
            num_prefix = frames
            x = torch.cat([x[:, :1].reshape(b, frames, -1), x[:, 1:].reshape(b, -1, x.shape[-1])], dim=1)  # (B, T+N, D)
        embedding = layer_norm(x[:, :num_prefix].mean(dim=1), self.norm)
        logits = linear(embedding, self.classifier) if self.classifier is not None else None
        coords = patch_coordinates(grid).to(x.device).expand(b, -1, -1)  # (B, N, 3)
        tokens = Tokens(x=x, coords=coords, grid=grid, num_prefix=num_prefix)
        return Output(embedding=embedding, logits=logits, tokens=tokens)

    def _table(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Places plus times (N, D) of a grid."""
        frames, rows, columns = grid
        places = self.positions[1:, :width]
        if (rows, columns) != self.config.table_grid:
            table = places.T.reshape(1, -1, *self.config.table_grid)  # (n, D) -> (1, D, h, w)
            places = F.interpolate(table, size=(rows, columns), mode="nearest").flatten(2)[0].T  # (n', D)
        if self.times is None:
            return places.repeat(frames, 1)  # (n, D) -> (N, D)
        times = self.times[:, :width]
        if self.config.attention == "frozen" and frames < len(times):
            times = times[:frames]
        elif frames != len(times):
            times = F.interpolate(times.T[None], size=frames, mode="nearest")[0].T  # (T', D)
        return (places[None] + times[:, None]).flatten(0, 1)  # (T, n, D) -> (N, D)


PRESETS = {
    "tiny": TimeSformerConfig(embed_dim=48, depth=3, num_heads=6, patch_size=14, num_frames=4, image_size=70),
    "base": TimeSformerConfig(),  # arXiv 2102.05095, table 2: 121 M parameters with 400 classes
    "base-hr": TimeSformerConfig(num_frames=16, image_size=448),
    "base-long": TimeSformerConfig(num_frames=96),
    "frozen-base": TimeSformerConfig(num_frames=4, attention="frozen"),  # arXiv 2104.00650, 2206.01670
}


_FROM_TRANSFORMERS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "num_frames": "num_frames",
    "image_size": "image_size",
}
_FIXED = {"num_channels": 3, "hidden_act": "gelu", "layer_norm_eps": EPS, "qkv_bias": True, "model_type": "timesformer"}
_NO_MATTER = {  # about training, files and classes' names
    *("attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "initializer_range", "problem_type"),
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "label2id"),
    *("return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder"),
}
_ATTENTIONS = {"divided_space_time": "divided", "joint_space_time": "joint", "space_only": "space"}


def _from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `TimeSformerConfig` for a transformers config."""
    special = {"attention_type", "intermediate_size", "id2label"}
    require_known_keys("TimeSformer reference config", config, _FROM_TRANSFORMERS, _FIXED, _NO_MATTER, special)
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) != wanted:
            raise WeightsError(f"TimeSformer reference config has {key}={config[key]!r}; only {wanted!r} is offered")
    ours = {_FROM_TRANSFORMERS[key]: value for key, value in config.items() if key in _FROM_TRANSFORMERS}
    dim = ours.get("embed_dim", 768)
    hidden = config.get("intermediate_size", 3072)
    ours["mlp_ratio"] = hidden / dim
    if int(dim * ours["mlp_ratio"]) < hidden:  # what the quotient was rounded down by
        ours["mlp_ratio"] = math.nextafter(hidden / dim, math.inf)
    kind = config.get("attention_type", "divided_space_time")
    if kind not in _ATTENTIONS:
        raise WeightsError(f"TimeSformer reference config has attention_type={kind!r}; offered: {sorted(_ATTENTIONS)}")
    ours["attention"] = _ATTENTIONS[kind]
    ours["num_classes"] = len(config.get("id2label", {}))
    return ours


_RENAMED = {  # in this order: names of transformers, of the released TimeSformer, of Frozen and EgoVLP
    "timesformer.": "",
    "embeddings.patch_embeddings.projection.": "patch_proj.",
    "embeddings.position_embeddings": "positions",
    "embeddings.time_embeddings": "times",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "temporal_attention.": "time_attn.",
    "temporal_layernorm.": "time_norm.",
    "temporal_dense.": "time_dense.",
    "attention.attention.": "attn.",
    "attention.output.dense.": "attn.proj.",
    "attn.attention.": "attn.",
    "attn.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "layernorm.": "norm.",
    "patch_embed.proj.": "patch_proj.",
    "pos_embed": "positions",
    "time_embed": "times",
    "temporal_embed": "times",
    "temporal_attn.": "time_attn.",
    "temporal_norm1.": "time_norm.",
    "temporal_fc.": "time_dense.",
    "timeattn.": "time_attn.",
    "norm3.": "time_norm.",
    "head.": "classifier.",
}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of transformers' Timesformer, the released TimeSformer or Frozen's video encoder.

    Loading it strictly reports whatever does not fit.
    """
    converted = {}
    for name, value in state.items():
        ours = name.removeprefix("module.").removeprefix("model.")
        for old, new in _RENAMED.items():
            ours = ours.replace(old, new)
        if ours == "patch_proj.weight":
            value = value.flatten(1)  # (D, 3, P, P) -> (D, 3*P*P)
        elif ours in ("positions", "times"):
            value = value[0]  # (1, M, D) -> (M, D)
        converted[ours] = value
    return converted
