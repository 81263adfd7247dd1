"""UniFormer: convolutions where neighbours suffice, attention where the whole clip matters.

Paper: "UniFormer: Unifying Convolution and Self-attention for Visual Recognition", arXiv 2201.04676 (video models).

    every block    x += depth-wise 3x3x3 convolution (its position code);  x += mix(norm(x));  x += mlp(norm(x))
    stages 1, 2    mix = 1x1x1, depth-wise 5x5x5, 1x1x1 convolutions; BatchNorm
    stages 3, 4    mix = attention over all tokens of the clip, or first over time at every place, then over space in
                   every frame ("split"); LayerNorm
    between        strided convolution, LayerNorm

In split blocks the residual of the attention over space is the input of the block, as in the released code.

Tokens live on a grid that convolutions need whole, so nothing can be dropped, and no layer runs narrower: no axes. Any
number of frames and any size whose strides leave something are read.

Cost: convolutions 125 N C + 2 N C^2 a local block, MLPs 2 r N C^2, attention 4 N C^2 + 2 N^2 C.

Letters: B batch, T frames, H W pixels or grid, N = T H W tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost, attention_macs, block_macs, conv_macs, linear_macs
from elastivid.core.errors import PointError, require_known_keys
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.attention import Attention
from elastivid.layers.block import Mlp, initialise_linears
from elastivid.layers.embed import patch_coordinates
from elastivid.models.base import VideoEncoder
from elastivid.models.token_encoder import count_parameters

EPS = 1e-6  # of the norms in attention blocks
SHRINK = 32  # pixels of the frame per step of the last grid


@dataclass(frozen=True)
class UniFormerConfig:
    """Sizes of a UniFormer.

    Args:
        depths, embed_dims: blocks and channels of each of the four stages.
        head_dim: channels of an attention head.
        mlp_ratio: hidden channels of an MLP over C.
        qkv_bias: biases of queries, keys and values.
        split: attention over time and space one after the other.
        temporal_patches: the convolutions between stages also span three frames.
        num_frames, image_size: what it was trained at.
        num_classes: classes of the classifier; 0 for none.

    Raises:
        ValueError: not four stages, or heads do not divide the channels of an attention stage.
    """

    depths: tuple[int, ...] = (3, 4, 8, 3)
    embed_dims: tuple[int, ...] = (64, 128, 320, 512)
    head_dim: int = 64
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    split: bool = False
    temporal_patches: bool = False
    num_frames: int = 16
    image_size: int = 224
    num_classes: int = 0

    def __post_init__(self) -> None:
        for name in ("depths", "embed_dims"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists
        if len(self.depths) != 4 or len(self.embed_dims) != 4:
            raise ValueError(f"UniFormer has four stages, got {len(self.depths)} depths, {len(self.embed_dims)} widths")
        if any(dim % self.head_dim for dim in self.embed_dims[2:]):
            raise ValueError(f"head_dim {self.head_dim} must divide the last two of embed_dims, got {self.embed_dims}")

    @property
    def patch_size(self) -> int:
        """Pixels of the frame per step of the last grid."""
        return SHRINK

    @property
    def embed_dim(self) -> int:
        """Channels of the last stage."""
        return self.embed_dims[-1]

    def build(self) -> UniFormer:
        """An untrained model of these sizes."""
        return UniFormer(self)

    def cost(self, *, frames: int, size: int, tokens: int | None = None) -> Cost:
        """Closed-form cost of one clip in float32.

        Raises:
            PointError: `tokens` is given, which is no axis of this model.
        """
        OperatingPoint(tokens=tokens).require_axes(UniFormer.supported_axes, "UniFormer")
        macs, peak, before = 0, 0, 3
        t, side = (frames - 1) // 2 + 1, size
        for stage, (depth, dim) in enumerate(zip(self.depths, self.embed_dims, strict=True)):
            side //= 4 if stage == 0 else 2
            grid, count = (t, side, side), t * side * side
            kernel = (3, 4, 4) if stage == 0 else ((3 if self.temporal_patches else 1), 2, 2)
            macs += conv_macs(grid, kernel, before, dim)
            block = conv_macs(grid, (3, 3, 3), dim, dim, groups=dim)
            if stage < 2:
                hidden = int(dim * self.mlp_ratio)
                block += conv_macs(grid, (5, 5, 5), dim, dim, groups=dim) + linear_macs(count, dim, 2 * dim)
                block += 2 * linear_macs(count, dim, hidden)
            elif self.split:
                block += linear_macs(count, dim, 4 * dim) + side**2 * attention_macs(t, t, dim)
                block += t * block_macs(side**2, dim, self.mlp_ratio)
            else:
                block += block_macs(count, dim, self.mlp_ratio)
            macs += depth * block
            peak = max(peak, int(count * dim * (3 + 2 * self.mlp_ratio)))
            before = dim
        macs += linear_macs(1, self.embed_dim, self.num_classes)
        return Cost(macs=macs, parameter_bytes=4 * count_parameters(self), activation_bytes=4 * peak)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> UniFormerConfig:
        """Our config for the arguments of the released code.

        Raises:
            WeightsError: a key that we do not know.
        """
        require_known_keys("UniFormer reference config", config, _REFERENCE)
        return cls(**{_REFERENCE[key]: value for key, value in config.items()})


class PatchDown(nn.Module):
    """A strided convolution, then LayerNorm over the channels."""

    def __init__(self, before: int, dim: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(before, dim, kernel, stride, padding=(kernel[0] // 2, 0, 0))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C', T, H, W) to (B, C, T', H', W')."""
        y: Tensor = self.norm(self.proj(x).movedim(1, -1))  # (B, T', H', W', C)
        return y.movedim(-1, 1)  # (B, C, T', H', W')


class LocalBlock(nn.Module):
    """Convolutions only: position code, neighbourhood mixing, MLP."""

    def __init__(self, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm3d(dim)
        self.conv1 = nn.Conv3d(dim, dim, 1)
        self.attn = nn.Conv3d(dim, dim, 5, padding=2, groups=dim)
        self.conv2 = nn.Conv3d(dim, dim, 1)
        self.norm2 = nn.BatchNorm3d(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Conv3d(dim, hidden, 1), "fc2": nn.Conv3d(hidden, dim, 1)})

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to the same shape."""
        x = x + self.pos_embed(x)
        x = x + self.conv2(self.attn(self.conv1(self.norm1(x))))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class GlobalBlock(nn.Module):
    """Position code by convolution, then attention and MLP.

    Args:
        dim: channels C.
        config: the rest.
    """

    def __init__(self, dim: int, config: UniFormerConfig) -> None:
        super().__init__()
        heads, bias = dim // config.head_dim, config.qkv_bias
        self.pos_embed = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.t_norm = nn.LayerNorm(dim, eps=EPS) if config.split else None
        self.t_attn = Attention(dim, heads, qk_norm=False, qkv_bias=bias) if config.split else None
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, qk_norm=False, qkv_bias=bias)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to the same shape."""
        shape = x.shape
        x = (x + self.pos_embed(x)).flatten(2).transpose(1, 2)  # (B, N, C)
        x = x + (self.attn(self.norm1(x)) if self.t_attn is None else self._split(x, shape[0], shape[2]))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).reshape(shape)

    def _split(self, x: Tensor, batch: int, frames: int) -> Tensor:
        """What attention over time, then over space, adds to tokens (B, N, C)."""
        assert self.t_attn is not None
        assert self.t_norm is not None
        sites = x.unflatten(1, (frames, -1)).transpose(1, 2).flatten(0, 1)  # (B, T, n, C) -> (B*n, T, C)
        sites = sites + self.t_attn(self.t_norm(sites))
        framed = sites.unflatten(0, (batch, -1)).transpose(1, 2).flatten(0, 1)  # (B, n, T, C) -> (B*T, n, C)
        return self.attn(self.norm1(framed)).unflatten(0, (batch, -1)).flatten(1, 2)  # (B*T, n, C) -> (B, N, C)


class UniFormer(VideoEncoder):
    """The encoder; see the module's text. Build it from a `UniFormerConfig` or `PRESETS`."""

    supported_axes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: UniFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        before = 3
        for stage, (depth, dim) in enumerate(zip(config.depths, config.embed_dims, strict=True)):
            kernel = (3, 4, 4) if stage == 0 else ((3 if config.temporal_patches else 1), 2, 2)
            self.patch_embeds.append(PatchDown(before, dim, kernel, (2, 4, 4) if stage == 0 else (1, 2, 2)))
            self.stages.append(
                nn.ModuleList(
                    LocalBlock(dim, config.mlp_ratio) if stage < 2 else GlobalBlock(dim, config) for _ in range(depth)
                )
            )
            before = dim
        self.norm = nn.BatchNorm3d(before)
        self.classifier = nn.Linear(before, config.num_classes) if config.num_classes else None
        initialise_linears(self)
        for block in self.modules():
            if isinstance(block, GlobalBlock) and block.t_attn is not None:  # time adds nothing at first
                nn.init.zeros_(block.t_attn.proj.weight)

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode clips.

        Args:
            video: (B, T, 3, H, W) float, any T, sides multiples of 32.
            point: must leave everything as it is; UniFormer has no axes.
            state: UniFormer does not stream; must be `None`.

        Returns:
            `embedding` (B, C), the mean over the last grid after the last norm; `logits` where there is a classifier;
            the tokens of the last stage, before that norm.

        Raises:
            PointError: the point names an axis, or a state was given.
            ValueError: `video` has the wrong shape.
        """
        (point or OperatingPoint()).require_axes(self.supported_axes, "UniFormer")
        if state is not None:
            raise PointError("UniFormer has no streaming state; pass state=None")
        x = self.stage_outputs(video)[-1]  # (B, C, T', H', W')
        embedding = self.norm(x).mean(dim=(2, 3, 4))
        logits = None if self.classifier is None else self.classifier(embedding)
        grid = (x.shape[2], x.shape[3], x.shape[4])
        coords = patch_coordinates(grid).to(x.device).expand(len(x), -1, -1)  # (B, N, 3)
        return Output(
            embedding=embedding,
            logits=logits,
            tokens=Tokens(x=x.flatten(2).transpose(1, 2), coords=coords, grid=grid),  # (B, N, C)
        )

    def stage_outputs(self, video: Tensor) -> list[Tensor]:
        """What each of the four stages leaves, (B, C, T', H', W')."""
        if video.ndim != 5 or video.shape[3] % SHRINK or video.shape[4] % SHRINK:
            raise ValueError(
                f"video must have shape (B, T, 3, H, W) with sides that are multiples of {SHRINK}, "
                f"got {tuple(video.shape)}; resize it"
            )
        x, left = video.transpose(1, 2).to(self.norm.weight.dtype), []  # (B, 3, T, H, W)
        for patch_embed, blocks in zip(self.patch_embeds, self.stages, strict=True):
            x = patch_embed(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            left.append(x)
        return left


PRESETS = {
    "tiny": UniFormerConfig((1, 1, 1, 1), (16, 24, 32, 48), 8, 2.0, num_frames=8, image_size=96, num_classes=5),
    "small": UniFormerConfig(),  # arXiv 2201.04676, table 2
    "base": UniFormerConfig((5, 8, 20, 7)),
}


_REFERENCE = {
    "depth": "depths",
    "embed_dim": "embed_dims",
    "head_dim": "head_dim",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "split": "split",
    "std": "temporal_patches",
    "num_classes": "num_classes",
}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of the released code. Loading it strictly reports whatever does not fit."""
    ours = {}
    for name, value in state.items():
        for stage in range(4):
            name = name.replace(f"patch_embed{stage + 1}.", f"patch_embeds.{stage}.")
            name = name.replace(f"blocks{stage + 1}.", f"stages.{stage}.")
        ours[name.replace("head.", "classifier.")] = value
    return ours
