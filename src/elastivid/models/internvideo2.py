"""InternVideo2: a video transformer taught on its visible tokens by two teachers, and its distilled small versions.

Paper: "InternVideo2: Scaling Foundation Models for Multimodal Video Understanding", arXiv 2403.15377.

    tokens    = cubes(video) + positions, class token first;  blocks;  attention pool;  LayerNorm, classifier
    stage 1   the last blocks at the visible tokens, plus a second position table, through a projection each, against
              an image-text teacher (with the class token and the pooled feature) and a masked-autoencoder teacher
              loss: mean of 2 - 2 cos for each of the three, added

FluxViT (arXiv 2503.14237) has the same blocks and pool; what differs are its patch embedding, its positions and its
selection. Here selection and narrower blocks are arguments as well, at any grid.

Positions are trained: one table over the grid, or one of places and one of times ("separate"), each resized to the
grid at hand. The class token has a row of its own.

Where we depart: the paper's text describes masked reconstruction; the released code, and this, aligns visible tokens.
Training embeds visible cubes only.

Cost per clip: N D 3kPP for N cubes, (4 + 2r) (K+1) d^2 + 2 (K+1)^2 d for a block of width d on K of them, and the pool.

Letters: B batch, T frames, k frames and P pixels of a cube, t h w grid, N tokens, V visible, K blocks that are taught,
D channels, d active ones, O channels of a teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import require_known_keys
from elastivid.core.output import Output
from elastivid.core.tokens import Tokens
from elastivid.layers.block import Block, initialise_block, initialise_linears
from elastivid.layers.elastic import linear
from elastivid.layers.pool import AttentionPool, pool_heads_at, pool_macs
from elastivid.layers.position import resize_table, sincos, sincos_3d
from elastivid.layers.teach import Projection, taught
from elastivid.models.token_encoder import TokenEncoder, TokenSizes, Widths


@dataclass(frozen=True)
class InternVideo2Config(TokenSizes):
    """Sizes of an encoder.

    Args:
        embed_dim, depth, num_heads: width D, number of blocks, attention heads per block.
        patch_size, tubelet_size: pixels P and frames k of a cube.
        num_frames, image_size: the native grid of the position table.
        mlp_ratio: hidden channels of an MLP over D.
        pool_heads, pool_dim: heads of the attention pool and channels of the embedding.
        pool_norm: a LayerNorm behind the pool; stage 1 has none.
        separate_positions: tables of places and of times instead of one of both.
        qk_norm, qkv_bias: normalise queries and keys; give queries, keys and values a bias.
        layer_scale, drop_path: initial residual scale; drop probability of the last block (linear in depth).
        num_classes: classes of the classifier; 0 for none.
        widths: channels of each block for a model that holds only the first ones (`at` makes it); empty for all.

    Raises:
        ValueError, PointError: sizes contradict each other.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 14
    tubelet_size: int = 1
    num_frames: int = 8
    image_size: int | tuple[int, int] = 224
    mlp_ratio: float = 4.0
    pool_heads: int = 16
    pool_dim: int = 768
    pool_norm: bool = True
    separate_positions: bool = False
    qk_norm: bool = True
    qkv_bias: bool = False
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    num_classes: int = 0
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.check_sizes()
        if self.embed_dim % self.pool_heads:
            raise ValueError(f"pool_heads must divide embed_dim {self.embed_dim}, got {self.pool_heads}")

    @property
    def pool_head_dim(self) -> int:
        """Channels of one head of the pool."""
        return self.embed_dim // self.pool_heads

    def build(self) -> InternVideo2:
        """An untrained model of these sizes."""
        return InternVideo2(self)

    def cost(self, *, frames: int, size: int, tokens: int | None = None, width: Widths = None) -> Cost:
        """Closed-form cost of one clip in float32: `frames` squares of `size` pixels, `tokens` of them kept.

        Raises:
            PointError: `width` cannot be.
        """
        t, h, w = self.grid_of(frames, size)
        macs = self.token_macs(frames, size, tokens, width, 1)
        kept = (t * h * w if tokens is None else tokens) + 1
        macs += pool_macs(kept, self.widths_at(width)[-1], self.pool_head_dim, self.pool_dim)
        macs += linear_macs(1, self.pool_dim, self.num_classes)
        if not self.separate_positions:  # resizing two short tables is nothing
            macs += self.table_macs(frames, size, width)
        return self.cost_of(macs, frames, size, tokens, width)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> InternVideo2Config:
        """Our config for the arguments of the released encoder.

        Raises:
            WeightsError: a key that we do not know.
        """
        require_known_keys("InternVideo2 reference config", config, _ENCODER)
        return cls(**{_ENCODER[key]: value for key, value in config.items()})


class Positions(nn.Module):
    """A trained table of a grid's places, with a row for the class token where there is one.

    Args:
        grid: (t, h, w) it is made for.
        dim: channels D.
        separate: a table of places and a table of times, added, instead of one of both.
        class_row: whether there is a row for a class token.
        width: how many of the channels are held; `None` for all.
    """

    def __init__(
        self, grid: tuple[int, int, int], dim: int, *, separate: bool, class_row: bool = True, width: int | None = None
    ) -> None:
        super().__init__()
        self.grid = grid
        t, h, w = grid
        self.table: nn.Parameter | None = None
        if separate:
            y, x = sincos(torch.arange(h), dim // 2), sincos(torch.arange(w), dim // 2)
            places = torch.cat([x.repeat(h, 1), y.repeat_interleave(w, dim=0)], dim=1)  # (h*w, D)
            self.places = nn.Parameter(places[:, :width].clone())
            self.times = nn.Parameter(sincos(torch.arange(t), dim)[:, :width].clone())
        else:
            self.table = nn.Parameter(sincos_3d(grid, dim)[:, :width].clone())
        self.cls = nn.Parameter(torch.zeros(dim)[:width].clone()) if class_row else None

    def at(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Positions (N, width) of a grid, resized in float32."""
        if self.table is not None:
            return resize_table(self.table[:, :width].float(), self.grid, grid).to(self.table.dtype)
        (t, h, w), (t2, h2, w2) = self.grid, grid
        places = resize_table(self.places[:, :width].float(), (1, h, w), (1, h2, w2))  # (h2*w2, d)
        times = resize_table(self.times[:, :width].float(), (t, 1, 1), (t2, 1, 1))  # (t2, d)
        return (times[:, None] + places).flatten(0, 1).to(self.places.dtype)  # (t2, h2*w2, d) -> (N, d)


class InternVideo2(TokenEncoder):
    """The encoder; see the module's text. Build it from an `InternVideo2Config` or `PRESETS`."""

    def __init__(self, config: InternVideo2Config) -> None:
        super().__init__()
        self.config = config
        widths = config.full_widths
        self.cube_proj = nn.Linear(config.cube_values, widths[0])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, widths[0]))
        separate = config.separate_positions
        self.positions = Positions(config.table_grid, config.embed_dim, separate=separate, width=widths[0])
        self.blocks = nn.ModuleList(
            Block(
                width,
                width // config.head_dim,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                drop_path=config.drop_path * layer / max(1, config.depth - 1),
                qk_norm=config.qk_norm,
                qkv_bias=config.qkv_bias,
            )
            for layer, width in enumerate(widths)
        )
        heads = pool_heads_at(widths[-1], config.pool_head_dim)
        self.pool = AttentionPool(widths[-1], heads, config.pool_dim, head_dim=config.pool_head_dim)
        self.pool_norm = nn.LayerNorm(config.pool_dim) if config.pool_norm else None
        self.classifier = nn.Linear(config.pool_dim, config.num_classes) if config.num_classes else None
        self._initialise()

    def _initialise(self) -> None:
        initialise_linears(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for index, block in enumerate(self.blocks, start=1):
            initialise_block(block, index)  # type: ignore[arg-type]

    def embedded(self, values: Tensor, width: int) -> Tensor:
        """Flattened cubes (B, M, 3kPP) to tokens (B, M, width)."""
        return linear(values, self.cube_proj, width)

    def table(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Positions (N, width) of a grid."""
        return self.positions.at(grid, width)

    def prefix(self, width: int) -> Tensor | None:
        """The class token with its position, (1, 1, width)."""
        assert self.positions.cls is not None
        return (self.cls_token + self.positions.cls)[..., :width]

    def read(self, tokens: Tokens) -> Output:
        """Pooled tokens, class token included, and class scores; tap "pooled" (B, pool_dim) is before the norm."""
        pooled = self.pool(tokens.x, tokens.key_sizes)
        embedding = pooled if self.pool_norm is None else self.pool_norm(pooled)
        logits = None if self.classifier is None else self.classifier(embedding)
        return Output(embedding=embedding, logits=logits, tokens=tokens, taps={"pooled": pooled})


@dataclass(frozen=True)
class Stage1Config:
    """A student of stage 1 and what it is taught.

    Args:
        encoder: sizes of the student; without `pool_norm`.
        clip_dim: channels of the image-text teacher's tokens.
        clip_final_dim: channels of its pooled feature; 0 compares the pool's result itself.
        clip_blocks, clip_interval: which of the last blocks it teaches, see `taught`.
        mae_dim: channels of the masked-autoencoder teacher.
        mae_blocks, mae_interval: which of the last blocks that one teaches.
    """

    encoder: InternVideo2Config
    clip_dim: int = 3200
    clip_final_dim: int = 768
    clip_blocks: int = 6
    clip_interval: int = 1
    mae_dim: int = 1408
    mae_blocks: int = 4
    mae_interval: int = 1

    def build(self) -> Stage1:
        """An untrained student."""
        return Stage1(self)

    def cost(self, *, visible: int) -> Cost:
        """Closed-form cost of the student's forward pass on one clip, teachers not counted."""
        encoder, d = self.encoder, self.encoder.embed_dim
        macs = linear_macs(visible, encoder.cube_values, d)
        macs += encoder.depth * block_macs(visible + 1, d, encoder.mlp_ratio)
        macs += pool_macs(visible + 1, d, encoder.pool_head_dim, encoder.pool_dim)
        macs += self.clip_blocks * linear_macs(visible + 1, d, self.clip_dim)
        macs += self.mae_blocks * (linear_macs(visible, d, d) + linear_macs(visible, d, self.mae_dim))
        return Cost(macs=macs + linear_macs(1, encoder.pool_dim, self.clip_final_dim))

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> Stage1Config:
        """Our config for the arguments of the released student.

        Raises:
            WeightsError: a key that we do not know.
        """
        own = {key: value for key, value in config.items() if key not in _TEACHING}
        encoder = replace(InternVideo2Config.from_reference(own), pool_norm=False)
        return cls(encoder, **{_TEACHING[key]: value for key, value in config.items() if key in _TEACHING})


@dataclass(frozen=True)
class Aligned:
    """What a student says of a batch; unit vectors, but for `final` without a projection of its own.

    Args:
        clip: (K, B, 1+V, O) for the image-text teacher, class token first, the earliest taught block first.
        final: (B, O) for its pooled feature.
        mae: (K', B, V, O') for the masked-autoencoder teacher.
    """

    clip: Tensor
    final: Tensor
    mae: Tensor


class Stage1(nn.Module):
    """The student of stage 1 with its projections; see the module's text."""

    def __init__(self, config: Stage1Config) -> None:
        super().__init__()
        self.config = config
        sizes = config.encoder
        self.encoder = sizes.build()
        grid, d, separate = sizes.table_grid, sizes.embed_dim, sizes.separate_positions
        self.clip_positions = Positions(grid, d, separate=separate)
        self.mae_positions = Positions(grid, d, separate=separate, class_row=False)
        self.clip_projections = nn.ModuleList(
            Projection(d, config.clip_dim, eps=1e-5) for _ in range(config.clip_blocks)
        )
        self.mae_projections = nn.ModuleList(
            Projection(d, config.mae_dim, eps=1e-5, deep=True) for _ in range(config.mae_blocks)
        )
        final = config.clip_final_dim
        self.final_projection = Projection(sizes.pool_dim, final, eps=1e-5) if final else None

    def forward(self, video: Tensor, visible: Tensor) -> Aligned:
        """Features of the visible places for both teachers.

        Args:
            video: (B, T, 3, H, W).
            visible: (B, V) grid cells that the student sees, ascending.
        """
        encoder, config = self.encoder, self.config
        placed = encoder.placed(encoder.embed_at(video, visible))
        clip_blocks = taught(len(encoder.blocks), config.clip_blocks, config.clip_interval)
        mae_blocks = taught(len(encoder.blocks), config.mae_blocks, config.mae_interval)
        tokens, streams = encoder.transform_tokens(placed, taps={*clip_blocks, *mae_blocks})
        d = config.encoder.embed_dim
        assert self.clip_positions.cls is not None
        table = self.clip_positions.at(placed.grid, d)[visible]  # (B, V, D)
        front = self.clip_positions.cls.expand(len(table), 1, -1)  # (B, 1, D)
        table = torch.cat([front, table], dim=1)  # (B, 1+V, D)
        clip = [p(streams[b] + table) for b, p in zip(clip_blocks, self.clip_projections, strict=True)]
        table = self.mae_positions.at(placed.grid, d)[visible]  # (B, V, D)
        mae = [p(streams[b][:, 1:] + table) for b, p in zip(mae_blocks, self.mae_projections, strict=True)]
        pooled = encoder.read(tokens).embedding
        final = pooled if self.final_projection is None else self.final_projection(pooled)
        return Aligned(torch.stack(clip), final, torch.stack(mae))


_TINY = InternVideo2Config(
    embed_dim=48, depth=3, num_heads=4, num_frames=4, image_size=70, pool_heads=4, pool_dim=32, num_classes=5
)
PRESETS = {
    "tiny": _TINY,
    "small": InternVideo2Config(),
    "base": InternVideo2Config(embed_dim=768, num_heads=12),
    "large": InternVideo2Config(embed_dim=1024, depth=24, num_heads=16),
    "1b": InternVideo2Config(embed_dim=1408, depth=40, num_heads=16, mlp_ratio=48 / 11),
    "6b": InternVideo2Config(embed_dim=3200, depth=48, num_heads=25),
}
STAGE1 = {
    "tiny": Stage1Config(replace(_TINY, num_classes=0, pool_norm=False), 24, 16, 2, 1, 20, 1),
    "1b": Stage1Config(replace(PRESETS["1b"], pool_norm=False, drop_path=0.25)),
    "6b": Stage1Config(replace(PRESETS["6b"], pool_norm=False, drop_path=0.3)),
}


_ENCODER = {
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "num_frames": "num_frames",
    "img_size": "image_size",
    "mlp_ratio": "mlp_ratio",
    "attn_pool_num_heads": "pool_heads",
    "clip_embed_dim": "pool_dim",
    "sep_pos_embed": "separate_positions",
    "qk_normalization": "qk_norm",
    "qkv_bias": "qkv_bias",
    "init_values": "layer_scale",
    "drop_path_rate": "drop_path",
    "num_classes": "num_classes",
}
_TEACHING = {
    "clip_teacher_embed_dim": "clip_dim",
    "clip_teacher_final_dim": "clip_final_dim",
    "clip_return_layer": "clip_blocks",
    "clip_student_return_interval": "clip_interval",
    "mae_teacher_embed_dim": "mae_dim",
    "mae_return_layer": "mae_blocks",
    "mae_student_return_interval": "mae_interval",
}
_RENAMED = {
    "patch_embed.proj.": "cube_proj.",
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    "clip_projector.": "pool.",
    "cross_attn.q.": "q.",
    "cross_attn.k.": "k.",
    "cross_attn.v.": "v.",
    "cross_attn.q_bias": "q.bias",
    "cross_attn.k_bias": "k.bias",
    "cross_attn.v_bias": "v.bias",
    "cross_attn.proj.": "proj.",
    "norm1_": "norm_",
    "fc_norm.": "pool_norm.",
    "final_clip_decoder.": "final_projection.",
    "clip_decoder.": "clip_projections.",
    "mae_decoder.": "mae_projections.",
}
_PARTS = {"_spatial": "places", "_temporal": "times", "_cls": "cls"}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, value in state.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        kind, found, part = name.partition("pos_embed")
        if found:
            stem = f"{kind}positions."
            if part:  # (1, n, D) -> (n, D), or (1, 1, D) -> (D,)
                ours[stem + _PARTS[part]] = value[0, 0] if part == "_cls" else value[0]
            elif kind == "mae_":
                ours[stem + "table"] = value[0]  # (1, N, D) -> (N, D)
            else:
                ours[stem + "table"], ours[stem + "cls"] = value[0, 1:], value[0, 0]  # (1, 1+N, D)
            continue
        if name == "cube_proj.weight":
            value = value.flatten(1)  # (D, 3, k, P, P) -> (D, 3*k*P*P)
        ours[name] = value
    return ours


_TRAINING = ("clip_projections.", "mae_projections.", "final_projection.", "clip_positions.", "mae_positions.")


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `InternVideo2` for the released encoder or classifier, or for the student of stage 1.

    What only training needs is left out. Loading it strictly reports whatever does not fit.
    """
    ours = {name: value for name, value in _renamed(state).items() if not name.startswith(_TRAINING)}
    return {name.replace("head.", "classifier."): value for name, value in ours.items()}


def convert_stage1(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `Stage1` for the released student."""
    return {n if n.startswith(_TRAINING) else "encoder." + n: v for n, v in _renamed(state).items()}
