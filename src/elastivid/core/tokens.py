"""`Tokens`: features that travel with their places, so that selecting, merging and padding cannot lose them.

Letters: B batch, P prefix tokens (CLS and the like, they have no place), N all tokens, M = N - P placed tokens,
D channels, K kept tokens, T' H' W' grid of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch of clips. `coords`, `sizes` and `valid` describe the placed tokens only.

    Args:
        x: features (B, N, D); the first `num_prefix` tokens have no place.
        coords: float places (B, M, 3) as (t, y, x) in units of grid cells, M = N - num_prefix.
        grid: grid (T', H', W') the places refer to; after selection it is larger than M.
        sizes: how many patches each placed token stands for, (B, M); `None` means one each.
        num_prefix: tokens at the front without a place.
        times_seconds: presentation time of each of the T' steps of the grid, (B, T'); `None` when unknown.
        valid: bool (B, M), false for padding; `None` means every token counts. A mask costs attention time, so
            `None` is not the same as all true.

    Raises:
        ValueError: shapes disagree; the message names the field, what it has and what it needs.
        TypeError: `coords` is not floating or `valid` is not bool.
    """

    x: Tensor
    coords: Tensor
    grid: tuple[int, int, int]
    sizes: Tensor | None = None
    num_prefix: int = 0
    times_seconds: Tensor | None = None
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 3:
            raise ValueError(f"Tokens.x must have shape (B, N, D), got {tuple(self.x.shape)}")
        batch, count, _ = self.x.shape
        if not 0 <= self.num_prefix <= count:
            raise ValueError(f"Tokens.num_prefix must be 0 to {count} (tokens in x), got {self.num_prefix}")
        if len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"Tokens.grid must be (T', H', W'), each >= 1, got {self.grid}")
        placed = count - self.num_prefix
        _need_shape("coords", self.coords, (batch, placed, 3))
        _need_shape("sizes", self.sizes, (batch, placed))
        _need_shape("valid", self.valid, (batch, placed))
        _need_shape("times_seconds", self.times_seconds, (batch, self.grid[0]))
        if not self.coords.is_floating_point():
            raise TypeError(f"Tokens.coords must be floating, got {self.coords.dtype}; call .float()")
        if self.valid is not None and str(self.valid.dtype) != "torch.bool":
            raise TypeError(f"Tokens.valid must be bool, got {self.valid.dtype}")

    @property
    def num_placed(self) -> int:
        """Tokens with a place, M; padding included."""
        return self.x.shape[1] - self.num_prefix

    @property
    def key_sizes(self) -> Tensor | None:
        """How much every token counts as a key, (B, N): its size, one for the prefix, zero for padding.

        Attention adds the logarithm to its logits. `None` when all count the same, which costs no time.
        """
        if self.sizes is None and self.valid is None:
            return None
        placed = self.coords.new_ones(self.x.shape[0], self.num_placed) if self.sizes is None else self.sizes
        if self.valid is not None:
            placed = placed * self.valid
        return _cat(placed.new_ones(placed.shape[0], self.num_prefix), placed)  # (B, P + M)

    @property
    def cells(self) -> Tensor:
        """Number of the grid cell nearest to each placed token, row by row and frame by frame; -1 for padding: (B, M).

        Right after embedding it is 0 to M - 1; selection keeps it, so it says which patches are left.
        """
        _, rows, columns = self.grid
        t, y, x = self.coords.round().long().unbind(-1)  # (B, M) each
        cells = (t * rows + y) * columns + x
        return cells if self.valid is None else cells.masked_fill(~self.valid, -1)

    @property
    def counts(self) -> tuple[int, ...]:
        """Placed tokens of every clip, padding not counted."""
        if self.valid is None:
            return (self.num_placed,) * self.x.shape[0]
        return tuple(int(n) for n in self.valid.sum(dim=1))

    @property
    def fills_frames(self) -> bool:
        """Whether every clip holds the first cells of the grid in order, in whole frames, then padding: as embedded.

        Selecting, merging and shuffling end that. Compiled code knows shapes, not values: there counts decide.
        """
        import torch

        _, rows, columns = self.grid
        if any(count % (rows * columns) for count in self.counts):
            return False
        if _compiling():
            return True
        places = torch.arange(self.num_placed, device=self.coords.device)  # (M,)
        filled = torch.tensor(self.counts, device=places.device)[:, None]  # (B, 1)
        return torch.equal(self.cells, torch.where(places < filled, places, -1))

    def gather(self, indices: Tensor, *, ragged: bool | None = None) -> Tokens:
        """The placed tokens at `indices` (B, K), in that order, behind the unchanged prefix.

        Args:
            indices: int64 positions among the placed tokens, 0 to M - 1, one row per clip; -1 gives padding, so that
                clips may keep different numbers of tokens.
            ragged: whether there is a -1 among them. `None` looks, which compiled code cannot: there it means no.

        Returns:
            Tokens with x (B, P + K, D) and coords, sizes, valid of length K. Padding is zero and not valid.

        Raises:
            ValueError: `indices` is not (B, K).
            IndexError: an index lies outside -1 to M - 1.
        """
        batch, _, channels = self.x.shape
        if indices.ndim != 2 or indices.shape[0] != batch:
            raise ValueError(f"indices must have shape (B, K) with B = {batch}, got {tuple(indices.shape)}")
        looked_at = not _compiling() and indices.numel() > 0  # compiled code knows shapes, not values
        lowest = int(indices.min()) if looked_at else 0
        if looked_at and (lowest < -1 or int(indices.max()) >= self.num_placed):
            raise IndexError(
                f"indices must lie in 0 to {self.num_placed - 1} (placed tokens, prefix not counted) or be -1 for "
                f"padding, got {lowest} to {int(indices.max())}"
            )
        if lowest < 0 if ragged is None else ragged:
            there = indices >= 0
            return self.gather(indices.clamp(min=0), ragged=False)._blank(there)
        wide = (indices + self.num_prefix).unsqueeze(-1).expand(-1, -1, channels)  # (B, K) -> (B, K, D)
        kept = self.x.gather(1, wide)  # (B, K, D)
        if self.num_prefix:
            kept = _cat(self.x[:, : self.num_prefix], kept)  # (B, P + K, D)
        return replace(
            self,
            x=kept,
            coords=self.coords.gather(1, indices.unsqueeze(-1).expand(-1, -1, 3)),  # (B, K, 3)
            sizes=None if self.sizes is None else self.sizes.gather(1, indices),  # (B, K)
            valid=None if self.valid is None else self.valid.gather(1, indices),  # (B, K)
        )

    def row(self, index: int) -> Tokens:
        """Clip `index` alone, without its padding: a batch of one.

        Raises:
            IndexError: `index` lies outside 0 to B - 1.
        """
        if not 0 <= index < self.x.shape[0]:
            raise IndexError(f"index must be 0 to {self.x.shape[0] - 1} (clips of the batch), got {index}")
        one = slice(index, index + 1)
        clip = replace(
            self,
            x=self.x[one],
            coords=self.coords[one],
            sizes=None if self.sizes is None else self.sizes[one],
            times_seconds=None if self.times_seconds is None else self.times_seconds[one],
            valid=None if self.valid is None else self.valid[one],
        )
        if clip.valid is None:
            return clip
        there = clip.valid[0].nonzero().T  # (1, M')
        return replace(clip.gather(there), valid=None)

    @staticmethod
    def stack(clips: Sequence[Tokens]) -> Tokens:
        """One batch out of several, padded to the longest; `valid` stays `None` when nothing needs padding.

        Raises:
            ValueError: there are none, or their grids, prefixes or fields differ.
        """
        import torch

        kinds = {(c.grid, c.num_prefix, c.sizes is None, c.times_seconds is None) for c in clips}
        if len(kinds) != 1:
            raise ValueError(
                "Tokens.stack needs at least one batch, all with equal grid and num_prefix, and sizes and "
                f"times_seconds in all or in none; got {len(clips)} with {sorted(map(str, kinds))}"
            )
        longest = max(c.num_placed for c in clips)
        padded = [c.pad(longest) for c in clips]
        if any(c.valid is not None for c in padded):
            padded = [replace(c, valid=c._all_valid()) for c in padded]

        def joined(name: str) -> Any:
            fields = [getattr(c, name) for c in padded]
            return None if fields[0] is None else torch.cat(fields)

        return replace(
            padded[0],
            x=joined("x"),
            coords=joined("coords"),
            sizes=joined("sizes"),
            times_seconds=joined("times_seconds"),
            valid=joined("valid"),
        )

    def pad(self, num_placed: int) -> Tokens:
        """Zero tokens appended until there are `num_placed`, marked invalid; unchanged when there are already.

        Returns:
            Tokens with x (B, P + num_placed, D). Padding has features, places and sizes of zero.

        Raises:
            ValueError: there are more placed tokens than `num_placed`.
        """
        missing = num_placed - self.num_placed
        if missing < 0:
            raise ValueError(f"cannot pad {self.num_placed} placed tokens to {num_placed}; use gather to drop tokens")
        if missing == 0:
            return self
        batch, _, channels = self.x.shape
        valid = self._all_valid()
        sizes = self.sizes
        return replace(
            self,
            x=_cat(self.x, self.x.new_zeros(batch, missing, channels)),  # (B, P + num_placed, D)
            coords=_cat(self.coords, self.coords.new_zeros(batch, missing, 3)),  # (B, num_placed, 3)
            sizes=None if sizes is None else _cat(sizes, sizes.new_zeros(batch, missing)),  # (B, num_placed)
            valid=_cat(valid, valid.new_zeros(batch, missing)),  # (B, num_placed)
        )

    def _all_valid(self) -> Tensor:
        """`valid`, written out when it is `None`."""
        return self.coords.new_ones(self.coords.shape[:2]).bool() if self.valid is None else self.valid

    def _blank(self, there: Tensor) -> Tokens:
        """Padding wherever `there` (B, M) is false."""
        seen = _cat(there.new_ones(there.shape[0], self.num_prefix), there)  # (B, P + M)
        return replace(
            self,
            x=self.x.masked_fill(~seen.unsqueeze(-1), 0),
            coords=self.coords.masked_fill(~there.unsqueeze(-1), 0),
            sizes=None if self.sizes is None else self.sizes.masked_fill(~there, 0),
            valid=self._all_valid() & there,
        )

    def __repr__(self) -> str:
        extras = "".join(f", {name}" for name in ("sizes", "times_seconds", "valid") if getattr(self, name) is not None)
        shape = "x".join(str(n) for n in self.x.shape)
        grid = "x".join(str(n) for n in self.grid)
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Tokens({shape} {kind}, {self.num_prefix} prefix, grid {grid}{extras})"


def _need_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(
            f"Tokens.{name} must have shape {shape} to fit x, num_prefix and grid; got {tuple(tensor.shape)}"
        )


def _cat(first: Tensor, second: Tensor) -> Tensor:
    """Concatenate along dimension 1."""
    import torch

    return torch.cat([first, second], dim=1)


def _compiling() -> bool:
    """Whether torch.compile is tracing."""
    import torch

    return torch.compiler.is_compiling()
