"""A tiny video language model: a frozen dual encoder, a Q-Former that looks back through a memory, a small decoder.

    chunk   = 8 frames of 4 s -> 5 tokens of the encoder's own space: the whole, and each second by itself
    queries = Q-Former(question; memory of all chunks so far)            AdaCM2, arXiv 2411.12593
    answer  = decoder([queries + where each of them looked; question]), word by word

The question is known before the video: it steers which tokens stay. Nothing grows with the length of the video but the
clock. Two words of an answer are read off the attention instead of being written: `<when>` is the stretch that the
queries look at, `<count>` the number of separate such stretches. Both come from the last layer with cross-attention;
training teaches it to look at the evidence (`evidence_loss`), and at a learned token that stands for "nothing" (the
Q-Former's sink) where the video does not show what is asked about.

Where we depart from InstructBLIP (arXiv 2305.06500), on which AdaCM2 builds: the encoder's tokens are few and pooled;
words come from the encoder's own frozen table, so synonyms are known; the decoder is trained here and knows the words
of one small world; queries also tell when, because the Q-Former itself has no positions in time.

Cost per chunk and question: that of the encoder (shared by all questions) and 0.05 GMACs. Memory: 3,088 bytes per
token in float32 and layer with cross-attention.

Letters: B questions, T chunks, P tokens of a chunk, C channels of the encoder's space, K queries, L words of a
question, D channels, S length of the decoder's sequence, N remembered tokens, V answer words, E events asked about.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import QuestionError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.layers.elastic import merge_heads, split_heads
from elastivid.models.dual import FluxDual
from elastivid.models.qformer import QFormer, QFormerConfig, QFormerOutput
from elastivid.select.motion import GroupDynamic

BEGIN, END = "<begin>", "<end>"
WHEN, COUNT = "<when>", "<count>"
ABSENT, CANNOT_TELL = "not in the video", "i cannot tell"  # told apart from other answers by their first words
SECONDS_APART = 2  # frames of a group: one second at two frames per second
WAVES = 6  # frequencies of the code of a time
ANSWER_WORDS = 8  # most words of an answer, its end included


@dataclass(frozen=True)
class TinyVLMConfig:
    """Sizes of a `TinyVLM`.

    Args:
        encoder: address of the frozen dual encoder.
        encoder_space: its `space_id`; loading compares.
        chunk_frames, chunk_seconds: frames of a chunk and the time they span.
        size: side of a frame in pixels.
        chunk_patches: patch tokens that the encoder keeps of a chunk; a multiple of the seconds in it.
        word_dim: channels of the encoder's table of words.
        decoder_depth: blocks of the decoder.
        qformer: sizes of the Q-Former; its visual channels are those of the encoder's space.
        answers: words that answers are made of; begin and end first.
    """

    encoder: str = "nano"
    encoder_space: str = ""
    chunk_frames: int = 8
    chunk_seconds: float = 4.0
    size: int = 168
    chunk_patches: int = 256
    word_dim: int = 128
    decoder_depth: int = 2
    qformer: QFormerConfig = field(
        default_factory=lambda: QFormerConfig(
            vocab_size=0,
            context_length=32,
            embed_dim=192,
            depth=4,
            num_heads=6,
            hidden_dim=384,
            visual_dim=256,
            num_queries=8,
            num_sinks=1,
        )
    )
    answers: tuple[str, ...] = (BEGIN, END)

    def __post_init__(self) -> None:
        object.__setattr__(self, "answers", tuple(self.answers))  # JSON has lists

    @property
    def chunk_tokens(self) -> int:
        """Tokens P of a chunk."""
        return 1 + self.chunk_frames // SECONDS_APART

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TinyVLMConfig:
        """Config from what `dataclasses.asdict` made of one."""
        return cls(**{**values, "qformer": QFormerConfig(**values["qformer"])})

    def build(self) -> TinyVLM:
        """An untrained model of these sizes, without its encoder."""
        return TinyVLM(self)


class DecoderBlock(nn.Module):
    """Pre-norm block: masked self-attention, then a GELU MLP, each added to its input."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map x (B, S, D) to (B, S, D); `mask` bool (B, 1, S, S), true where a row may look."""
        q, k, v = (split_heads(y, self.head_dim) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        logits = (q @ k.transpose(2, 3) * self.head_dim**-0.5).masked_fill(~mask, -torch.inf)  # (B, A, S, S)
        x = x + self.proj(merge_heads(logits.softmax(dim=-1) @ v))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


@dataclass(frozen=True)
class Questions:
    """Questions as the model takes them.

    Args:
        words: rows of the encoder's table (B, L, word_dim).
        valid: bool (B, L), false for padding.
    """

    words: Tensor
    valid: Tensor

    def select(self, rows: Sequence[int]) -> Questions:
        """Questions `rows`."""
        return Questions(self.words[list(rows)], self.valid[list(rows)])


class TinyVLM(nn.Module):
    """The model without its encoder; see the module's text. Build it from a `TinyVLMConfig`."""

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.qformer.embed_dim
        self.qformer: QFormer = config.qformer.build()
        self.from_word = nn.Linear(config.word_dim, dim)
        self.from_place = nn.Linear(2 + 2 * WAVES, dim)
        self.from_query = nn.Linear(dim, dim)
        self.question_kind = nn.Parameter(torch.zeros(dim))
        self.answer_words = nn.Embedding(len(config.answers), dim)
        length = config.qformer.num_queries + config.qformer.context_length + ANSWER_WORDS
        self.positions = nn.Parameter(torch.zeros(length, dim))
        self.blocks = nn.ModuleList(DecoderBlock(dim, config.qformer.num_heads) for _ in range(config.decoder_depth))
        self.final_norm = nn.LayerNorm(dim)
        nn.init.normal_(self.answer_words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self._encoder: tuple[FluxDual, ...] = ()  # in a tuple, so that it is no part of this module's weights

    @property
    def encoder(self) -> FluxDual:
        """The frozen dual encoder.

        Raises:
            WeightsError: none was attached.
        """
        if not self._encoder:
            raise WeightsError("this model has no encoder yet; load it by name, or attach one")
        return self._encoder[0]

    def attach(self, encoder: FluxDual) -> TinyVLM:
        """Take `encoder` for frames and words; returns the model.

        Raises:
            WeightsError: its space is not the one that the model was trained on.
        """
        wanted = self.config.encoder_space
        if wanted and encoder.space_id != wanted:
            raise WeightsError(
                f"this model was trained on the space {wanted} of {self.config.encoder}, got {encoder.space_id}; "
                "use the encoder it came with"
            )
        self._encoder = (encoder,)
        return self

    @property
    def weights_id(self) -> str:
        """First 16 hexadecimal digits of the hash of every tensor and of the encoder's space."""
        digest = hashlib.sha256(self.config.encoder_space.encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def questions(self, texts: Sequence[str]) -> Questions:
        """Questions for this model; see `question_words`."""
        return question_words(self.encoder, texts, self.config)

    def question_text(self, questions: Questions) -> Tensor:
        """Words (B, L, D) as the Q-Former takes them."""
        out: Tensor = self.from_word(questions.words)
        return out

    def watch_whole(self, visual: Tensor, questions: Questions) -> QFormerOutput:
        """One pass over all tokens of short videos, (B, N, C): what training sees. Equal to keeping all."""
        return self.qformer(visual, text=self.question_text(questions), text_valid=questions.valid, weights=True)

    def prompts(self, out: QFormerOutput, seconds: Tensor, now_seconds: Tensor) -> Tensor:
        """Soft prompts (B, K, D): what the queries read, and when it was.

        Args:
            out: of the Q-Former, with attention.
            seconds: time of each token that the last cross-attention saw (B, N).
            now_seconds: how long each video is so far (B,).
        """
        assert out.queries is not None
        looked = out.attention[-1].mean(dim=1)[..., : seconds.shape[1]]  # (B, K, N): sinks come last
        place = time_code(seconds / now_seconds[:, None].clamp(min=1e-6))  # (B, N, 1 + 2 WAVES)
        found = looked.sum(dim=-1, keepdim=True)  # (B, K, 1)
        where = looked @ place.to(looked.dtype) / found.clamp(min=1e-4)  # (B, K, 1 + 2 WAVES)
        prompts: Tensor = self.from_query(out.queries) + self.from_place(torch.cat([where, found], dim=-1))
        return prompts

    def decode(self, prompts: Tensor, questions: Questions, ids: Tensor) -> Tensor:
        """Logits (B, A, V) of the word after each of the answer words `ids` (B, A)."""
        question = self.from_word(questions.words) + self.question_kind
        x = torch.cat([prompts, question, self.answer_words(ids)], dim=1)  # (B, S, D)
        length, prefix = x.shape[1], x.shape[1] - ids.shape[1]
        place = torch.arange(length, device=x.device)
        place = torch.where(place < prefix, place, place - prefix + len(self.positions) - ANSWER_WORDS)
        x = x + self.positions[place]
        sees = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        sees[:prefix, :prefix] = True  # prompts and question see each other
        there = torch.cat(
            [questions.valid.new_ones(len(x), prompts.shape[1]), questions.valid, questions.valid.new_ones(ids.shape)],
            dim=1,
        )  # (B, S)
        mask = sees[None, None] & there[:, None, None]  # (B, 1, S, S)
        for block in self.blocks:
            x = block(x, mask)
        return self.final_norm(x[:, prefix:]) @ self.answer_words.weight.T  # (B, A, V)

    @torch.no_grad()
    def write(self, prompts: Tensor, questions: Questions) -> tuple[list[list[str]], list[float]]:
        """The likeliest answer, word by word, and the product of the words' probabilities."""
        names = self.config.answers
        ids = torch.full((len(prompts), 1), names.index(BEGIN), device=prompts.device)
        certainty = torch.ones(len(prompts), device=prompts.device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
        for _ in range(ANSWER_WORDS - 1):
            best = self.decode(prompts, questions, ids)[:, -1].float().softmax(dim=-1).max(dim=-1)
            certainty = torch.where(ended, certainty, certainty * best.values)
            ids = torch.cat([ids, best.indices[:, None]], dim=1)
            ended = ended | (best.indices == names.index(END))
            if bool(ended.all()):
                break
        written = []
        for row in ids[:, 1:].tolist():
            words = [names[i] for i in row]
            written.append(words[: words.index(END)] if END in words else words)
        return written, certainty.tolist()


def question_words(encoder: FluxDual, texts: Sequence[str], config: TinyVLMConfig) -> Questions:
    """Questions as rows of the encoder's table of words, weighted as the table has them.

    Raises:
        QuestionError: a question is empty or longer than the context.
    """
    tower, most = encoder.text, config.qformer.context_length
    rows = []
    for text in texts:
        ids = tower.tokenizer.token_ids([text])[0] if text.strip() else []
        if not ids:
            raise QuestionError(f"a question must hold at least one word, got {text!r}")
        if len(ids) >= most:
            raise QuestionError(f"the question has {most} tokens or more, at most {most - 1} fit: {text[:60]!r}...")
        rows.append(torch.tensor(ids))
    lengths = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, L)
    words = tower.table[padded].float()  # (B, L, word_dim)
    valid = torch.arange(padded.shape[1]) < lengths[:, None]  # (B, L)
    return Questions(F.normalize(words, dim=-1) * math.sqrt(words.shape[-1]) * valid[..., None], valid)


def time_code(share: Tensor) -> Tensor:
    """Code (..., 1 + 2 WAVES) of times in 0 to 1: the time itself and waves of it."""
    angle = share[..., None] * math.pi * 2.0 ** torch.arange(WAVES, device=share.device)  # (..., WAVES)
    return torch.cat([share[..., None], angle.sin(), angle.cos()], dim=-1)


def evidence_loss(attention: Sequence[Tensor], owner: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy between where queries look and where they should, mean over layers, queries and questions.

    Args:
        attention: per layer (B, A, K, N + 1), the sink last.
        owner: which event each token belongs to: 0 for none, 1 to E, int (B, N).
        wanted: share of attention that each query should give each event, and last the sink, (B, K, E + 1).
    """
    events = wanted.shape[-1] - 1
    belongs = F.one_hot(owner, events + 1)[..., 1:].float()  # (B, N, E)
    losses = []
    for layer in attention:
        mean = layer.float().mean(dim=1)  # (B, K, N + 1)
        mass = torch.cat([mean[..., :-1] @ belongs, mean[..., -1:]], dim=-1)  # (B, K, E + 1)
        losses.append(-(wanted * mass.clamp(min=1e-9).log()).sum(dim=-1).mean())
    return torch.stack(losses).mean()


def chunk_tokens(encoder: FluxDual, video: Tensor, patches: int) -> Tensor:
    """Tokens (B, P, C) of chunks (B, T, 3, H, W) in the encoder's space, each of length sqrt(C): first the whole chunk,
    then its seconds.

    The encoder's selector keeps equally many patches of each stretch, so each second is a stretch of its own.
    """
    groups = video.shape[1] // SECONDS_APART
    out = encoder.video(video, point=OperatingPoint(tokens=patches, selector=GroupDynamic(groups)))
    assert out.tokens is not None
    parts = out.tokens.x[:, 1:].reshape(len(video) * groups, patches // groups, -1)  # (B, M, d) -> (B*G, M/G, d)
    seconds = encoder.video.pool_norm(encoder.video.pools[0](parts)).unflatten(0, (len(video), groups))  # (B, G, C)
    tokens = torch.cat([out.embedding[:, None], seconds], dim=1).float()  # (B, 1 + G, C)
    return F.normalize(tokens, dim=-1) * math.sqrt(tokens.shape[-1])


def chunk_times(start_seconds: Tensor, config: TinyVLMConfig) -> Tensor:
    """Time of each token (..., P) of chunks that start at `start_seconds` (...): the middle of what it shows."""
    seconds = config.chunk_tokens - 1
    width = config.chunk_seconds / seconds
    places = torch.tensor([config.chunk_seconds / 2, *(width * (g + 0.5) for g in range(seconds))])
    return start_seconds[..., None] + places


PRESETS = {"nano": TinyVLMConfig()}
