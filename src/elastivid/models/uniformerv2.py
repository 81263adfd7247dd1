"""UniFormerV2: an image transformer made a video encoder by small temporal convolutions and one travelling query.

Paper: "UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer", arXiv 2211.09552.

    local block    x += temporal(x);  x += attend(norm(x)) within each frame;  x += temporal'(x);  x += mlp(norm(x))
                   temporal: BatchNorm, to fewer channels, depth-wise over three frames, back; class tokens pass it by
    global block   after chosen layers, on a copy: y = x + depth-wise 3x3x3 convolution;
                   q += attend(norm(q), norm(y)) over all tokens of all frames;  q += mlp(norm(q))
    result         s * mean over frames of the class tokens + (1 - s) * q, s learned per channel; LayerNorm, classifier

The image transformer is CLIP's and its weights load unchanged. The query starts at zero and so do the last layers of
everything that is new, so training starts from the image model.

Where we depart: biases of keys, which cancel in the softmax, are not kept; any frame size works, with the table of
places resized. Convolutions need the whole grid: no axes.

Cost for T' frames of n patches: 12 D^2 T' (n + 1) + 2 T' (n + 1)^2 D a layer, the temporal halves 2 T' n D^2 / 1.5
each, the global blocks 2 T' (n + 1) D^2.

Letters: B batch, T frames, T' after the patch embedding, H W pixels, h w grid, n = h w, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, attention_macs, block_macs, conv_macs, linear_macs
from elastivid.core.errors import PointError, WeightsError, require_known_keys
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.attention import attend
from elastivid.layers.block import Mlp, initialise_linears
from elastivid.layers.elastic import merge_heads, split_heads
from elastivid.layers.embed import patch_coordinates
from elastivid.layers.position import resize_table
from elastivid.layers.vit import ViTAttention, quick_gelu
from elastivid.models.base import VideoEncoder
from elastivid.models.token_encoder import count_parameters


@dataclass(frozen=True)
class UniFormerV2Config:
    """Sizes of a UniFormerV2.

    Args:
        embed_dim, depth, num_heads: width D, layers and heads of the image transformer.
        patch_size, num_frames, image_size: pixels of a patch; frames and side it was trained at.
        temporal_kernel, temporal_stride: frames that a patch spans, and from one to the next.
        local_blocks: temporal halves in every layer: 0, 1 (before attention) or 2 (before the MLP as well).
        local_reduction: D over the channels inside them.
        global_layers: layers that a global block follows.
        global_mlp_ratio: hidden channels of the global blocks over D.
        balance: mix the class tokens in; without it the query alone counts ("frozen" in the released code).
        num_classes: classes of the classifier; 0 for none.

    Raises:
        ValueError: sizes contradict each other.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    num_frames: int = 8
    image_size: int = 224
    temporal_kernel: int = 1
    temporal_stride: int = 1
    local_blocks: int = 0
    local_reduction: float = 1.5
    global_layers: tuple[int, ...] = (8, 9, 10, 11)
    global_mlp_ratio: float = 4.0
    balance: bool = True
    num_classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_layers", tuple(self.global_layers))  # JSON has lists
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be divisible by num_heads, got {self.embed_dim} and {self.num_heads}")
        if self.image_size % self.patch_size or self.local_blocks not in (0, 1, 2):
            raise ValueError(
                f"image_size must be a multiple of patch_size and local_blocks 0, 1 or 2, got {self.image_size}, "
                f"{self.patch_size} and {self.local_blocks}"
            )
        if not self.global_layers or not 0 <= min(self.global_layers) <= max(self.global_layers) < self.depth:
            raise ValueError(f"global_layers must be layers 0 to {self.depth - 1}, got {self.global_layers}")

    @property
    def inner_dim(self) -> int:
        """Channels inside a temporal half."""
        return int(self.embed_dim / self.local_reduction)

    def build(self) -> UniFormerV2:
        """An untrained model of these sizes."""
        return UniFormerV2(self)

    def steps(self, frames: int) -> int:
        """Steps of time T' that the patch embedding leaves of `frames`."""
        return (frames + 2 * (self.temporal_kernel // 2) - self.temporal_kernel) // self.temporal_stride + 1

    def cost(self, *, frames: int, size: int, tokens: int | None = None) -> Cost:
        """Closed-form cost of one clip in float32.

        Raises:
            PointError: `tokens` is given, which is no axis of this model.
        """
        OperatingPoint(tokens=tokens).require_axes(UniFormerV2.supported_axes, "UniFormerV2")
        t, side, d = self.steps(frames), size // self.patch_size, self.embed_dim
        n = side * side
        grid, count = (t, side, side), t * (n + 1)
        macs = conv_macs(grid, (self.temporal_kernel, self.patch_size, self.patch_size), 3, d)
        local = 2 * linear_macs(t * n, d, self.inner_dim) + 3 * t * n * self.inner_dim
        macs += self.depth * (t * block_macs(1 + n, d) + self.local_blocks * local)
        hidden = round(self.global_mlp_ratio * d)
        one = conv_macs(grid, (3, 3, 3), d, d, groups=d) + linear_macs(2 * count + 2, d, d)
        one += attention_macs(1, count, d) + 2 * linear_macs(1, d, hidden)
        macs += len(self.global_layers) * one + linear_macs(1, d, self.num_classes)
        peak = max(count * d * 11, t * n * 3 * self.temporal_kernel * self.patch_size**2 + count * d)
        return Cost(macs=macs, parameter_bytes=4 * count_parameters(self), activation_bytes=4 * peak)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> UniFormerV2Config:
        """Our config for the arguments of the released code.

        Raises:
            WeightsError: a key that we do not know, or values that do not fit together.
        """
        require_known_keys("UniFormerV2 reference config", config, _REFERENCE, _REST)
        if (config.get("n_dim", config["width"]), config.get("n_head", config["heads"])) != (
            config["width"],
            config["heads"],
        ):
            raise WeightsError("the global blocks of a UniFormerV2 must have the width and heads of the layers")
        strided = config.get("temporal_downsample", False)
        local = 0 if config.get("no_lmhra", False) else 1 + bool(config.get("double_lmhra", True))
        return cls(
            **{_REFERENCE[key]: value for key, value in config.items() if key in _REFERENCE},
            temporal_kernel=config.get("kernel_size", 3) if strided else 1,
            temporal_stride=2 if strided else 1,
            local_blocks=local,
            balance=not config.get("frozen", False),
        )


class TemporalHalf(nn.Module):
    """x + back(depth-wise over three frames(reduce(BatchNorm(x)))) for patches; class tokens stay as they are."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(dim)
        self.reduce = nn.Conv3d(dim, inner, 1)
        self.mix = nn.Conv3d(inner, inner, (3, 1, 1), padding=(1, 0, 0), groups=inner)
        self.back = nn.Conv3d(inner, dim, 1)
        nn.init.zeros_(self.back.weight)
        nn.init.zeros_(self.back.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """Map (B*T', 1+n, D) to the same shape."""
        volume = x[:, 1:].unflatten(0, (-1, steps)).permute(0, 3, 1, 2)[..., None]  # (B, D, T', n, 1)
        mixed = self.back(self.mix(self.reduce(self.norm(volume))))[..., 0]  # (B, D, T', n)
        mixed = mixed.permute(0, 2, 3, 1).flatten(0, 1)  # (B*T', n, D)
        return torch.cat([x[:, :1], x[:, 1:] + mixed], dim=1)


class LocalBlock(nn.Module):
    """A layer of the image transformer with up to two temporal halves."""

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__()
        dim, inner = config.embed_dim, config.inner_dim
        self.local1 = TemporalHalf(dim, inner) if config.local_blocks > 0 else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ViTAttention(dim, dim // config.num_heads)
        self.local2 = TemporalHalf(dim, inner) if config.local_blocks > 1 else None
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4.0, quick_gelu)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        """Map (B*T', 1+n, D) to the same shape."""
        x = x if self.local1 is None else self.local1(x, steps)
        x = x + self.attn(self.norm1(x))
        x = x if self.local2 is None else self.local2(x, steps)
        return x + self.mlp(self.norm2(x))


class GlobalBlock(nn.Module):
    """One query that attends to a whole clip."""

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, round(config.global_mlp_ratio * config.embed_dim)
        self.head_dim = dim // config.num_heads
        self.places = nn.Conv3d(dim, dim, 3, padding=1, groups=dim)
        self.norm_q = nn.LayerNorm(dim)
        self.norm_kv = nn.LayerNorm(dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = Mlp(dim, hidden / dim, quick_gelu)

    def forward(self, query: Tensor, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """The query (B, 1, D) after looking at tokens (B, T', 1+n, D) on `grid` (T', h, w)."""
        volume = x[:, :, 1:].movedim(3, 1).unflatten(3, grid[1:])  # (B, D, T', h, w)
        patches = (volume + self.places(volume)).flatten(3).movedim(1, 3)  # (B, T', n, D)
        tokens = torch.cat([x[:, :, :1], patches], dim=2).flatten(1, 2)  # (B, T'*(1+n), D)
        k, v = self.kv(self.norm_kv(tokens)).chunk(2, dim=-1)
        q, k, v = (split_heads(y, self.head_dim) for y in (self.q(self.norm_q(query)), k, v))  # (B, A, ., K)
        query = query + self.proj(merge_heads(attend(q, k, v)))
        return query + self.mlp(self.norm_mlp(query))


class UniFormerV2(VideoEncoder):
    """The encoder; see the module's text. Build it from a `UniFormerV2Config` or `PRESETS`."""

    supported_axes: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: UniFormerV2Config) -> None:
        super().__init__()
        self.config = config
        dim, p, k = config.embed_dim, config.patch_size, config.temporal_kernel
        self.patch_proj = nn.Conv3d(
            3, dim, (k, p, p), (config.temporal_stride, p, p), padding=(k // 2, 0, 0), bias=False
        )
        self.side = config.image_size // p
        self.cls_token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + self.side**2, dim) * dim**-0.5)  # the class token's first
        self.norm_before = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(LocalBlock(config) for _ in range(config.depth))
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.global_blocks = nn.ModuleList(GlobalBlock(config) for _ in config.global_layers)
        self.balance = nn.Parameter(torch.zeros(dim)) if config.balance else None
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, config.num_classes) if config.num_classes else None
        self._initialise()

    def _initialise(self) -> None:
        initialise_linears(self)
        for block in self.global_blocks:
            for layer in (block.proj, block.mlp.fc2):  # type: ignore[union-attr]
                nn.init.zeros_(layer.weight)  # type: ignore[union-attr, arg-type]

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode clips.

        Args:
            video: (B, T, 3, H, W) float, any T, sides multiples of the patch size.
            point: must leave everything as it is; UniFormerV2 has no axes.
            state: UniFormerV2 does not stream; must be `None`.

        Returns:
            `embedding` (B, D) after the last norm; `logits` where there is a classifier; the patch tokens of the last
            layer; taps "frames" (B, T', 1+n, D), the same with the class token of each frame, and "query<i>" (B, D)
            after each global block.

        Raises:
            PointError: the point names an axis, or a state was given.
            ValueError: `video` has the wrong shape.
        """
        (point or OperatingPoint()).require_axes(self.supported_axes, "UniFormerV2")
        if state is not None:
            raise PointError("UniFormerV2 has no streaming state; pass state=None")
        p = self.config.patch_size
        if video.ndim != 5 or video.shape[3] % p or video.shape[4] % p:
            raise ValueError(
                f"video must have shape (B, T, 3, H, W) with sides that are multiples of {p}, "
                f"got {tuple(video.shape)}; resize it"
            )
        x = self.patch_proj(video.transpose(1, 2).to(self.query.dtype))  # (B, D, T', h, w)
        batch, grid = len(x), (x.shape[2], x.shape[3], x.shape[4])
        x = x.movedim(1, 4).flatten(0, 1).flatten(1, 2)  # (B, T', h, w, D) -> (B*T', n, D)
        places = resize_table(self.positions[1:].float(), (1, self.side, self.side), (1, *grid[1:]))  # (n, D)
        front = (self.cls_token + self.positions[0]).expand(len(x), 1, -1)  # (B*T', 1, D)
        x = self.norm_before(torch.cat([front, x + places.to(x.dtype)], dim=1))  # (B*T', 1+n, D)
        query, taps = self.query.expand(batch, -1, -1), {}
        for layer, block in enumerate(self.blocks):
            x = block(x, grid[0])
            if layer in self.config.global_layers:
                index = self.config.global_layers.index(layer)
                query = self.global_blocks[index](query, x.unflatten(0, (batch, -1)), grid)
                taps[f"query{index}"] = query[:, 0]
        taps["frames"] = x.unflatten(0, (batch, -1))  # (B, T', 1+n, D)
        result = query[:, 0]  # (B, D)
        if self.balance is not None:
            result = torch.lerp(result, taps["frames"][:, :, 0].mean(dim=1), self.balance.sigmoid())
        embedding = self.norm(result)
        logits = None if self.classifier is None else self.classifier(embedding)
        coords = patch_coordinates(grid).to(x.device).expand(batch, -1, -1)  # (B, N, 3)
        patches = taps["frames"][:, :, 1:].flatten(1, 2)  # (B, T'*n, D)
        tokens = Tokens(x=patches, coords=coords, grid=grid)
        return Output(embedding=embedding, logits=logits, tokens=tokens, taps=taps)


PRESETS = {
    "tiny": UniFormerV2Config(
        embed_dim=48,
        depth=3,
        num_heads=4,
        patch_size=14,
        num_frames=4,
        image_size=70,
        local_blocks=2,
        global_layers=(1, 2),
        num_classes=5,
    ),
    "base": UniFormerV2Config(),  # CLIP ViT-B/16; Kinetics: no temporal halves
    "base-motion": UniFormerV2Config(num_frames=16, temporal_kernel=3, temporal_stride=2, local_blocks=2),
    "large": UniFormerV2Config(embed_dim=1024, depth=24, num_heads=16, patch_size=14, global_layers=(20, 21, 22, 23)),
}


_REFERENCE = {
    "width": "embed_dim",
    "layers": "depth",
    "heads": "num_heads",
    "patch_size": "patch_size",
    "input_resolution": "image_size",
    "t_size": "num_frames",
    "dw_reduction": "local_reduction",
    "return_list": "global_layers",
    "mlp_factor": "global_mlp_ratio",
    "num_classes": "num_classes",
}
_REST = {
    *("output_dim", "kernel_size", "temporal_downsample", "no_lmhra", "double_lmhra", "n_layers", "n_dim", "n_head"),
    *("mlp_dropout", "cls_dropout", "frozen", "backbone_drop_path_rate", "drop_path_rate"),
}
_RENAMED = {
    "conv1.": "patch_proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "positions",
    "ln_pre.": "norm_before.",
    "transformer.resblocks.": "blocks.",
    "transformer.temporal_cls_token": "query",
    "transformer.balance": "balance",
    "transformer.proj.0.": "norm.",
    "transformer.proj.2.": "classifier.",
    "transformer.dec.": "global_blocks.",
    "lmhra1.pos_embed.": "local1.",
    "lmhra2.pos_embed.": "local2.",
    "attn.out_proj.": "attn.proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_HALF = {"0": "norm", "1": "reduce", "2": "mix", "3": "back"}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of the released code. Loading it strictly reports whatever does not fit."""
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        if name.startswith("transformer.dpe."):
            index, _, part = name.removeprefix("transformer.dpe.").partition(".")
            name = f"global_blocks.{index}.places.{part}"
        elif ".local" in name:
            stem, number, part = name.rsplit(".", 2)
            name = f"{stem}.{_HALF[number]}.{part}"
        elif name.startswith("global_blocks."):
            name = name.replace("ln_1.", "norm_q.").replace("ln_3.", "norm_kv.").replace("ln_2.", "norm_mlp.")
            name = name.replace("attn.proj.", "proj.")
        else:
            name = name.replace("ln_1.", "norm1.").replace("ln_2.", "norm2.")
        stem, found, kind = name.partition("attn.in_proj_")
        if not found:
            ours[name] = value
            continue
        third = len(value) // 3
        if stem.startswith("global_blocks."):
            ours[f"{stem}q.{kind}"], ours[f"{stem}kv.{kind}"] = value[:third], value[third:]
        elif kind == "weight":
            ours[f"{stem}attn.qkv.weight"] = value
        else:  # of keys: cancels in the softmax
            ours[f"{stem}attn.q_bias"], ours[f"{stem}attn.v_bias"] = value[:third], value[2 * third :]
    return ours
