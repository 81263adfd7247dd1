"""Q-Former: learned queries that read visual tokens, and a text that shares their self-attention.

Papers: BLIP-2, arXiv 2301.12597; with instructions, InstructBLIP, arXiv 2305.06500; over long video, MA-LMM,
arXiv 2404.05726, and AdaCM2, arXiv 2411.12593.

    x = norm([queries; words + positions])
    x = norm(x + attend(x, mask));  queries = norm(queries + attend(queries, visual))     the latter in every n-th layer
    queries = norm(queries + mlp_q(queries));  text = norm(text + mlp_t(text))

Text never looks at the visual tokens, queries have no positions, and norms come after the sums (BERT). Three masks say
who sees whom (`qformer_mask`): "unimodal" for contrast, "bidirectional" for matching and instructions,
"multimodal_causal" for writing.

A video passes frame by frame (`stream`): every cross-attention layer looks back at a `VideoMemory`
(`elastivid.memory`), and queries start anew in every frame (as in MA-LMM; pass the last ones as `queries` to carry
them). With `KeepAll` the last frame's output is that of ordinary cross-attention over all frames.

Where we depart: no dropout; masked places get no attention at all instead of a logit of -10000; `num_sinks` learned
visual tokens that are always there and never remembered (none in the papers), to look at when nothing fits.

Cost per frame and layer: 12 M D^2 + 2 M^2 D for M queries and words with hidden channels of 4 D, and where there is
cross-attention 2 K D^2 + 2 P C D + 2 K N D for P new and N remembered tokens.

Letters: B batch, T frames, P visual tokens of a frame, C their channels, K queries, M queries and words, L words,
D channels, A heads, N visual tokens that a layer attends to, S slots of a bank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import PointError, WeightsError
from elastivid.layers.elastic import merge_heads, split_heads
from elastivid.memory.base import Entries, VideoMemory

MASKS = ("unimodal", "bidirectional", "multimodal_causal")


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a `QFormer`.

    Args:
        vocab_size: rows of the table of words; 0 for a Q-Former without words of its own.
        context_length: rows of the table of positions: most words of a text.
        embed_dim, depth, num_heads: channels D, layers, attention heads.
        hidden_dim: hidden channels of an MLP.
        visual_dim: channels C of a visual token.
        num_queries: learned queries K.
        cross_every: layers 0, n, 2n, ... attend to visual tokens.
        takes_text: whether there is an MLP for text in every layer.
        num_sinks: learned visual tokens that are always there.

    Raises:
        ValueError: heads do not divide the channels, or words without a place for them.
    """

    vocab_size: int = 30_523
    context_length: int = 512
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_dim: int = 3072
    visual_dim: int = 1408
    num_queries: int = 32
    cross_every: int = 2
    takes_text: bool = True
    num_sinks: int = 0

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads must divide embed_dim {self.embed_dim}, got {self.num_heads}")
        if self.vocab_size and not self.takes_text:
            raise ValueError(f"without text there are no words: vocab_size must be 0, got {self.vocab_size}")

    def build(self) -> QFormer:
        """An untrained Q-Former of these sizes."""
        return QFormer(self)

    @property
    def num_cross(self) -> int:
        """Layers with cross-attention."""
        return len(range(0, self.depth, self.cross_every))

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], num_queries: int, *, takes_text: bool, words: bool) -> Any:
        """Our config for a `Blip2QFormerConfig` or `InstructBlipQFormerConfig` of transformers, as a dict.

        Raises:
            WeightsError: an activation other than GELU, or no absolute positions.
        """
        if config.get("hidden_act", "gelu") != "gelu":
            raise WeightsError(f"Q-Former activations must be gelu, got {config['hidden_act']!r}")
        return cls(
            vocab_size=config["vocab_size"] if words else 0,
            context_length=config["max_position_embeddings"],
            embed_dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            hidden_dim=config["intermediate_size"],
            visual_dim=config["encoder_hidden_size"],
            num_queries=num_queries,
            cross_every=config["cross_attention_frequency"],
            takes_text=takes_text,
        )


@dataclass(frozen=True)
class QFormerOutput:
    """What a pass returns.

    Args:
        queries: (B, K, D), or `None` for a text alone.
        text: (B, L, D), or `None` without text.
        attention: of every layer with cross-attention, what each query gave each visual token, (B, A, K, N), sinks
            last; empty unless asked for or streamed.
        seconds: time of those visual tokens, sinks left out, (B, N) for each of these layers, when streamed.
        valid: which of those tokens count, bool (B, N) or `None` for all, when streamed.
        memory: the memory after the frame, when streamed.
    """

    queries: Tensor | None
    text: Tensor | None = None
    attention: tuple[Tensor, ...] = ()
    seconds: tuple[Tensor, ...] = ()
    valid: tuple[Tensor | None, ...] = ()
    memory: VideoMemory | None = None


def qformer_mask(kind: str, num_queries: int, num_words: int, text_valid: Tensor | None = None) -> Tensor:
    """Which rows attend to which columns, queries before words: bool (B or 1, 1, M, M).

    Args:
        kind: "unimodal" (queries and text do not see each other), "bidirectional" (all see all) or
            "multimodal_causal" (queries see queries, a word sees all queries and the words up to itself).
        num_queries, num_words: K and L.
        text_valid: (B, L), false for padding, which nobody sees.

    Raises:
        ValueError: there is no such kind.
    """
    if kind not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {kind!r}")
    is_text = torch.arange(num_queries + num_words) >= num_queries  # (M,)
    rows, columns = is_text[:, None], is_text[None, :]
    if kind == "unimodal":
        sees = rows == columns
    elif kind == "bidirectional":
        sees = torch.ones(len(is_text), len(is_text), dtype=torch.bool)
    else:
        sees = ~columns | (rows & torch.ones_like(rows & columns).tril())
    sees = sees[None, None]  # (1, 1, M, M)
    if text_valid is None:
        return sees
    queries = text_valid.new_ones(len(text_valid), num_queries, dtype=torch.bool)
    return sees.to(text_valid.device) & torch.cat([queries, text_valid.bool()], dim=1)[:, None, None]  # (B, 1, M, M)


class QFormerAttention(nn.Module):
    """Multi-head attention from D channels to tokens of C channels, with biases.

    Args:
        dim: channels D.
        source_dim: channels C of what is attended to.
        num_heads: heads A.
    """

    def __init__(self, dim: int, source_dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(source_dim, dim)
        self.value = nn.Linear(source_dim, dim)
        self.proj = nn.Linear(dim, dim)

    def project(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, N, D) of `source` (B, N, C)."""
        return self.key(source), self.value(source)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map x (B, M, D) to (B, M, D); `mask` bool, broadcast to (B, A, M, N), true where attention may go."""
        if x.is_cpu and torch.is_grad_enabled():  # the gradient of the fused kernel is slower than two products
            return self.weighed(x, keys, values, mask)[0]
        q, k, v = (split_heads(y, self.head_dim) for y in (self.query(x), keys, values))  # (B, A, ., D/A)
        out: Tensor = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
        return out

    def weighed(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `forward`, with the attention (B, A, M, N) beside it."""
        q, k, v = (split_heads(y, self.head_dim) for y in (self.query(x), keys, values))  # (B, A, ., D/A)
        logits = q @ k.transpose(2, 3) * self.head_dim**-0.5  # (B, A, M, N)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        attention = logits.softmax(dim=-1)
        return self.proj(merge_heads(attention @ v)), attention


class QFormerLayer(nn.Module):
    """Self-attention over queries and text, cross-attention of the queries, an MLP for either."""

    cross: QFormerAttention | None
    cross_norm: nn.LayerNorm | None

    def __init__(self, config: QFormerConfig, *, cross: bool) -> None:
        super().__init__()
        dim, hidden = config.embed_dim, config.hidden_dim
        self.attn = QFormerAttention(dim, dim, config.num_heads)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.cross = QFormerAttention(dim, config.visual_dim, config.num_heads) if cross else None
        self.cross_norm = nn.LayerNorm(dim, eps=1e-12) if cross else None
        self.query_fc1, self.query_fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.query_norm = nn.LayerNorm(dim, eps=1e-12)
        if config.takes_text:
            self.text_fc1, self.text_fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
            self.text_norm = nn.LayerNorm(dim, eps=1e-12)

    def mixed(self, x: Tensor, past: Tensor | None, mask: Tensor | None) -> Tensor:
        """Self-attention of x (B, M, D), also over hidden states `past` (B, S*M, D) in front; mask (B, 1, M, N)."""
        keys, values = self.attn.project(x if past is None else torch.cat([past, x], dim=1))  # (B, S*M + M, D)
        out: Tensor = self.norm(x + self.attn(x, keys, values, mask))
        return out

    def fed(self, x: Tensor, num_queries: int) -> Tensor:
        """The MLPs: the first `num_queries` tokens pass that of the queries, the others that of the text."""
        queries, text = x[:, :num_queries], x[:, num_queries:]
        if num_queries:
            queries = self.query_norm(queries + self.query_fc2(F.gelu(self.query_fc1(queries))))
        if text.shape[1]:
            text = self.text_norm(text + self.text_fc2(F.gelu(self.text_fc1(text))))
        return torch.cat([queries, text], dim=1) if text.shape[1] else queries  # (B, M, D)


class QFormer(nn.Module):
    """The module; see the text at the top. Build it from a `QFormerConfig`."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.queries = nn.Parameter(torch.empty(1, config.num_queries, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        self.layers = nn.ModuleList(
            QFormerLayer(config, cross=layer % config.cross_every == 0) for layer in range(config.depth)
        )
        self.words = nn.Embedding(config.vocab_size, dim) if config.vocab_size else None
        self.positions = nn.Parameter(torch.empty(config.context_length, dim)) if config.takes_text else None
        self.sinks = nn.Parameter(torch.empty(1, config.num_sinks, config.visual_dim)) if config.num_sinks else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
        for table in (self.queries, self.positions, self.sinks):
            if table is not None:
                nn.init.normal_(table, std=0.02)  # equal queries would stay equal for ever

    @property
    def blocks(self) -> list[QFormerLayer]:
        """The layers, in order."""
        return cast("list[QFormerLayer]", list(self.layers))

    def embed_text(self, ids: Tensor) -> Tensor:
        """Words (B, L, D) of token ids (B, L), without positions.

        Raises:
            PointError: this Q-Former has no words.
        """
        if self.words is None:
            raise PointError("this Q-Former has no table of words; give it embedded words or no text")
        out: Tensor = self.words(ids)
        return out

    def forward(
        self,
        visual: Tensor | None = None,
        *,
        text: Tensor | None = None,
        text_valid: Tensor | None = None,
        mask: str = "bidirectional",
        queries: Tensor | None = None,
        weights: bool = False,
    ) -> QFormerOutput:
        """One pass over an image, or over a text alone.

        Args:
            visual: visual tokens (B, N, C); `None` passes the text without queries.
            text: embedded words (B, L, D); positions are added here.
            text_valid: (B, L), false for padding.
            mask: see `qformer_mask`.
            queries: (B, K, D) instead of the learned ones.
            weights: also return the attention to visual tokens.

        Raises:
            PointError: neither visual tokens nor text, or a text too long or not taken.
        """
        x, num_queries, sees = self._start(visual, text, text_valid, mask, queries)
        attention = []
        source = None if visual is None else self._with_sinks(visual)
        for layer in self.blocks:
            x = layer.mixed(x, None, sees)
            if layer.cross is not None and source is not None:
                x, given = self._cross(layer, x, num_queries, *layer.cross.project(source), None, weights)
                attention.append(given)
            x = layer.fed(x, num_queries)
        kept = tuple(a for a in attention if a is not None)
        return QFormerOutput(x[:, :num_queries] if num_queries else None, _text(x, num_queries), kept)

    def stream(
        self,
        visual: Tensor,
        seconds: Tensor,
        memory: VideoMemory,
        *,
        text: Tensor | None = None,
        text_valid: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> QFormerOutput:
        """Show frames one after another to the memory.

        Args:
            visual: (B, T, P, C), T >= 1; how a video is cut into calls does not matter.
            seconds: time of each token (B, T, P).
            memory: what came before; a fresh one at the start.
            text, text_valid, queries: see `forward`.

        Returns:
            What the last frame gives, and the memory after it.
        """
        start = self._start(self.queries.expand(len(visual), -1, -1), text, text_valid, "bidirectional", queries)
        judged = not memory.holds_hidden  # then only attention to visual tokens matters before the last frame
        first = self.blocks[0].mixed(start[0], None, start[2]) if judged else None
        for frame in range(visual.shape[1]):
            memory = memory.append(visual[:, frame], seconds[:, frame])
            out = self._pass(memory, start, first, whole=not judged or frame == visual.shape[1] - 1)
            assert out.memory is not None
            memory = out.memory.finish()
        return QFormerOutput(out.queries, out.text, out.attention, out.seconds, out.valid, memory)

    def absorb(self, visual: Tensor, seconds: Tensor, memory: VideoMemory) -> VideoMemory:
        """Take in frames as `stream` does, for a memory whose rule looks at no scores and keeps no hidden states:
        only keys and values are computed."""
        crossing = () if memory.holds_features else self.blocks[:: self.config.cross_every]
        for frame in range(visual.shape[1]):
            memory = memory.append(visual[:, frame], seconds[:, frame])
            for number, layer in enumerate(crossing):
                assert layer.cross is not None
                entries, memory = memory.entries(number, layer.cross.project)
                memory = memory.settle(number, entries.seconds)
            memory = memory.finish()
        return memory

    def read(
        self,
        memory: VideoMemory,
        *,
        text: Tensor | None = None,
        text_valid: Tensor | None = None,
        queries: Tensor | None = None,
    ) -> QFormerOutput:
        """One pass over what the memory holds, and over the frame on its way if there is one; see `stream`."""
        start = self._start(self.queries.expand(len(memory.frames), -1, -1), text, text_valid, "bidirectional", queries)
        return self._pass(memory, start, None, whole=True)

    def _pass(
        self, memory: VideoMemory, start: tuple[Tensor, int, Tensor | None], first: Tensor | None, *, whole: bool
    ) -> QFormerOutput:
        """`read` from what `_start` gave. `first` is what the first self-attention makes of it, where that is known;
        unless `whole`, the pass ends behind the last cross-attention and its outputs are of no use."""
        x, num_queries, sees = start
        attention, times, valid = [], [], []
        for number, layer in enumerate(self.blocks):
            seen, before = memory.past(number), x
            past, mask = (None, sees) if seen is None else _with_past(*seen, sees, x)
            x = first if number == 0 and first is not None else layer.mixed(x, past, mask)
            memory = memory.remember(number, before)
            if layer.cross is not None:
                x, memory, entries, given = self._look_back(number // self.config.cross_every, layer, x, memory)
                attention.append(given)
                times.append(entries.seconds)
                valid.append(entries.valid)
                if not whole and len(attention) == self.config.num_cross:
                    break
            x = layer.fed(x, num_queries)
        return QFormerOutput(
            x[:, :num_queries], _text(x, num_queries), tuple(attention), tuple(times), tuple(valid), memory
        )

    def _look_back(
        self, cross: int, layer: QFormerLayer, x: Tensor, memory: VideoMemory
    ) -> tuple[Tensor, VideoMemory, Entries, Tensor]:
        """Cross-attention number `cross` over a memory, which hears what was attended to."""
        assert layer.cross is not None
        entries, memory = memory.entries(cross, layer.cross.project)
        keys, values, there = entries.keys, entries.values, entries.valid
        if self.sinks is not None:
            more = layer.cross.project(self.sinks.expand(len(x), -1, -1))
            keys, values = torch.cat([keys, more[0]], dim=1), torch.cat([values, more[1]], dim=1)  # (B, N+S, D)
            there = None if there is None else F.pad(there, (0, self.sinks.shape[1]), value=True)
        x, given = self._cross(layer, x, self.config.num_queries, keys, values, there, True)
        assert given is not None
        scores = given[..., : entries.keys.shape[1]].float().sum(dim=(1, 2))  # (B, N)
        return x, memory.settle(cross, scores), entries, given

    def _with_sinks(self, visual: Tensor) -> Tensor:
        if self.sinks is None:
            return visual
        return torch.cat([visual, self.sinks.expand(len(visual), -1, -1)], dim=1)  # (B, N + sinks, C)

    def _cross(
        self,
        layer: QFormerLayer,
        x: Tensor,
        num_queries: int,
        keys: Tensor,
        values: Tensor,
        valid: Tensor | None,
        weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        assert layer.cross is not None
        assert layer.cross_norm is not None
        queries, given = x[:, :num_queries], None
        mask = None if valid is None else valid[:, None, None]  # (B, 1, 1, N)
        if weights:
            seen, given = layer.cross.weighed(queries, keys, values, mask)
        else:
            seen = layer.cross(queries, keys, values, mask)
        queries = layer.cross_norm(queries + seen)
        return torch.cat([queries, x[:, num_queries:]], dim=1), given  # (B, M, D)

    def _start(
        self, visual: Tensor | None, text: Tensor | None, text_valid: Tensor | None, mask: str, queries: Tensor | None
    ) -> tuple[Tensor, int, Tensor | None]:
        """Tokens (B, M, D), how many of them are queries, and who sees whom."""
        parts, num_queries, num_words = [], 0, 0
        if visual is not None:
            first = self.queries if queries is None else queries
            parts.append(first.expand(len(visual), -1, -1))
            num_queries = first.shape[1]
        if text is not None:
            if self.positions is None:
                raise PointError("this Q-Former takes no text; leave it out")
            num_words = text.shape[1]
            if num_words > len(self.positions):
                raise PointError(f"the text has {num_words} tokens, at most {len(self.positions)} fit; shorten it")
            parts.append(text + self.positions[:num_words])
        if not parts:
            raise PointError("a Q-Former needs visual tokens, a text or both, got neither")
        sees = None
        if num_words and (text_valid is not None or mask != "bidirectional"):
            sees = qformer_mask(mask, num_queries, num_words, text_valid).to(parts[0].device)
        return self.norm(torch.cat(parts, dim=1)), num_queries, sees


def _text(x: Tensor, num_queries: int) -> Tensor | None:
    return x[:, num_queries:] if x.shape[1] > num_queries else None


def _with_past(past: Tensor, valid: Tensor | None, sees: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Hidden states (B, S, M, D) as (B, S*M, D), and the mask (B, 1, M, M) widened to them: (B, 1, M, S*M + M)."""
    rows, slots, length, _ = past.shape
    flat = past.flatten(1, 2)  # (B, S*M, D)
    if sees is None and valid is None:
        return flat, None
    now = torch.ones(1, 1, length, length, dtype=torch.bool, device=x.device) if sees is None else sees
    now = now.expand(rows, 1, length, length)
    before = now.repeat(1, 1, 1, slots)  # (B, 1, M, S*M): slot after slot
    if valid is not None:
        before = before & valid.to(x.device).repeat_interleave(length, dim=1)[:, None, None]  # (B, 1, 1, S*M)
    return flat, torch.cat([before, now], dim=-1)


_RENAMED = (
    ("bert.", ""),
    ("embeddings.LayerNorm.", "norm."),
    ("embeddings.layernorm.", "norm."),
    ("layernorm.", "norm."),
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.weight", "positions"),
    ("encoder.layer.", "layers."),
    (".crossattention.output.LayerNorm.", ".cross_norm."),
    (".crossattention.output.dense.", ".cross.proj."),
    (".crossattention.self.", ".cross."),
    (".crossattention.attention.", ".cross."),
    (".attention.output.LayerNorm.", ".norm."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.self.", ".attn."),
    (".attention.attention.", ".attn."),
    (".intermediate_query.dense.", ".query_fc1."),
    (".output_query.dense.", ".query_fc2."),
    (".output_query.LayerNorm.", ".query_norm."),
    (".intermediate.dense.", ".text_fc1."),
    (".output.dense.", ".text_fc2."),
    (".output.LayerNorm.", ".text_norm."),
)


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for a Q-Former of LAVIS or transformers, names without the prefix `Qformer.` or `qformer.`.

    The learned queries stand beside the Q-Former there: add them as `queries`. What only counts positions is left out.
    """
    converted = {}
    for name, value in state.items():
        if name.endswith("position_ids"):
            continue
        ours = name
        for old, new in _RENAMED:
            ours = new + ours.removeprefix(old) if ours.startswith(old) else ours.replace(old, new)
        converted[ours] = value
    return converted
