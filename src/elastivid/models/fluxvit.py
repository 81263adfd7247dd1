"""FluxViT: one video transformer for any number of frames, any frame size and any token budget.

Paper: "Make Your Training Flexible: Towards Deployment-Efficient Video Models", arXiv 2503.14237.

    tokens   = patches(video) + GLPE_global(T, h, w)          every token gets its place first,
    kept     = group-dynamic selection of K tokens            then the K that change most stay,
    features = blocks([CLS, kept]);  embedding = attention pool(features)

Width: every block, the embedding before them and the pool behind them run on as many of their first channels as the
point asks (AdaVid, arXiv 2504.12513; see `layers.elastic`); the patch embedding has the width of the first block, the
pool that of the last.

GLPE has a global half (a position table, scaled and shifted per channel, resized to the grid at hand) and a
local half inside every attention (see `layers.attention`).

Where we depart:
- from the paper, as the released code does: RMSNorm where the text says LayerNorm in the dual patch norm, and
  both GLPE convolutions have kernel 1x1x1, that is a scale and a shift per channel;
- from the released code: batch 1 works, exactly K tokens are kept for every K (it drops the remainder), frames
  need not be square or even in number, and retrieval models use one shared pool for all token counts where the
  released classifiers hold one pool and classifier per count (chosen here by `head=`);
- its alignment projections, used in training only, are not part of the model: the converter leaves them out.

Cost per clip: N*588*D for N patches, 12 (K+1) d^2 + 2 (K+1)^2 d for a block of width d, and the pool.

Letters: B batch, T frames, C colour channels, H W pixels, h w grid, N patch tokens, K kept, D channels, d active ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import PointError, require_known_keys
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.attention import BF16_BY_VECTORS, SCORES_AT_ONCE, ChannelAffine
from elastivid.layers.block import Block, initialise_block, initialise_linears
from elastivid.layers.elastic import ElasticSizes, fit_width
from elastivid.layers.embed import PatchEmbed, patch_coordinates
from elastivid.layers.pool import AttentionPool, pool_heads_at, pool_macs
from elastivid.layers.position import resize_macs, resize_table, sincos_3d
from elastivid.layers.vit import through_blocks
from elastivid.models.base import VideoEncoder
from elastivid.select.base import Reducer
from elastivid.select.motion import GroupDynamic

ROWS_AT_ONCE = 1024  # tokens that pass the blocks together on a CPU


@dataclass(frozen=True)
class FluxViTConfig(ElasticSizes):
    """Sizes of a FluxViT.

    Args:
        embed_dim, depth, num_heads: width D, number of blocks, attention heads per block.
        patch_size: side of a patch in pixels.
        num_frames, image_size: the grid of the position table; other clips use it resized.
        mlp_ratio: hidden channels of an MLP over D.
        pool_heads, pool_dim: heads of the attention pool and channels of the embedding.
        num_pools: pools (and classifiers), one per token count; 1 for retrieval.
        num_classes: classes of the classifier; 0 for none.
        learned_positions: train the position table, else keep the sine-cosine code it starts from.
        layer_scale, drop_path: initial residual scale; drop probability of the last block (linear in depth).
        widths: channels of each block for a model that holds only the first ones (`FluxViT.at` makes it); `None`
            for all. Heads keep their size.

    Raises:
        ValueError: heads do not divide `embed_dim`, patches do not divide `image_size`, or (PointError) `widths` does
            not fit the other sizes.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size: int = 14
    num_frames: int = 24
    image_size: int = 252
    mlp_ratio: float = 4.0
    pool_heads: int = 16
    pool_dim: int = 768
    num_pools: int = 1
    num_classes: int = 0
    learned_positions: bool = True
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.embed_dim % self.pool_heads:
            raise ValueError(f"pool_heads must divide embed_dim {self.embed_dim}, got {self.pool_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        self.check_widths()

    def build(self) -> FluxViT:
        """An untrained model of these sizes."""
        return FluxViT(self)

    @property
    def pool_head_dim(self) -> int:
        """Channels of one head of the pool."""
        return self.embed_dim // self.pool_heads

    @property
    def table_grid(self) -> tuple[int, int, int]:
        """Grid (T, h, w) of the position table."""
        side = self.image_size // self.patch_size
        return self.num_frames, side, side

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> FluxViTConfig:
        """Our config for the constructor arguments of the released code.

        Raises:
            WeightsError: `config` holds a key this does not know.
        """
        known = {
            "embed_dim": "embed_dim",
            "depth": "depth",
            "num_heads": "num_heads",
            "patch_size": "patch_size",
            "num_frames": "num_frames",
            "img_size": "image_size",
            "mlp_ratio": "mlp_ratio",
            "attn_pool_num_heads": "pool_heads",
            "clip_embed_dim": "pool_dim",
            "num_classes": "num_classes",
            "init_values": "layer_scale",
            "drop_path_rate": "drop_path",
        }
        require_known_keys("FluxViT reference config", config, known)
        return cls(num_pools=3, **{known[key]: value for key, value in config.items()})

    def cost(
        self, *, frames: int, size: int, tokens: int | None = None, width: int | tuple[int, ...] | None = None
    ) -> Cost:
        """Closed-form cost of one clip in float32: `frames` squares of `size` pixels, `tokens` patch tokens kept.

        The weights counted are those the model holds, because all of them stay loaded at any width. Activations are
        those of one clip in float32 above the input (see `activation_bytes`).

        Raises:
            PointError: see `widths_at`.
        """
        patches = frames * (size // self.patch_size) ** 2
        kept = (patches if tokens is None else tokens) + 1
        widths = self.widths_at(width)
        values, first_width, last = 3 * self.patch_size**2, *_ends(widths, self)
        macs = linear_macs(patches, values, first_width)
        macs += sum(block_macs(kept, d, self.mlp_ratio) for d in widths)
        macs += pool_macs(kept, last, self.pool_head_dim, self.pool_dim)
        macs += linear_macs(1, self.pool_dim, self.num_classes) + self._table_macs(frames, size, first_width)
        activations = self.activation_bytes(frames=frames, size=size, tokens=tokens, width=width)
        return Cost(macs=macs, parameter_bytes=4 * _parameters(self), activation_bytes=activations)

    def activation_bytes(
        self,
        *,
        frames: int,
        size: int,
        tokens: int | None = None,
        width: int | tuple[int, ...] | None = None,
        batch: int = 1,
        precision: str = "float32",
    ) -> int:
        """Peak bytes of intermediate results on a CPU, input and weights left out: the most of four stages.

        Embedding and placed tokens grow with the batch; blocks do not, where they run on a few clips at a time
        (`ROWS_AT_ONCE`). In bfloat16 the input is cast, and attention may hold scores (`attend`).
        """
        patches = frames * (size // self.patch_size) ** 2
        kept = (patches if tokens is None else tokens) + 1
        widths = self.widths_at(width)
        values, first_width, widest = 3 * self.patch_size**2, _ends(widths, self)[0], max(widths, default=0)
        exact = precision == "float32"
        item = 4 if exact else 2
        cast = 0 if exact else batch * patches * values
        embedding = cast + batch * patches * (values + 3 * first_width)
        positions = batch * patches * 4 * first_width  # tokens, and with positions; the norm's before
        stream = batch * (patches + kept) * first_width  # embedded and placed tokens stay alive
        rows = kept * min(batch, max(1, ROWS_AT_ONCE // kept))
        hidden = rows * int(widest * (3 + 2 * self.mlp_ratio))  # stream, norm, branch; before and after GELU
        attention = 0
        if not exact and BF16_BY_VECTORS:  # stream, norm, queries, keys, values, copies, result; scores twice
            scores = min(SCORES_AT_ONCE, rows * kept * (widest // self.head_dim))
            attention = 11 * rows * widest + 2 * scores
        elements = max(embedding, positions, stream + hidden, stream + attention)
        places = 32 * batch * (patches + kept)  # coordinates, cells and scores of tokens, all small
        return int(max(item * elements, self._table_bytes(frames, size, first_width, batch, item)) + places)

    def _table_macs(self, frames: int, size: int, width: int) -> int:
        """MACs of resizing the position table, one axis after the other; once per call, whatever the batch."""
        side = size // self.patch_size
        return resize_macs(self.table_grid, (frames, side, side), width)

    def _table_bytes(self, frames: int, size: int, width: int, batch: int, item: int) -> int:
        """Bytes alive while the position table is resized, 128 channels at a time in float32, beside the tokens."""
        (t, h, w), side = self.table_grid, size // self.patch_size
        if (t, h, w) == (frames, side, side):
            return 0
        part = min(128, width)
        after = frames * (h if frames != t else side) * w  # places after the first step
        return item * frames * side**2 * (batch * width + width - part) + 4 * part * (t * h * w + after)


def _ends(widths: tuple[int, ...], config: FluxViTConfig) -> tuple[int, int]:
    """Width of the patch embedding and of the pool: those of the first and the last block, if there are blocks."""
    return (widths[0], widths[-1]) if widths else (config.embed_dim, config.embed_dim)


@lru_cache(maxsize=64)
def _parameters(config: FluxViTConfig) -> int:
    """Number of parameters of a model of these sizes."""
    with torch.device("meta"):
        return sum(p.numel() for p in FluxViT(config).parameters())


class FluxViT(VideoEncoder):
    """The encoder; see the module's text. Build it from a `FluxViTConfig` or `PRESETS`."""

    supported_axes: ClassVar[frozenset[str]] = frozenset({"tokens", "selector", "width"})

    def __init__(self, config: FluxViTConfig) -> None:
        super().__init__()
        self.config = config
        first_width, last_width = _ends(config.full_widths, config)
        self.patch_embed = PatchEmbed(config.patch_size, first_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, first_width))
        table = sincos_3d(config.table_grid, config.embed_dim)[:, :first_width]  # (N, d)
        table = torch.cat([torch.zeros(1, first_width), table])  # (1+N, d), CLS first
        self.positions = nn.Parameter(table[None], requires_grad=config.learned_positions)
        self.position_affine = ChannelAffine(first_width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                width // config.head_dim,
                mlp_ratio=config.mlp_ratio,
                layer_scale=config.layer_scale,
                drop_path=config.drop_path * layer / max(1, config.depth - 1),
                local=True,
            )
            for layer, width in enumerate(config.full_widths)
        )
        pools = range(config.num_pools)
        heads, head_dim = pool_heads_at(last_width, config.pool_head_dim), config.pool_head_dim
        self.pools = nn.ModuleList(AttentionPool(last_width, heads, config.pool_dim, head_dim=head_dim) for _ in pools)
        self.pool_norm = nn.LayerNorm(config.pool_dim)
        self.classifiers = nn.ModuleList(
            nn.Linear(config.pool_dim, config.num_classes) for _ in (pools if config.num_classes else ())
        )
        self.selector: Reducer = GroupDynamic()
        self._initialise()

    def _initialise(self) -> None:
        initialise_linears(self.patch_embed, self.pools, self.classifiers)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for index, block in enumerate(self.blocks, start=1):
            initialise_block(block, index)  # type: ignore[arg-type]

    def forward(
        self,
        video: Tensor,
        *,
        point: OperatingPoint | None = None,
        state: State | None = None,
        head: int = 0,
    ) -> Output:
        """Encode clips.

        Args:
            video: (B, T, 3, H, W) float; H and W multiples of the patch size, any T.
            point: tokens to keep and, if not group-dynamic, the selector to use; `width` of the blocks, a multiple
                of the head size; `None` keeps everything.
            state: FluxViT does not stream; must be `None`.
            head: which pool (and classifier) reads the tokens, for models with one per token count.

        Returns:
            `embedding` (B, pool_dim) after the final norm; `logits` when there is a classifier; final tokens; taps
            "pooled" (B, pool_dim) before the norm and "kept" (B, K), the grid cells of the tokens that are left
            (of their centres where tokens were merged, -1 for padding).

        Raises:
            PointError: the point names an axis FluxViT lacks, more tokens than there are or widths it cannot have,
                `head` does not exist, or a state was given.
            ValueError: `video` has the wrong shape.
        """
        point = point or OperatingPoint()
        point.require_axes(self.supported_axes, "FluxViT")
        if state is not None:
            raise PointError("FluxViT has no streaming state; pass state=None")
        if not 0 <= head < len(self.pools):
            raise PointError(f"head must be 0 to {len(self.pools) - 1}, got {head}")
        return self.encode(self.embed(video, point), point, head=head)

    def embed(self, video: Tensor, point: OperatingPoint | None = None) -> Tokens:
        """Patch tokens of clips with their places, before positions are added: what a selector scores.

        Of `point` only the width of the first block matters, so points that share it may share the result. Frames do
        not see each other here, so neighbouring windows may share it too.
        """
        p = self.config.patch_size
        x = self.patch_embed(video.to(self.cls_token.dtype), _ends(self._widths(point), self.config)[0])
        grid = (video.shape[1], video.shape[3] // p, video.shape[4] // p)
        coords = patch_coordinates(grid).to(x.device).expand(x.shape[0], -1, -1)  # (B, N, 3)
        return Tokens(x=x, coords=coords, grid=grid)

    def encode(self, tokens: Tokens, point: OperatingPoint, *, head: int = 0) -> Output:
        """Select, place, transform and pool the tokens that `embed` returned, or some of them; returns as `forward`.

        Raises:
            PointError: `tokens` were embedded at another width than the first one of `point`, and see `forward`.
        """
        widths = self._widths(point)
        placed = self._placed(tokens, _ends(widths, self.config)[0])
        taps: dict[str, Tensor] = {}
        if point.tokens is not None or point.selector is not None:
            selector = point.selector or self.selector
            placed = selector.reduce(placed, point.tokens, metric=tokens.x)
            taps["kept"] = placed.cells  # (B, K)
        placed = self._with_cls(placed)
        x, taps["pooled"] = self._blocks_and_pool(placed.x, placed.key_sizes, widths, head)
        embedding = self.pool_norm(taps["pooled"])
        logits = self.classifiers[head](embedding) if self.classifiers else None
        return Output(embedding=embedding, logits=logits, tokens=replace(placed, x=x), taps=taps)

    def tapped(self, tokens: Tokens, blocks: Collection[int], *, head: int = 0) -> tuple[Output, list[Tensor]]:
        """As `encode` at full width and without selection; also the stream (B, 1+M, D) after each of `blocks`."""
        placed = self._with_cls(self._placed(tokens, tokens.x.shape[-1]))
        x, streams = through_blocks(self.blocks, placed.x, placed.key_sizes, taps=blocks)
        pooled = self.pools[head](x, placed.key_sizes)
        out = Output(embedding=self.pool_norm(pooled), tokens=replace(placed, x=x), taps={"pooled": pooled})
        return out, [streams[block] for block in blocks]

    @torch.no_grad()
    def cls_attention(self, tokens: Tokens, layer: int = 0) -> Tensor:
        """How much the class token attends to each token that `embed` returned, (B, M), the mean over heads.

        Scores for `AttentionScore`, at the width that the tokens have. The blocks before `layer` run on all tokens.

        Raises:
            PointError: there is no such layer.
        """
        if not 0 <= layer < len(self.blocks):
            raise PointError(f"layer must be 0 to {len(self.blocks) - 1}, got {layer}")
        d = tokens.x.shape[-1]
        placed = self._with_cls(self._placed(tokens, d))
        x, sizes = placed.x, placed.key_sizes
        widths = [min(d, limit) for limit in self._widths(None)]
        for index in range(layer):
            x = self.blocks[index](fit_width(x, widths[index]), sizes)
        block = self.blocks[layer]
        assert isinstance(block, Block)
        weights = block.attn.weights(block.norm1(fit_width(x, widths[layer])), 1, sizes)  # (B, A, 1, 1+M)
        return weights[:, :, 0, 1:].mean(dim=1)  # (B, M)

    def _placed(self, tokens: Tokens, width: int) -> Tokens:
        """`tokens` with the positions of their cells added."""
        d = tokens.x.shape[-1]
        if d != width:
            raise PointError(
                f"the tokens have {d} channels, but the point starts with {width}; "
                "pass the same point to embed and encode"
            )
        table = self._table(tokens.grid, d)  # (N, d)
        if tokens.num_placed != len(table) or not tokens.fills_frames:
            table = table[tokens.cells.clamp(min=0)]  # (B, M, d)
        return replace(tokens, x=tokens.x + table)

    def _with_cls(self, placed: Tokens) -> Tokens:
        """The class token in front."""
        cls = (self.cls_token + self.positions[:, :1])[..., : placed.x.shape[-1]]  # (1, 1, d)
        x = torch.cat([cls.expand(placed.x.shape[0], -1, -1), placed.x], dim=1)  # (B, 1+M, d)
        return replace(placed, x=x, num_prefix=1)

    def at(self, point: OperatingPoint) -> FluxViT:
        """See `VideoEncoder.at`; the selector is shared."""
        small = super().at(point)
        small.selector = self.selector
        return small

    def _blocks_and_pool(
        self, x: Tensor, sizes: Tensor | None, widths: tuple[int, ...], head: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1+K, d) to tokens of the last width and pooled features (B, pool_dim).

        On a CPU and without gradients a few clips at a time: more rows make no product faster, but hidden layers
        leave the cache, and memory grows with the batch.
        """
        batch, rows, _ = x.shape
        at_once = max(1, ROWS_AT_ONCE // rows)
        if x.is_cpu and not torch.is_grad_enabled() and at_once < batch:
            pieces = zip(x.split(at_once), [None] * batch if sizes is None else sizes.split(at_once), strict=False)
            done = [self._blocks_and_pool(part, size, widths, head) for part, size in pieces]
            return torch.cat([tokens for tokens, _ in done]), torch.cat([pooled for _, pooled in done])
        for block, width in zip(self.blocks, widths, strict=True):
            x = block(fit_width(x, width), sizes)
        return x, self.pools[head](x, sizes)

    def _widths(self, point: OperatingPoint | None) -> tuple[int, ...]:
        return self.config.widths_at(point.width if point else None)

    def _table(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Global positions (N, d) of a grid, resized in float32 and then rounded to the model's precision.

        Scale and shift come last: they commute with resizing, whose weights sum to one, and there are fewer places.
        """
        table = self.positions[0, 1:, :width]
        parts = table.split(128, dim=1)  # what fits the cache is converted and resized at once
        resized = [resize_table(part.float(), self.config.table_grid, grid).to(table.dtype) for part in parts]
        placed: Tensor = self.position_affine(torch.cat(resized, dim=1))
        return placed


PRESETS = {
    "tiny": FluxViTConfig(embed_dim=48, depth=3, num_heads=4, num_frames=8, image_size=70, pool_heads=4, pool_dim=32),
    "nano": FluxViTConfig(
        embed_dim=192, depth=6, num_heads=3, num_frames=8, image_size=168, pool_heads=4, pool_dim=256, layer_scale=0.3
    ),
    "small": FluxViTConfig(),
    "base": FluxViTConfig(embed_dim=768, num_heads=12, num_frames=32, image_size=280),
    "large": FluxViTConfig(embed_dim=1024, depth=24, num_heads=16, num_frames=32, image_size=280),
}


_RENAMED = {
    "pos_embed": "positions",
    "gpe_proj.depthwise_conv.": "position_affine.",
    ".lpe.depthwise_conv.": ".local.",
    "ls1.gamma": "scale1",
    "ls2.gamma": "scale2",
    "clip_projector.": "pools.",
    "cross_attn.q.": "q.",
    "cross_attn.k.": "k.",
    "cross_attn.v.": "v.",
    "cross_attn.q_bias": "q.bias",
    "cross_attn.k_bias": "k.bias",
    "cross_attn.v_bias": "v.bias",
    "cross_attn.proj.": "proj.",
    "norm1_": "norm_",
    "fc_norm.": "pool_norm.",
}
_TRAINING_ONLY = "final_clip_decoder_for_projs."


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of the released code. Loading it strictly reports whatever does not fit."""
    converted = {}
    for name, value in state.items():
        if name.startswith(_TRAINING_ONLY):
            continue
        ours = name
        for old, new in _RENAMED.items():
            ours = ours.replace(old, new)
        if ours.startswith("head."):
            ours = "classifiers." + ours.removeprefix("head.")
        if ours == "patch_embed.proj.weight":
            value = value.flatten(1)  # (D, 3, 1, P, P) -> (D, 3*P*P)
        elif ours == "patch_embed.norm_before.weight":
            side = math.isqrt(len(value) // 3)
            value = value.reshape(side, side, 3).permute(2, 0, 1).flatten()  # (P, P, 3) -> (3, P, P) -> (3*P*P,)
        elif name.endswith("depthwise_conv.weight"):
            value = value.flatten()  # (D, 1, 1, 1, 1) -> (D,)
        converted[ours] = value
    return converted
