"""`VideoMemory`: what the cross-attention of a streaming Q-Former may look back at.

A frame passes in four steps, and every step returns a new memory:

    memory = memory.append(visual, seconds)                  the frame's tokens arrive
    entries, memory = memory.entries(layer, project)         keys and values that layer `layer` attends to
    memory = memory.settle(layer, scores)                    how much each entry was attended to
    memory = memory.finish()                                 end of the frame: what is too much goes

Letters: B rows (streams side by side), P tokens of one frame, C channels of a visual token, N entries of a layer,
D channels of keys and values, M tokens in a Q-Former layer, S slots of a bank.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from elastivid.core.errors import BudgetError
from elastivid.core.state import State

Project = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Entries:
    """What one layer attends to.

    Args:
        keys, values: (B, N, D).
        seconds: time of each entry (B, N).
        valid: bool (B, N), false for padding; `None` when every entry counts.
    """

    keys: Tensor
    values: Tensor
    seconds: Tensor
    valid: Tensor | None = None


class VideoMemory(State):
    """Memory of one video per row. See the module's text for the steps of a frame.

    A fresh memory has no rows; the first frame sets their number. A row that was reset starts anew while the others
    go on.
    """

    holds_features: ClassVar[bool] = False  # visual tokens themselves instead of their keys and values

    @property
    def bounded(self) -> bool:
        """Whether `nbytes` stops growing."""
        return True

    @property
    def holds_hidden(self) -> bool:
        """Whether it holds hidden states of every layer, so that every layer must run for every frame."""
        return False

    @property
    @abstractmethod
    def frames(self) -> tuple[int, ...]:
        """Frames that each row has seen."""

    @abstractmethod
    def append(self, visual: Tensor, seconds: Tensor) -> Self:
        """Take in one frame: `visual` (B, P, C) with times `seconds` (B, P).

        Raises:
            ValueError: the shapes do not fit, or B is not the number of rows.
        """

    @abstractmethod
    def entries(self, layer: int, project: Project) -> tuple[Entries, Self]:
        """What cross-attention number `layer` attends to; `project` maps (B, P, C) to keys and values (B, P, D)."""

    @abstractmethod
    def settle(self, layer: int, scores: Tensor) -> Self:
        """Hear how much each entry of the layer was attended to, (B, N), summed over queries and heads."""

    @abstractmethod
    def finish(self) -> Self:
        """End the frame."""

    def past(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """Hidden states of earlier frames that self-attention number `layer` also attends to, (B, S, M, D), and which
        of the S slots count, bool (B, S) or `None` for all. `None` for memories without such states."""
        return None

    def remember(self, layer: int, hidden: Tensor) -> Self:
        """Keep the input of self-attention number `layer`, (B, M, D), where the memory wants it."""
        return self

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> Self:
        """A memory of the same rule that holds what `state_dict` wrote.

        Raises:
            ValueError: tensors are missing.
        """


def require_rows(rows: Sequence[int], count: int) -> list[int]:
    """`rows` as a list.

    Raises:
        IndexError: a row lies outside 0 to `count` - 1.
    """
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong:
        raise IndexError(f"rows must lie in 0 to {count - 1}, got {wrong[0]}; the memory has {count} rows")
    return list(rows)


def require_frame(visual: Tensor, seconds: Tensor, rows: int | None) -> None:
    """Raise `ValueError` where a frame does not fit the memory."""
    if visual.ndim != 3 or visual.shape[1] < 1:
        raise ValueError(f"visual must be (B, P, C) with P >= 1, got {tuple(visual.shape)}")
    if seconds.shape != visual.shape[:2]:
        raise ValueError(f"seconds must be (B, P) = {tuple(visual.shape[:2])}, got {tuple(seconds.shape)}")
    if rows is not None and visual.shape[0] != rows:
        raise ValueError(f"the memory has {rows} rows, the frame has {visual.shape[0]}; select or reset rows first")


def right_aligned(counts: Tensor, length: int) -> Tensor | None:
    """Bool (B, length), true at the last `counts[b]` places of row b; `None` where all are."""
    if bool((counts == length).all()):
        return None
    return torch.arange(length) >= (length - counts)[:, None]


@dataclass(frozen=True)
class TokenBytes:
    """What one remembered token costs, and how many a cap holds.

    Args:
        layers: cross-attention layers, each with a cache of its own.
        dim: channels D of keys and of values.
        frame_tokens: tokens P of one frame.
        rows: videos, or questions about one video, that share the cap.
        item_bytes: bytes of one number.
    """

    layers: int
    dim: int
    frame_tokens: int
    rows: int = 1
    item_bytes: int = 4

    @property
    def per_token(self) -> int:
        """Bytes of a token in all layers of one row: keys, values, time and frame number."""
        return self.layers * (2 * self.dim * self.item_bytes + 8)

    @property
    def minimum(self) -> int:
        """The smallest cap: two frames in every row, the newest and one to remember."""
        return 2 * self.frame_tokens * self.rows * self.per_token

    def tokens_within(self, cap_bytes: int) -> int:
        """Tokens per layer and row, the newest frame included, that fit into `cap_bytes`.

        Raises:
            BudgetError: the cap is below the minimum, which is named.
        """
        if cap_bytes < self.minimum:
            raise BudgetError(
                f"a memory of {cap_bytes:,} bytes is below the minimum of {self.minimum:,} bytes "
                f"(two frames of {self.frame_tokens} tokens in {self.layers} layers for {self.rows} "
                f"question{'s' if self.rows != 1 else ''}); allow at least that much or ask fewer questions at once"
            )
        return cap_bytes // (self.rows * self.per_token)
