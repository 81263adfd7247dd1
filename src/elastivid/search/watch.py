"""`Watch`: questions that are known before the video, answered while it streams by, in constant memory.

    with Watch("match.mp4", ["when does the red star spin?"]) as watch:
        watch.run()
        print(watch.answers()[0].text)

Frames are decoded, encoded and appended chunk by chunk. One decoding and one encoding serve all questions; each has a
row of the memory to itself, in which tokens stay that it attends to (AdaCM2, arXiv 2411.12593). One more row keeps
tokens evenly over time, for questions that are asked afterwards.

A watch can be saved at any moment, resumed in another process, continued with another file, and asked at any time.

Letters: B rows, T frames, H W pixels, P tokens of a chunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elastivid.core.answer import Answer, Evidence
from elastivid.core.budget import Budget
from elastivid.core.errors import BudgetError, QuestionError, WeightsError
from elastivid.memory.adacm2 import CappedAdaCM2
from elastivid.memory.base import TokenBytes, VideoMemory
from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import UniformThinning
from elastivid.models.base import dtype_of
from elastivid.models.evidence import stretches
from elastivid.models.tiny_vlm import (
    ABSENT,
    CANNOT_TELL,
    COUNT,
    WHEN,
    Questions,
    TinyVLM,
    chunk_times,
    chunk_tokens,
)
from elastivid.search.printing import clock
from elastivid.video.reader import VideoReader
from elastivid.weights.load import load_asker
from elastivid.weights.writing import write_weights

DEFAULT_MEMORY_BYTES = 8_000_000
RECENT_SHARE = 0.1


@dataclass(frozen=True)
class WatchPlan:
    """What watching may spend.

    Args:
        model: name or file of a tiny video language model.
        memory_bytes: for all questions together and the row for later questions.
        recent_share: share of a row's tokens that belongs to the newest ones.
        precision: see `Runtime`. bfloat16 holds the encoder's weights and what is remembered in half the bytes.

    Raises:
        BudgetError: the memory is not positive.
    """

    model: str = "nano-ask"
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    recent_share: float = RECENT_SHARE
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.memory_bytes < 1:
            raise BudgetError(f"memory_bytes must be >= 1, got {self.memory_bytes}")


def memory_bytes_of(text: str) -> int:
    """Bytes of a budget such as "64MB".

    Raises:
        BudgetError: it is no budget, or says something else than megabytes.
    """
    limits = Budget.parse(text).limits()
    if set(limits) != {"state_megabytes"}:
        raise BudgetError(f"memory takes megabytes, such as 64MB, got {text!r}")
    return int(limits["state_megabytes"] * 1e6)


def fastest_precision() -> str:
    """bfloat16 where the processor multiplies it by itself, else float32."""
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


class Watch:
    """Watches one video, or several that follow each other, for some questions. See the module's text.

    Args:
        source: the file.
        questions: asked before watching; at least one.
        plan: model and memory.

    Raises:
        QuestionError: no question, an empty one, or one that is too long.
        BudgetError: the memory is too small for so many questions; the message names the minimum.
        VideoError: the file cannot be opened.
    """

    def __init__(self, source: str | os.PathLike[str], questions: Sequence[str], plan: WatchPlan | None = None) -> None:
        if isinstance(questions, str) or not questions:
            raise QuestionError(f"questions must be a list of at least one question, got {questions!r}")
        self.plan = plan or WatchPlan()
        self.model: TinyVLM = load_asker(self.plan.model)
        self.encoder = self.model.encoder
        self.questions = tuple(questions)
        self._asked = self.model.questions(self.questions)
        self.encoder.cast(self.plan.precision)
        config = self.model.config
        room = TokenBytes(
            config.qformer.num_cross,
            config.qformer.embed_dim,
            config.chunk_tokens,
            rows=len(self.questions) + 1,
            item_bytes=4 if self.plan.precision == "float32" else 2,
        )
        self.tokens = room.tokens_within(self.plan.memory_bytes)
        held = self.tokens - config.chunk_tokens  # the newest chunk comes on top before anything goes
        self.memory: VideoMemory = CacheMemory(CappedAdaCM2(held, self.plan.recent_share))
        self.even: VideoMemory = CacheMemory(UniformThinning(held))
        self.source = os.fspath(source)
        self._before_seconds = 0.0  # length of the files before this one
        self._chunks = 0  # of this file, taken in
        self._pending: list[np.ndarray] = []  # frames behind the last whole chunk
        self._reader: VideoReader | None = None
        self._open()

    def _open(self) -> None:
        transform = self.encoder.transform.squared(self.model.config.size)
        self._reader = VideoReader(self.source, size=transform.frame_size, filter=transform.filter)
        self._transform = transform

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Answers can still be had."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def watched_seconds(self) -> float:
        """How much has been seen, over all files."""
        config = self.model.config
        step = config.chunk_seconds / config.chunk_frames
        return self._before_seconds + self._chunks * config.chunk_seconds + len(self._pending) * step

    @property
    def nbytes(self) -> int:
        """Bytes of memory held now."""
        return self.memory.nbytes + self.even.nbytes

    def run(
        self, until_seconds: float | None = None, progress: Callable[[float, float | None], None] | None = None
    ) -> None:
        """Watch on: to the end of the file, or until so many seconds of it.

        Args:
            until_seconds: where to stop, in the current file; whole chunks.
            progress: hears seconds watched of this file and its length, where that is known.

        Raises:
            VideoError: the file holds no frame, or a limit is exceeded.
        """
        config = self.model.config
        assert self._reader is not None, "the watch is closed"
        length = self._reader.metadata.duration_seconds
        for frame in self._frames(length):
            self._pending.append(frame)
            if len(self._pending) == config.chunk_frames:
                self._take(np.stack(self._pending))
                if progress is not None:
                    progress(self._chunks * config.chunk_seconds, length)
                if until_seconds is not None and self._chunks * config.chunk_seconds >= until_seconds:
                    return

    def _frames(self, length: float | None) -> Iterator[np.ndarray]:
        config = self.model.config
        step = config.chunk_seconds / config.chunk_frames
        first = self._chunks * config.chunk_frames + len(self._pending)
        count = int((length or 24 * 3600.0) / step) + 1
        if count < first:
            return
        wanted = (np.arange(first, max(count, first + 1)) + 0.5) * step
        if length is not None:  # the last frame stays on display a while; that is not more video
            wanted = wanted[(wanted < length) | (wanted == 0.5 * step)]
        assert self._reader is not None
        for clip in self._reader.iterate_played_at(wanted):
            yield clip.frames[0]

    @torch.inference_mode()
    def _take(self, frames: np.ndarray) -> None:
        """Append one chunk, uint8 (T, H, W, 3)."""
        self.memory, self.even = self._shown(frames)
        self._chunks += 1
        self._pending = []

    def _shown(self, frames: np.ndarray) -> tuple[VideoMemory, VideoMemory]:
        config = self.model.config
        tokens = chunk_tokens(self.encoder, self._transform(frames)[None], config.chunk_patches)  # (1, P, C)
        start = torch.tensor([self._before_seconds + self._chunks * config.chunk_seconds])
        seconds = chunk_times(start, config)[None]  # (1, 1, P)
        rows = len(self.questions)
        with self._in_precision():
            out = self.model.qformer.stream(
                tokens[:, None].expand(rows, -1, -1, -1),
                seconds.expand(rows, -1, -1),
                self.memory,
                text=self.model.question_text(self._asked),
                text_valid=self._asked.valid,
            )
            assert out.memory is not None
            return out.memory, self.model.qformer.absorb(tokens[:, None], seconds, self.even)

    def _in_precision(self) -> AbstractContextManager[Any]:
        """Connector and decoder run under autocast, unless in float32."""
        wanted = dtype_of(self.plan.precision)
        return torch.autocast("cpu", wanted, enabled=wanted != torch.float32)

    @torch.inference_mode()
    def answers(self) -> list[Answer]:
        """What can be said so far, one answer per question.

        Raises:
            QuestionError: nothing has been watched yet.
        """
        memory, _ = self._with_pending()
        return self._read(memory, self._asked, self.questions)

    @torch.inference_mode()
    def ask(self, question: str) -> Answer:
        """Answer a question that comes after the video, from tokens kept evenly over time: what was short may be gone.

        Raises:
            QuestionError: it is empty or too long, or nothing has been watched yet.
        """
        asked = self.model.questions([question])
        _, even = self._with_pending()
        return self._read(even, asked, [question])[0]

    def _with_pending(self) -> tuple[VideoMemory, VideoMemory]:
        """The memories after the frames behind the last whole chunk, the last of them repeated; the watch's own stay
        as they are."""
        if not self._pending:
            if not self.memory.frames:
                raise QuestionError("nothing has been watched yet; call run() first")
            return self.memory, self.even
        frames = [*self._pending, *[self._pending[-1]] * (self.model.config.chunk_frames - len(self._pending))]
        return self._shown(np.stack(frames))

    def _read(self, memory: VideoMemory, asked: Questions, texts: Sequence[str]) -> list[Answer]:
        with self._in_precision():
            return read_answers(self.model, memory, asked, texts, self.watched_seconds)

    def extend(self, source: str | os.PathLike[str]) -> None:
        """Go on with another file, whose time counts on from here. Frames behind the last whole chunk of the file
        before are taken in first."""
        self.close()
        before, pending = self.watched_seconds, self._pending
        if pending:
            self._take(np.stack([*pending, *[pending[-1]] * (self.model.config.chunk_frames - len(pending))]))
        self._before_seconds, self._chunks, self._pending = before, 0, []
        self.source = os.fspath(source)
        self._open()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that is needed to go on, atomically."""
        state = {f"memory.{k}": v.clone() for k, v in self.memory.state_dict().items()}  # some share storage
        state |= {f"even.{k}": v.clone() for k, v in self.even.state_dict().items()}
        if self._pending:
            state["pending"] = torch.from_numpy(np.stack(self._pending))
        metadata = {
            "watch": {
                "source": self.source,
                "questions": self.questions,
                "plan": asdict(self.plan),
                "before_seconds": self._before_seconds,
                "chunks": self._chunks,
                "model_id": self.model.weights_id,
            }
        }
        write_weights(Path(path), state, metadata)

    @classmethod
    def resume(cls, path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Watch:
        """Go on from what `save` wrote.

        Args:
            path: the saved watch.
            source: where the file is now, if it was moved.

        Raises:
            WeightsError: the file is no saved watch, or was made with other weights.
            VideoError: the video cannot be opened.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                held = json.loads((file.metadata() or {})["watch"])
                state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(f"{path} is no saved watch ({error}); save one with Watch.save") from error
        watch = cls(source or held["source"], held["questions"], WatchPlan(**held["plan"]))
        if watch.model.weights_id != held["model_id"]:
            raise WeightsError(f"{path} was made with other weights of {watch.plan.model}; watch the video again")
        for name in ("memory", "even"):
            own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
            setattr(watch, name, getattr(watch, name).load_state_dict(own))
        watch._before_seconds, watch._chunks = held["before_seconds"], held["chunks"]
        watch._pending = list(state["pending"].numpy()) if "pending" in state else []
        return watch


def read_answers(
    model: TinyVLM, memory: VideoMemory, asked: Questions, texts: Sequence[str], now_seconds: float
) -> list[Answer]:
    """Answers from what a memory holds, one per row.

    Args:
        model: reads and writes.
        memory: of as many rows as there are questions, or of one that serves them all.
        asked, texts: the questions.
        now_seconds: how long the video is so far.
    """
    rows = len(texts)
    if len(memory.frames) != rows:
        memory = memory.select([0] * rows)
    out = model.qformer.read(memory, text=model.question_text(asked), text_valid=asked.valid)
    seconds = out.seconds[-1]
    prompts = model.prompts(out, seconds, torch.full((rows,), now_seconds))
    written, certainty = model.write(prompts, asked)
    looked = out.attention[-1].mean(dim=(1, 2))[:, : seconds.shape[1]]  # (B, N)
    if out.valid[-1] is not None:
        looked = looked * out.valid[-1]
    answers = []
    for row, words in enumerate(written):
        found = words[:1] not in (ABSENT.split()[:1], CANNOT_TELL.split()[:1])
        evidence = tuple(stretches(looked[row], seconds[row], model.config.chunk_seconds, now_seconds)) if found else ()
        answers.append(
            Answer(texts[row], in_words(words, evidence), found, round(certainty[row], 4), evidence, now_seconds)
        )
    return answers


def in_words(words: Sequence[str], evidence: Sequence[Evidence]) -> str:
    """The answer with `<when>` and `<count>` read off the evidence."""
    filled = {WHEN: "at a time that is not known", COUNT: "not counted"}
    if evidence:
        number = len(evidence)
        filled[WHEN] = f"from {clock(evidence[0].start_seconds)} to {clock(evidence[0].end_seconds)}"
        filled[COUNT] = {1: "once", 2: "twice"}.get(number, f"{number} times")
    return " ".join(filled.get(word, word) for word in words)
