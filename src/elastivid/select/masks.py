"""Selection by place alone, and by scores that somebody else computed.

    RandomTokens   every place drawn by itself                        MAE-ST, arXiv 2205.09113
    RandomTubes    a place in the frame is drawn, for all times       VideoMAE, arXiv 2203.12602
    RandomFrames   whole frames are drawn                             the ablation of VideoMAE
    RunningCell    a part of every 2x2 cell, moving from frame to frame   VideoMAE V2, arXiv 2303.16727
    BlockCell      one block of space-time at a drawn place               the other reading of "running cell"
    AttentionScore the places that a teacher's class token attends to     UMT, arXiv 2303.16058

A selector is a value: the same seed keeps the same places in every batch, on every machine and however clips are
padded. For training give a fresh seed per step, or one per clip. Pre-training masks hide what these keep away.
Cost: a number per token and a sort.

Letters: B batch, M placed tokens, T frames, S places of one frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.select.base import Selector, checked_groups, num_frames

Seed = int | Sequence[int]
"""One seed for all clips, or one per clip."""


class _Drawn(Selector):
    """Keeps what is drawn.

    Args:
        seed: what the draw depends on, see `Seed`.

    Raises:
        PointError: a seed is negative; on use: there is not one per clip.
    """

    def __init__(self, seed: Seed = 0) -> None:
        self.seeds = _checked_seeds(seed)


class RandomTokens(_Drawn):
    """Keep places drawn one by one."""

    def scores(self, tokens: Tokens) -> Tensor:
        """A random number per place of the grid, (B, M)."""
        frames, rows, columns = tokens.grid
        return _looked_up(_uniform(self.seeds, tokens, frames * rows * columns), _cells(tokens))


class RandomTubes(_Drawn):
    """Keep places of the frame at all times, so nothing hidden can be copied from another frame.

    Where K is no multiple of the frames, one more tube stays in its earliest frames only.
    """

    def scores(self, tokens: Tokens) -> Tensor:
        """A random number per place of the frame, (B, M)."""
        _, rows, columns = tokens.grid
        return _looked_up(_uniform(self.seeds, tokens, rows * columns), _cells(tokens) % (rows * columns))


class RandomFrames(_Drawn):
    """Keep whole frames. Where K is no multiple of a frame, one more frame stays in its first rows only."""

    def scores(self, tokens: Tokens) -> Tensor:
        """A random number per frame, (B, M)."""
        frames, rows, columns = tokens.grid
        return _looked_up(_uniform(self.seeds, tokens, frames), _cells(tokens) // (rows * columns))


class RunningCell(Selector):
    """Keep part of every 2x2 cell of places; the part turns by one place per frame, so it visits them all.

    The four places of a cell form a ring (row by row); in frame t place p has rank (p + phase + t + 1) mod 4, and high
    ranks stay. At 1/4, 1/2 and 3/4 of the tokens these are the masks of the released code. Other K take part of the
    next rank, spread over the frame by a lattice of plastic-number steps. Every frame keeps an equal share.

    Args:
        phase: turn of the first frame, 0 to 3; one for all clips or one per clip.

    Raises:
        PointError: a phase is negative; on use: there is not one per clip.
    """

    def __init__(self, phase: Seed = 0) -> None:
        self.phases = _checked_seeds(phase, "phase")

    def num_groups(self, frames: int) -> int:
        """One group per frame."""
        return frames

    def scores(self, tokens: Tokens) -> Tensor:
        """Rank in the ring less a fraction that spreads places of equal rank, (B, M)."""
        _, rows, columns = tokens.grid
        cells = _cells(tokens)
        t, y, x = cells // (rows * columns), cells // columns % rows, cells % columns
        turns = _one_per_clip(self.phases, len(cells), "phase")
        phases = torch.tensor(turns, device=cells.device)[:, None]  # (1 or B, 1)
        rank = (2 * (y % 2) + x % 2 + phases + t + 1) % 4
        spread = ((y // 2).double() * 0.7548776662466927 + (x // 2).double() * 0.5698402909980532) % 1
        return rank - spread


class BlockCell(Selector):
    """Keep one block of frames, rows and columns at a drawn place; it wraps around the grid, so all places are alike.

    Asked for no number it keeps the block; for another number, the block first and then the blocks behind it. Without
    wrapping, a corner would stay in a hundredth of the draws that keep the centre.

    Args:
        cell: frames, rows and columns of the block; cut to the grid.
        seed: what the place depends on, see `Seed`.

    Raises:
        PointError: a side is below 1 or a seed negative; on use: there is not one seed per clip.
    """

    def __init__(self, cell: tuple[int, int, int] = (4, 7, 7), seed: Seed = 0) -> None:
        if len(cell) != 3 or min(cell) < 1:
            raise PointError(f"cell must be frames, rows and columns, each >= 1, got {cell}")
        self.cell = cell
        self.seeds = _checked_seeds(seed)

    def counts(self, tokens: Tokens) -> tuple[int, ...]:
        """Places of the block, at most those there are."""
        frames, rows, columns = (min(side, most) for side, most in zip(self.cell, tokens.grid, strict=True))
        own = (min(frames, num_frames(tokens.grid, count)) for count in tokens.counts)  # a clip may have fewer frames
        return tuple(min(n * rows * columns, count) for n, count in zip(own, tokens.counts, strict=True))

    def scores(self, tokens: Tokens) -> Tensor:
        """Minus the number of blocks between the drawn one and the place, on the axis where it is most: (B, M)."""
        _, rows, columns = tokens.grid
        cells = _cells(tokens)
        places = torch.stack([cells // (rows * columns), cells // columns % rows, cells % columns], dim=-1)  # (B, M, 3)
        frames = [num_frames(tokens.grid, count) for count in tokens.counts]  # of each clip without its padding
        grids = torch.tensor([(n, rows, columns) for n in frames], device=cells.device)  # (B, 3)
        start = (_uniform(self.seeds, tokens, 3) * grids).long()  # (B, 3)
        offset = (places - start[:, None]) % grids[:, None]  # (B, M, 3)
        return -(offset // torch.tensor(self.cell, device=cells.device)).amax(dim=-1).double()


class AttentionScore(Selector):
    """Keep the places with the highest attention of a teacher, an equal share in every frame.

    UMT keeps what the class token of the teacher's last block attends to, averaged over heads; it draws the places with
    these probabilities: wrap them in `drawn` for that. FluxViT's student keeps the best of the whole clip (`groups=1`)
    among tokens that were already selected.

    Args:
        attention: gives the scores (B, M) of the placed tokens it is called with; for scores at hand
            `lambda tokens: scores`.
        groups: stretches that keep equal shares; `None` makes every frame one.

    Raises:
        PointError: `groups` is below 1; on use: the scores have the wrong shape or are no numbers, or the tokens do not
            divide into the groups.
    """

    def __init__(self, attention: Callable[[Tokens], Tensor], *, groups: int | None = None) -> None:
        self.attention = attention
        self.groups = checked_groups(groups)

    def num_groups(self, frames: int) -> int:
        """As asked, or one group per frame."""
        return self.groups or frames

    def scores(self, tokens: Tokens) -> Tensor:
        """What the teacher gives, (B, M)."""
        return checked_scores(self.attention(tokens), tokens, "attention")


def drawn(probabilities: Tensor, seed: Seed = 0) -> Tensor:
    """Scores (B, M) whose best K are a draw of K without replacement with these probabilities (B, M).

    Gumbel noise on the logarithms (arXiv 1903.06059). The probabilities need not add up to one.

    Raises:
        PointError: a probability is negative, or there is not one seed per clip.
    """
    if not bool((probabilities >= 0).all()):
        raise PointError(f"probabilities must be >= 0, got {float(probabilities.min())}")
    batch, placed = probabilities.shape
    seeds = _one_per_clip(_checked_seeds(seed), batch, "seed")
    noise = np.stack([np.random.default_rng(s).gumbel(size=placed) for s in seeds])  # (1 or B, M)
    return probabilities.double().log() + torch.from_numpy(noise).to(probabilities.device)


def checked_scores(scores: Tensor, tokens: Tokens, name: str) -> Tensor:
    """`scores` when there is one number for each placed token.

    Raises:
        PointError: another shape than (B, M), or a value is not a number.
    """
    wanted = tuple(tokens.coords.shape[:2])
    if tuple(scores.shape) != wanted:
        raise PointError(f"{name} must give one score per placed token, shape {wanted}, got {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        raise PointError(f"{name} gave {int(scores.isnan().sum())} scores that are not a number; check its input")
    return scores


def _checked_seeds(seed: Seed, name: str = "seed") -> tuple[int, ...]:
    seeds = (int(seed),) if isinstance(seed, int | Integral) else tuple(int(s) for s in seed)
    if not seeds or min(seeds) < 0:
        raise PointError(f"{name} must be >= 0, one number or one per clip, got {seed}")
    return seeds


def _one_per_clip(seeds: tuple[int, ...], batch: int, name: str) -> tuple[int, ...]:
    if len(seeds) not in (1, batch):
        raise PointError(f"{name} must be one number or one per clip ({batch}), got {len(seeds)}")
    return seeds


def _uniform(seeds: tuple[int, ...], tokens: Tokens, count: int) -> Tensor:
    """Random numbers (1 or B, count). A longer draw begins with the shorter one, so padding changes nothing."""
    draws = [np.random.default_rng(seed).random(count) for seed in _one_per_clip(seeds, len(tokens.x), "seed")]
    return torch.from_numpy(np.stack(draws)).to(tokens.coords.device)


def _looked_up(table: Tensor, places: Tensor) -> Tensor:
    """Entries of a table (1 or B, n) at places (B, M): (B, M)."""
    return table.expand(places.shape[0], -1).gather(1, places)


def _cells(tokens: Tokens) -> Tensor:
    """Grid cell of each token, (B, M); padding counts as the first cell."""
    return tokens.cells.clamp(min=0)
