"""MA-LMM: a bank of fixed length in which the two most alike neighbours are averaged when a frame is too many.

Paper: "MA-LMM: Memory-Augmented Large Multimodal Model for Long-Term Video Understanding", arXiv 2404.05726.

    bank <- [bank; frame];  if it is longer than L: at every token position the pair of neighbouring slots with the
    largest cosine similarity becomes its mean, weighted by how many frames each of the two stands for

The visual bank holds features before the projection to keys and values, one bank for all layers. The query banks hold,
for every self-attention layer, what that layer was given for earlier frames. The rule does not look at the text, but
query banks do: they belong to one question.

Where we depart from the released code: it drops query banks when they stand for `num_frames` frames, a constant of the
model, so a shorter video leaves its bank to the next one and a longer one loses it half-way. Here a bank ends with its
video. `reference_frames` brings that behaviour back. And cosines that differ by rounding alone are equal here, and the
earliest of equal pairs merges: what the first layers are given for the queries hardly depends on the frame, so there
the last bits would decide, which differ with the batch and the number of threads.

Letters: B rows, S slots, P token positions of a frame, C channels, L most slots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.memory.base import Entries, Project, VideoMemory, require_frame, require_rows, right_aligned

ALIKE_DECIMALS = 6


@dataclass(frozen=True)
class Bank:
    """Slots of frames, oldest first, aligned at the end where rows hold different numbers.

    Args:
        slots: features (B, S, P, C).
        sizes: frames that each slot stands for (B, S, P).
        seconds: mean time of those frames (B, S, P).
        counts: slots of each row (B,).
    """

    slots: Tensor
    sizes: Tensor
    seconds: Tensor
    counts: Tensor

    @classmethod
    def of_frame(cls, frame: Tensor, seconds: Tensor) -> Bank:
        """A bank of one slot: `frame` (B, P, C) at times (B, P)."""
        seconds = seconds.to(torch.float32)[:, None]  # (B, 1, P)
        return cls(frame[:, None], torch.ones_like(seconds), seconds, torch.ones(len(frame), dtype=torch.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of slots, sizes and times."""
        return self.slots.nbytes + self.sizes.nbytes + self.seconds.nbytes

    @property
    def valid(self) -> Tensor | None:
        """Bool (B, S), which slots are there; `None` for all."""
        return right_aligned(self.counts, self.slots.shape[1])

    def extended(self, frame: Tensor, seconds: Tensor) -> Bank:
        """With one more slot."""
        new = Bank.of_frame(frame, seconds)
        return Bank(
            torch.cat([self.slots, new.slots], dim=1),
            torch.cat([self.sizes, new.sizes], dim=1),
            torch.cat([self.seconds, new.seconds], dim=1),
            self.counts + 1,
        )

    def merged(self, length: int) -> Bank:
        """With one merge at every position of the rows that hold more than `length` slots; other rows only lose a
        slot of padding where there is one."""
        over = self.counts > length
        if not bool(over.any()):
            return self
        slots = self.slots.shape[1]
        alike = F.cosine_similarity(self.slots[:, :-1], self.slots[:, 1:], dim=-1)  # (B, S-1, P)
        alike = alike.round(decimals=ALIKE_DECIMALS)
        there = torch.arange(slots - 1) >= (slots - self.counts)[:, None]  # (B, S-1): both of the pair are there
        alike = alike.masked_fill(~there[:, :, None].to(alike.device), -torch.inf)
        first = alike.argmax(dim=1, keepdim=True)  # (B, 1, P), the earliest of equal ones
        first = torch.where(over[:, None, None].to(first.device), first, 0)
        place = torch.arange(slots - 1, device=first.device)[None, :, None]  # (1, S-1, 1)
        source = place + (place > first)  # (B, S-1, P): slots behind the pair move up
        mean_of_pair = self._mean(first)
        kept = self._gather(source)
        rows = over.to(first.device)[:, None, None]
        joined = (place == first) & rows  # (B, S-1, P)
        padding = torch.where(rows, source, place + 1)  # rows with room lose slot 0, which is padding
        kept = self._gather(padding) if not bool(over.all()) else kept
        return Bank(
            torch.where(joined.unsqueeze(-1), mean_of_pair.slots, kept.slots),
            torch.where(joined, mean_of_pair.sizes, kept.sizes),
            torch.where(joined, mean_of_pair.seconds, kept.seconds),
            self.counts - over.long(),
        )

    def _mean(self, first: Tensor) -> Bank:
        a, b = self._gather(first), self._gather(first + 1)  # (B, 1, P, ...)
        size = a.sizes + b.sizes
        wide_a, wide_b = a.sizes.unsqueeze(-1), b.sizes.unsqueeze(-1)
        slots = (a.slots * wide_a + b.slots * wide_b) / size.unsqueeze(-1)
        seconds = (a.seconds * a.sizes + b.seconds * b.sizes) / size
        return Bank(slots, size, seconds, self.counts)

    def _gather(self, places: Tensor) -> Bank:
        rows, length, tokens = self.seconds.shape
        row = torch.arange(rows, device=places.device)[:, None, None]  # (B, 1, 1)
        token = torch.arange(tokens, device=places.device)  # (P,)
        flat = ((row * length + places) * tokens + token).flatten()  # (B, S', P) -> (B*S'*P,)
        slots = self.slots.flatten(0, 2).index_select(0, flat).unflatten(0, places.shape)  # (B, S', P, C)
        return Bank(slots, self.sizes.gather(1, places), self.seconds.gather(1, places), self.counts)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Bank:
        """`function` applied to every tensor."""
        return Bank(*(function(t) for t in (self.slots, self.sizes, self.seconds, self.counts)))

    def without(self, rows: Tensor) -> Bank:
        """Rows where `rows` (B,) is true are empty."""
        counts = self.counts.masked_fill(rows, 0)
        start = self.slots.shape[1] - int(counts.max())
        return Bank(self.slots[:, start:], self.sizes[:, start:], self.seconds[:, start:], counts)


@dataclass(frozen=True)
class MergingMemory(VideoMemory):
    """Visual bank and query banks of MA-LMM.

    Args:
        length: most slots L of a bank between frames.
        query_banks: whether self-attention also looks back, as in the paper.
        reference_frames: drop query banks when they stand for so many frames, and only then, as the released code
            does; `None` ends them with their video.
        visual: the visual bank.
        queries: one bank per self-attention layer.
        frame_counts: frames seen by each row (B,).

    Raises:
        ValueError: `length` is below 1.
    """

    holds_features: ClassVar[bool] = True

    length: int
    query_banks: bool = True
    reference_frames: int | None = None
    visual: Bank | None = None
    queries: tuple[Bank, ...] = ()
    frame_counts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1 slot, got {self.length}; without a bank pass no memory")

    @property
    def holds_hidden(self) -> bool:
        """Whether there are query banks."""
        return self.query_banks

    @property
    def frames(self) -> tuple[int, ...]:
        """See `VideoMemory.frames`."""
        return () if self.frame_counts is None else tuple(self.frame_counts.tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of all banks."""
        return sum(bank.nbytes for bank in self._banks())

    def _banks(self) -> tuple[Bank, ...]:
        return (*((self.visual,) if self.visual else ()), *self.queries)

    def append(self, visual: Tensor, seconds: Tensor) -> MergingMemory:
        """See `VideoMemory.append`."""
        require_frame(visual, seconds, None if self.frame_counts is None else len(self.frame_counts))
        seen = torch.zeros(len(visual), dtype=torch.int64) if self.frame_counts is None else self.frame_counts
        bank = Bank.of_frame(visual, seconds) if self.visual is None else self.visual.extended(visual, seconds)
        return replace(self, visual=bank, frame_counts=seen + 1)

    def entries(self, layer: int, project: Project) -> tuple[Entries, MergingMemory]:
        """Keys and values of the whole bank, computed anew; see `VideoMemory.entries`."""
        if self.visual is None:
            raise ValueError("the bank is empty; append a frame first")
        keys, values = project(self.visual.slots.flatten(1, 2))  # (B, S, P, C) -> (B, S*P, D)
        valid = self.visual.valid
        if valid is not None:
            valid = valid.repeat_interleave(self.visual.slots.shape[2], dim=1).to(keys.device)  # (B, S*P)
        return Entries(keys, values, self.visual.seconds.flatten(1), valid), self

    def settle(self, layer: int, scores: Tensor) -> MergingMemory:
        """Scores change nothing here."""
        return self

    def past(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """See `VideoMemory.past`."""
        if layer >= len(self.queries):
            return None
        return self.queries[layer].slots, self.queries[layer].valid

    def remember(self, layer: int, hidden: Tensor) -> MergingMemory:
        """Append `hidden` (B, M, D) to the query bank of a layer and merge; see `VideoMemory.remember`."""
        if not self.query_banks:
            return self
        seconds = hidden.new_zeros(hidden.shape[:2])
        if layer < len(self.queries):
            bank = self.queries[layer].extended(hidden, seconds).merged(self.length)
            return replace(self, queries=(*self.queries[:layer], bank, *self.queries[layer + 1 :]))
        return replace(self, queries=(*self.queries, Bank.of_frame(hidden, seconds)))

    def finish(self) -> MergingMemory:
        """Merge the visual bank where it is too long; see `VideoMemory.finish`."""
        assert self.visual is not None
        queries = self.queries
        if queries and self.reference_frames is not None:
            stood_for = int(queries[0].sizes[:, :, 0].sum(dim=1).max())
            queries = () if stood_for >= self.reference_frames else queries
        return replace(self, visual=self.visual.merged(self.length), queries=queries)

    def next_video(self) -> MergingMemory:
        """What the next video starts with: an empty memory; with `reference_frames`, query banks that were not full
        stay, as in the released code."""
        fresh = MergingMemory(self.length, self.query_banks, self.reference_frames)
        return fresh if self.reference_frames is None else replace(fresh, queries=self.queries)

    def fork(self) -> MergingMemory:
        """See `State.fork`."""
        return self._mapped(lambda t: t.clone())

    def select(self, rows: Sequence[int]) -> MergingMemory:
        """See `State.select`."""
        index = torch.tensor(require_rows(rows, len(self.frames)), dtype=torch.int64)
        return self._mapped(lambda t: t[index.to(t.device)])

    def reset(self, rows: Sequence[int]) -> MergingMemory:
        """See `State.reset`."""
        wanted = require_rows(rows, len(self.frames))
        if not wanted or self.frame_counts is None or self.visual is None:
            return self
        fresh = torch.zeros(len(self.frames), dtype=torch.bool)
        fresh[wanted] = True
        return replace(
            self,
            visual=self.visual.without(fresh),
            queries=tuple(bank.without(fresh) for bank in self.queries),
            frame_counts=self.frame_counts.masked_fill(fresh, 0),
        )

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> MergingMemory:
        return replace(
            self,
            visual=None if self.visual is None else self.visual.mapped(function),
            queries=tuple(bank.mapped(function) for bank in self.queries),
            frame_counts=None if self.frame_counts is None else function(self.frame_counts),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `State.state_dict`."""
        state = {} if self.frame_counts is None else {"frames": self.frame_counts}
        named = {} if self.visual is None else {"visual": self.visual}
        named |= {f"queries.{number}": bank for number, bank in enumerate(self.queries)}
        for name, bank in named.items():
            parts = {"slots": bank.slots, "sizes": bank.sizes, "seconds": bank.seconds, "counts": bank.counts}
            state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> MergingMemory:
        """See `VideoMemory.load_state_dict`."""
        fresh = MergingMemory(self.length, self.query_banks, self.reference_frames)
        if not state:
            return fresh
        depth = sum(name.startswith("queries.") and name.endswith(".counts") for name in state)
        parts = ("slots", "sizes", "seconds", "counts")
        names = ["visual", *(f"queries.{number}" for number in range(depth))]
        missing = [f"{n}.{p}" for n in names for p in parts if f"{n}.{p}" not in state]
        if missing or "frames" not in state:
            raise ValueError(f"the saved memory lacks {', '.join(missing) or 'frames'}; it has {', '.join(state)}")
        banks = [Bank(*(state[f"{name}.{part}"] for part in parts)) for name in names]
        return replace(fresh, visual=banks[0], queries=tuple(banks[1:]), frame_counts=state["frames"])
