"""`TokenEncoder`: what encoders that run blocks over space-time tokens share, and `TokenSizes` of their configs.

    embed    cubes of the clip to tokens, places attached, positions not yet added: what a selector scores
    encode   select, add positions, put the class token in front, run the blocks, read the result

A family adds how tokens are made (`embedded`), where they stand (`table`), what goes in front (`prefix`) and how the
result is read (`read`). Tokens, selector and width are arguments of every call. A family whose class token also has a
position adds the two in `prefix`.

Letters: B batch, T frames, H W pixels, N tokens of the grid, M at hand, P prefix tokens, D channels, d active ones.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import PointError
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.elastic import ElasticSizes
from elastivid.layers.embed import patch_coordinates
from elastivid.layers.position import resize_macs, resize_table, sincos_flat
from elastivid.layers.vit import cube_grid, cubes, through_blocks
from elastivid.models.base import VideoEncoder
from elastivid.select.base import Reducer
from elastivid.select.motion import GroupDynamic

Widths = int | Sequence[int] | None
"""Active channels: one number for all blocks, one per block, or all of them."""


class TokenSizes(ElasticSizes):
    """What follows from the sizes of an encoder; a mixin for frozen dataclasses with the fields below."""

    patch_size: int
    tubelet_size: int
    num_frames: int
    image_size: int | tuple[int, int]
    mlp_ratio: float
    widths: tuple[int, ...]

    def check_sizes(self) -> None:
        """Lists to tuples, as JSON has lists; `ValueError` or `PointError` where the sizes contradict each other."""
        if isinstance(self.image_size, list):
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if self.num_frames % self.tubelet_size or any(side % self.patch_size for side in self.image_sides):
            raise ValueError(
                f"{self.num_frames} frames of {self.image_size} pixels do not divide into cubes of "
                f"{self.tubelet_size} frames and {self.patch_size} pixels"
            )
        self.check_widths()

    @property
    def image_sides(self) -> tuple[int, int]:
        """Height and width in pixels of the native grid."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def cube_values(self) -> int:
        """Numbers in one cube of video."""
        return 3 * self.tubelet_size * self.patch_size**2

    @property
    def table_grid(self) -> tuple[int, int, int]:
        """Native grid (t, h, w)."""
        height, width = self.image_sides
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def grid_of(self, frames: int, size: int) -> tuple[int, int, int]:
        """Grid of a clip of `frames` squares of `size` pixels."""
        side = size // self.patch_size
        return frames // self.tubelet_size, side, side

    def token_macs(self, frames: int, size: int, tokens: int | None, width: Widths, prefix: int) -> int:
        """MACs of embedding all cubes of a clip and of all blocks on `tokens` of them and `prefix` others."""
        t, h, w = self.grid_of(frames, size)
        kept = (t * h * w if tokens is None else tokens) + prefix
        widths = self.widths_at(width)
        macs = linear_macs(t * h * w, self.cube_values, widths[0])
        return macs + sum(block_macs(kept, d, self.mlp_ratio) for d in widths)

    def table_macs(self, frames: int, size: int, width: Widths) -> int:
        """MACs of resizing a position table to the grid of a clip."""
        return resize_macs(self.table_grid, self.grid_of(frames, size), self.widths_at(width)[0])

    def cost_of(self, macs: int, frames: int, size: int, tokens: int | None, width: Widths) -> Cost:
        """`macs` with the weights all of which stay loaded, and the peak of one clip in float32 above its input."""
        t, h, w = self.grid_of(frames, size)
        kept = (t * h * w if tokens is None else tokens) + 1
        widths = self.widths_at(width)
        embedding = t * h * w * (self.cube_values + 2 * widths[0])
        hidden = kept * int(max(widths) * (3 + 2 * self.mlp_ratio))  # stream, norm, branch; before and after GELU
        peak = max(embedding, t * h * w * widths[0] + hidden)
        return Cost(macs=macs, parameter_bytes=4 * count_parameters(self), activation_bytes=4 * peak)


@lru_cache(maxsize=128)
def count_parameters(config: Any) -> int:
    """Number of parameters of the model that `config` builds; no memory is made for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in config.build().parameters())


@lru_cache(maxsize=8)
def flat_table(native: tuple[int, int, int], grid: tuple[int, int, int], dim: int) -> Tensor:
    """VideoMAE's code of the places of the `native` grid, resized to `grid`: (N, D) float32 on the CPU.

    Made once; it depends on no weight and is not stored with them.
    """
    t, h, w = native
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        return resize_table(sincos_flat(t * h * w, dim), native, grid)


class TokenEncoder(VideoEncoder):
    """Blocks over space-time tokens; see the module's text. Concrete families set `config`, `blocks`, `selector`."""

    supported_axes: ClassVar[frozenset[str]] = frozenset({"tokens", "selector", "width"})
    config: Any
    blocks: nn.ModuleList
    selector: Reducer

    def __init__(self) -> None:
        super().__init__()
        self.selector = GroupDynamic()

    @abstractmethod
    def embedded(self, values: Tensor, width: int) -> Tensor:
        """Flattened cubes (B, M, values of a cube) to tokens (B, M, width)."""

    @abstractmethod
    def table(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Positions (N, width) of a grid, in the precision and on the device of the weights."""

    @abstractmethod
    def read(self, tokens: Tokens) -> Output:
        """The result for the tokens of the last block."""

    def prefix(self, width: int) -> Tensor | None:
        """Tokens (1, P, width) in front of all others; `None` for none."""
        return None

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode clips.

        Args:
            video: (B, T, 3, H, W) float; frames and sides multiples of the cube.
            point: tokens to keep and, if not group-dynamic, the selector to use; `width` of the blocks, a multiple of
                the head size; `None` keeps everything.
            state: these encoders do not stream; must be `None`.

        Returns:
            `embedding`, `logits` where there is a classifier, the tokens after the last block with the class token (if
            any) in front, and tap "kept" (B, K), the grid cells of tokens that were selected.

        Raises:
            PointError: the point names an axis the family lacks, more tokens than there are or widths it cannot have,
                or a state was given.
            ValueError: `video` has the wrong shape.
        """
        point, name = point or OperatingPoint(), type(self).__name__
        point.require_axes(self.supported_axes, name)
        if state is not None:
            raise PointError(f"{name} has no streaming state; pass state=None")
        return self.encode(self.embed(video, point), point)

    def embed(self, video: Tensor, point: OperatingPoint | None = None) -> Tokens:
        """Tokens of clips with their places, before positions are added: what a selector scores.

        Of `point` only the width of the first block matters, so points that share it may share the result.
        """
        k, p = self.config.tubelet_size, self.config.patch_size
        values = cubes(video, k, p).to(self._dtype)  # (B, N, C*k*P*P)
        x = self.embedded(values, self.config.widths_at(point.width if point else None)[0])  # (B, N, d)
        grid = cube_grid(video, k, p)
        return Tokens(x=x, coords=patch_coordinates(grid).to(x.device).expand(len(x), -1, -1), grid=grid)

    def embed_at(self, video: Tensor, places: Tensor) -> Tokens:
        """As `embed`, at `places` (B, M) of the grid alone, at full width: cubes that stay hidden are not projected."""
        k, p = self.config.tubelet_size, self.config.patch_size
        values = cubes(video, k, p).to(self._dtype)  # (B, N, C*k*P*P)
        values = values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))  # (B, M, C*k*P*P)
        grid = cube_grid(video, k, p)
        coords = patch_coordinates(grid).to(values.device)[places]  # (B, M, 3)
        return Tokens(x=self.embedded(values, self.config.full_widths[0]), coords=coords, grid=grid)

    def encode(self, tokens: Tokens, point: OperatingPoint | None = None) -> Output:
        """Select, place, transform and read the tokens that `embed` returned, or some of them; returns as `forward`.

        Raises:
            PointError: `tokens` were embedded at another width than the first one of `point`, and see `forward`.
        """
        point = point or OperatingPoint()
        widths = self.config.widths_at(point.width)
        if tokens.x.shape[-1] != widths[0]:
            raise PointError(
                f"the tokens have {tokens.x.shape[-1]} channels, but the point starts with {widths[0]}; "
                "pass the same point to embed and encode"
            )
        placed = self.placed(tokens)
        taps = {}
        if point.tokens is not None or point.selector is not None:
            placed = (point.selector or self.selector).reduce(placed, point.tokens, metric=tokens.x)
            taps["kept"] = placed.cells  # (B, K)
        out = self.read(self.transform_tokens(placed, widths)[0])
        return replace(out, taps={**out.taps, **taps})

    def placed(self, tokens: Tokens) -> Tokens:
        """`tokens` with the positions of their cells added."""
        table = self.table(tokens.grid, tokens.x.shape[-1])  # (N, d)
        if tokens.num_placed != len(table) or not tokens.fills_frames:
            table = table[tokens.cells.clamp(min=0)]  # (B, M, d)
        return replace(tokens, x=tokens.x + table)

    def transform_tokens(
        self, placed: Tokens, widths: Sequence[int] | None = None, taps: Collection[int] = ()
    ) -> tuple[Tokens, dict[int, Tensor]]:
        """Placed tokens behind the prefix through all blocks; also the stream (B, P+M, d) after blocks `taps`."""
        front = self.prefix(placed.x.shape[-1])
        if front is not None:
            x = torch.cat([front.expand(len(placed.x), -1, -1), placed.x], dim=1)  # (B, P+M, d)
            placed = replace(placed, x=x, num_prefix=front.shape[1])
        x, kept = through_blocks(self.blocks, placed.x, placed.key_sizes, widths=widths, taps=taps)
        return replace(placed, x=x), kept

    def at(self, point: OperatingPoint) -> Self:
        """See `VideoEncoder.at`; the selector is shared."""
        small = super().at(point)
        small.selector = self.selector
        return small

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
