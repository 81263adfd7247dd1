"""`CacheMemory`: keys and values of every layer, and a `Retention` rule that says which tokens stay.

    K_t = keep([K_(t-1); k_t]),   V_t likewise, in every cross-attention layer by itself (AdaCM2, arXiv 2411.12593)

Rules are in `elastivid.memory.adacm2` (guided by the text) and `elastivid.memory.window` (blind to it).

Rows may hold different numbers of tokens, because one may have been reset: storage is aligned at the end, so that
appending stays one concatenation, and the padding in front is masked.

Letters as in `elastivid.memory.base`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from elastivid.memory.base import Entries, Project, VideoMemory, require_frame, require_rows, right_aligned

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidates:
    """The tokens of one layer after a frame, oldest first, from which a rule keeps some.

    Args:
        layer: number of the cross-attention layer.
        scores: attention that each token received in this frame, (B, N).
        frame: number of the frame that each token came with, from 0, int32 (B, N).
        order: place of each token among those of its row, from 0; negative for padding, (B, N).
        counts: tokens of each row, (B,).
    """

    layer: int
    scores: Tensor
    frame: Tensor
    order: Tensor
    counts: Tensor


class Retention(ABC):
    """Says how many tokens of a layer stay after a frame, and which."""

    @property
    def bounded(self) -> bool:
        """Whether what stays has a largest size."""
        return True

    @abstractmethod
    def keep_count(self, layer: int, count: int) -> int:
        """How many of `count` tokens stay."""

    @abstractmethod
    def priorities(self, candidates: Candidates) -> Tensor:
        """A number for each token, (B, N): the highest stay, of equal ones the earlier."""


@dataclass(frozen=True)
class Cached:
    """Content of one layer: keys and values (B, N, D), seconds (B, N), frame numbers (B, N)."""

    keys: Tensor
    values: Tensor
    seconds: Tensor
    frame: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The four by name."""
        return {"keys": self.keys, "values": self.values, "seconds": self.seconds, "frame": self.frame}

    def gather(self, places: Tensor) -> Cached:
        """Tokens at `places` (B, K)."""
        rows, length = self.seconds.shape
        flat = (places + length * torch.arange(rows, device=places.device)[:, None]).flatten()  # (B, K) -> (B*K,)
        return Cached(
            **{  # whole tokens are copied, (B, N, ...) -> (B*N, ...) -> (B, K, ...)
                name: t.flatten(0, 1).index_select(0, flat).unflatten(0, places.shape)
                for name, t in self.tensors().items()
            }
        )


@dataclass(frozen=True)
class CacheMemory(VideoMemory):
    """Keys and values per layer under a rule.

    Args:
        rule: which tokens stay; its name and numbers are not part of the state.
        frame_counts: frames seen by each row (B,); `None` before the first frame.
        layers: content of each layer.
        counts: tokens of each row in each layer, (B,) each.
        arriving: the frame on its way through the layers.
    """

    rule: Retention
    frame_counts: Tensor | None = None
    layers: tuple[Cached, ...] = ()
    counts: tuple[Tensor, ...] = ()
    arriving: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def bounded(self) -> bool:
        """Whether the rule bounds the size."""
        return self.rule.bounded

    @property
    def frames(self) -> tuple[int, ...]:
        """See `VideoMemory.frames`."""
        return () if self.frame_counts is None else tuple(self.frame_counts.tolist())

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values, times and frame numbers."""
        return sum(t.nbytes for layer in self.layers for t in layer.tensors().values())

    def tokens(self, layer: int) -> tuple[int, ...]:
        """Tokens of each row in layer `layer`."""
        return tuple(self.counts[layer].tolist())

    def append(self, visual: Tensor, seconds: Tensor) -> CacheMemory:
        """See `VideoMemory.append`."""
        seen = self.frame_counts
        require_frame(visual, seconds, None if seen is None else len(seen))
        if seen is None:
            seen = torch.zeros(len(visual), dtype=torch.int64)
        return replace(self, frame_counts=seen + 1, arriving=(visual, seconds.float()))

    def entries(self, layer: int, project: Project) -> tuple[Entries, CacheMemory]:
        """See `VideoMemory.entries`. Layers are asked in order, each once per frame; without a frame on its way, the
        content is given as it is."""
        if self.arriving is not None:
            return self._extended(layer, *self.arriving, project)
        if layer >= len(self.layers):
            raise ValueError(f"layer {layer} has no content yet; append a frame first")
        return self._given(layer), self

    def _given(self, layer: int) -> Entries:
        held = self.layers[layer]
        valid = right_aligned(self.counts[layer], held.keys.shape[1])
        return Entries(held.keys, held.values, held.seconds, None if valid is None else valid.to(held.keys.device))

    def _extended(self, layer: int, visual: Tensor, seconds: Tensor, project: Project) -> tuple[Entries, CacheMemory]:
        assert self.frame_counts is not None
        keys, values = project(visual)  # (B, P, D)
        number = (self.frame_counts - 1).to(torch.int32)[:, None].expand(-1, visual.shape[1])  # (B, P)
        added = Cached(keys, values, seconds, number.to(keys.device))
        count = torch.full((len(visual),), visual.shape[1])
        if layer < len(self.layers):
            held = self.layers[layer].tensors()
            added = Cached(**{name: torch.cat([held[name], new], dim=1) for name, new in added.tensors().items()})
            count = count + self.counts[layer]
        memory = replace(self, layers=_put(self.layers, layer, added), counts=_put(self.counts, layer, count))
        return memory._given(layer), memory

    def settle(self, layer: int, scores: Tensor) -> CacheMemory:
        """Drop what the rule does not keep; see `VideoMemory.settle`."""
        if self.arriving is None:
            return self
        held, counts = self.layers[layer], self.counts[layer]
        keep = torch.tensor([self.rule.keep_count(layer, n) for n in counts.tolist()])
        if bool((keep >= counts).all()):
            return self
        length = held.keys.shape[1]
        order = torch.arange(length) - (length - counts)[:, None]  # (B, N), negative for padding
        order = order.to(scores.device)
        ranked = self.rule.priorities(Candidates(layer, scores, held.frame, order, counts))  # (B, N)
        ranked = ranked.masked_fill(order < 0, -torch.inf)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, : int(keep.max())]  # (B, K)
        spare = torch.arange(best.shape[1]) >= keep[:, None]  # (B, K): rows that keep fewer are padded in front
        places = best.masked_fill(spare.to(best.device), -1).sort(dim=1).values.clamp(min=0)  # (B, K)
        left = held.gather(places)
        return replace(self, layers=_put(self.layers, layer, left), counts=_put(self.counts, layer, keep))

    def finish(self) -> CacheMemory:
        """See `VideoMemory.finish`."""
        return replace(self, arriving=None)

    def fork(self) -> CacheMemory:
        """See `State.fork`."""
        return self._mapped(lambda t: t.clone())

    def select(self, rows: Sequence[int]) -> CacheMemory:
        """See `State.select`."""
        index = torch.tensor(require_rows(rows, len(self.frames)), dtype=torch.int64)
        return self._mapped(lambda t: t[index.to(t.device)])

    def reset(self, rows: Sequence[int]) -> CacheMemory:
        """See `State.reset`."""
        wanted = require_rows(rows, len(self.frames))
        if not wanted or self.frame_counts is None:
            return self
        fresh = torch.zeros(len(self.frames), dtype=torch.bool)
        fresh[wanted] = True
        counts = tuple(c.masked_fill(fresh, 0) for c in self.counts)
        layers = []
        for held, count in zip(self.layers, counts, strict=True):
            start = held.keys.shape[1] - int(count.max())
            layers.append(Cached(**{name: t[:, start:] for name, t in held.tensors().items()}))
        return replace(self, frame_counts=self.frame_counts.masked_fill(fresh, 0), counts=counts, layers=tuple(layers))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> CacheMemory:
        return replace(
            self,
            frame_counts=None if self.frame_counts is None else function(self.frame_counts),
            layers=tuple(Cached(**{n: function(t) for n, t in c.tensors().items()}) for c in self.layers),
            counts=tuple(function(c) for c in self.counts),
            arriving=None if self.arriving is None else (function(self.arriving[0]), function(self.arriving[1])),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """See `State.state_dict`; between frames only."""
        state = {} if self.frame_counts is None else {"frames": self.frame_counts}
        for number, (held, count) in enumerate(zip(self.layers, self.counts, strict=True)):
            state[f"layers.{number}.count"] = count
            state |= {f"layers.{number}.{name}": t for name, t in held.tensors().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> CacheMemory:
        """See `VideoMemory.load_state_dict`."""
        if not state:
            return CacheMemory(self.rule)
        names = ("keys", "values", "seconds", "frame")
        depth = sum(name.endswith(".count") for name in state)
        wanted = ["frames"] + [f"layers.{n}.{name}" for n in range(depth) for name in (*names, "count")]
        missing = [name for name in wanted if name not in state]
        if missing:
            raise ValueError(f"the saved memory lacks {', '.join(missing)}; it has {', '.join(sorted(state))}")
        return CacheMemory(
            self.rule,
            state["frames"],
            tuple(Cached(*(state[f"layers.{n}.{name}"] for name in names)) for n in range(depth)),
            tuple(state[f"layers.{n}.count"] for n in range(depth)),
        )


def _put(items: tuple[Item, ...], place: int, item: Item) -> tuple[Item, ...]:
    """`items` with `item` at `place`, which is at most one behind the end."""
    if place > len(items):
        raise ValueError(f"layers must be asked in order: {place} was asked before {len(items)}")
    return (*items[:place], item, *items[place + 1 :])
