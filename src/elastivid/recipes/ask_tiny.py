"""Train the tiny video language model of `elastivid ask`: connector and decoder above the frozen `nano`.

    elastivid train ask_tiny --out runs/ask

A stock of rendered events is encoded once (`elastivid.data.asking`, kept in `cache`); videos with a question each are
put together from it. The loss is that of the answer's words plus where the queries should look
(`elastivid.models.tiny_vlm.evidence_loss`). Training sees all tokens of a video; memories are for those who ask.

Stages: `short` (videos of 48 to 384 frames, full of near misses: what to look for), then `long` (to 9,984 frames: how
much looks alike where there is much to look at, and when to say that nothing is there).

Full scale: 2,000 events (3 minutes on one free core), then 2,600 steps of 32 questions at 0.13 s and 1,000 at 0.3 s.
Expected: docs/benchmarks/memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from elastivid.core.point import OperatingPoint
from elastivid.data.asking import (
    SLOT_CHUNKS,
    Asked,
    Drawing,
    Stock,
    draw_asked,
    make_stock,
    owners_of,
    tokens_of,
    wanted_of,
)
from elastivid.data.questions import KINDS, OTHER, answer_words
from elastivid.models.dual import FluxDual
from elastivid.models.tiny_vlm import (
    BEGIN,
    END,
    Questions,
    TinyVLM,
    TinyVLMConfig,
    chunk_times,
    evidence_loss,
    question_words,
)
from elastivid.train.order import mixed
from elastivid.train.recipe import Exported, Recipe, RecipeConfig, Row
from elastivid.train.stages import Stage
from elastivid.weights.load import load

SHORT = (6, 9, 12, 18, 24, 36, 48)  # chunks of a video
LONG = (9, 18, 36, 72, 144, 288, 576, 1248)
ABSENT_SHARE = 0.3  # of questions whose evidence is not there
NEAR_SHARE = 0.3  # of the other slots with a near miss for certain
ASKED = {**dict.fromkeys(KINDS, 1.0), OTHER: 0.25}  # how often, relative to each other
HARDER = ({"motion": 3.0}, {"motion": 1.5, "count": 1.5, "order": 4.0})  # more often in a stage: what is learned late


@dataclass(frozen=True)
class AskTinyConfig(RecipeConfig):
    """Settings of `ask_tiny`.

    Args:
        steps: optimizer steps of the stages `short` and `long`; with `minutes` their shares of the time.
        learning_rate: peak.
        cache: folder for the encoded stocks.
        backgrounds, events: of the stock: how many backgrounds, and events on each.
        lengths: of either stage: chunks of the videos of a batch, one drawn with odds of 1 / sqrt(chunks).
        evidence_weight: of the loss of where to look.
        questions: questions per kind of an evaluation, on a stock of its own.
    """

    batch_size: int = 32
    precision: str = "bfloat16"
    num_workers: int = 0
    steps: tuple[int, int] = (2600, 1000)
    learning_rate: float = 1e-3
    cache: Path = Path("runs/ask_stock")
    backgrounds: int = 80
    events: int = 25
    lengths: tuple[tuple[int, ...], tuple[int, ...]] = (SHORT, LONG)
    evidence_weight: float = 0.5
    questions: int = 40


class Drawn(Dataset):
    """Videos with questions by position; a batch shares its length."""

    def __init__(self, stock: Stock, config: AskTinyConfig, model: TinyVLMConfig, stage: int) -> None:
        self.stock, self.config, self.model, self.stage = stock, config, model, stage
        chance = 1 / np.sqrt(np.array(config.lengths[stage], dtype=float))
        self.chance = chance / chance.sum()
        odds = np.array(list({**ASKED, **HARDER[stage]}.values()))
        self.odds = odds / odds.sum()

    def __getitem__(self, position: int) -> dict[str, Any]:
        seed, stage = self.config.seed, self.stage
        of_batch = np.random.default_rng(mixed(seed, 1, stage, position // self.config.batch_size))
        rng = np.random.default_rng(mixed(seed, 2, stage, position))
        chunks = int(of_batch.choice(self.config.lengths[stage], p=self.chance))
        kind = str(rng.choice(list(ASKED), p=self.odds))
        asked = draw_asked(self.stock, rng, Drawing(chunks, absent=ABSENT_SHARE, near=NEAR_SHARE), kind)
        return sample_of(self.stock, asked, self.model, rng)


def sample_of(stock: Stock, asked: Asked, config: TinyVLMConfig, rng: np.random.Generator | None) -> dict[str, Any]:
    """Tensors of a video with its question; with `rng`, some pieces that show nothing asked about become nonsense, so
    that a model learns to pass over what it has never seen."""
    visual, owner = tokens_of(stock, asked), owners_of(stock, asked, config)
    if rng is not None and rng.random() < 0.3:
        nonsense = torch.from_numpy(rng.random(len(visual)) < 0.3) & ~owner.bool().any(dim=1)
        noise = torch.from_numpy(rng.standard_normal(visual.shape, dtype=np.float32))
        mixture = float(rng.uniform(0.3, 1.0)) * visual + float(rng.uniform(0.5, 1.5)) * noise
        mixture = F.normalize(mixture, dim=-1) * visual.shape[-1] ** 0.5
        visual = torch.where(nonsense[:, None, None], mixture, visual)
    return {
        "visual": visual,
        "owner": owner,
        "wanted": wanted_of(asked, config.qformer.num_queries),
        "text": asked.text,
        "answer": asked.answer,
    }


class AskTiny(Recipe):
    """See the module's text."""

    config_class = AskTinyConfig
    config: AskTinyConfig

    @classmethod
    def smoke(cls, config: AskTinyConfig) -> AskTinyConfig:
        """Two backgrounds with three events each, a few steps."""
        return replace(
            config, batch_size=2, steps=(2, 2), backgrounds=2, events=3, lengths=((6, 9), (6, 9)), questions=1,
            log_every=1, precision="float32", cache=Path("runs/ask_smoke"),
        )  # fmt: skip

    @cached_property
    def encoder(self) -> FluxDual:
        """The frozen dual encoder."""
        encoder = load("nano")
        assert isinstance(encoder, FluxDual)
        return encoder

    @cached_property
    def model_config(self) -> TinyVLMConfig:
        """Sizes of the model."""
        return TinyVLMConfig(encoder_space=self.encoder.space_id, answers=answer_words())

    def stock(self, name: str, seed: int, backgrounds: int, split: str) -> Stock:
        """The encoded events, made when they are not in the cache."""
        path = self.config.cache / f"{name}-{seed}-{backgrounds}x{self.config.events}.pt"
        if not path.exists():
            self.config.cache.mkdir(parents=True, exist_ok=True)
            make_stock(
                self.encoder, self.model_config, seed, backgrounds=backgrounds, events=self.config.events, split=split
            ).save(path)
        return Stock.load(path)

    def build(self) -> nn.Module:
        """Connector and decoder."""
        return self.model_config.build()

    def stages(self) -> tuple[Stage, ...]:
        """Both train everything but what nobody reads: the text that leaves the last layer."""
        last, rate = self.model_config.qformer.depth - 1, self.config.learning_rate
        short, long = self.config.steps
        usual = Stage(
            "short", short, rate, warmup_steps=max(1, short // 15), final_share=0.5, weight_decay=0.02,
            betas=(0.9, 0.98), ema_decay=0.998 if short > 1000 else None,
            trained=("*", f"!qformer.layers.{last}.text_*"),
        )  # fmt: skip
        return usual, replace(usual, name="long", steps=long, learning_rate=rate / 2, warmup_steps=0, final_share=0.02)

    def dataset(self, stage: Stage) -> Dataset:
        """Questions without end."""
        stock = self.stock("train", 11, self.config.backgrounds, "train")
        return Drawn(stock, self.config, self.model_config, int(stage.name == "long"))

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Stacked tensors, words of the questions and of the answers."""
        questions = question_words(self.encoder, [s["text"] for s in samples], self.model_config)
        names = self.model_config.answers
        rows = [[BEGIN, *s["answer"].split(), END] for s in samples]
        longest = max(map(len, rows))
        ids = [[names.index(word) for word in row] + [-100] * (longest - len(row)) for row in rows]
        batch = {name: torch.stack([s[name] for s in samples]) for name in ("visual", "owner", "wanted")}
        return {**batch, "words": questions.words, "valid": questions.valid, "answers": torch.tensor(ids)}

    def step(
        self, module: nn.Module, batch: Any, stage: Stage, draws: torch.Generator
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of the answer's words and of where to look."""
        assert isinstance(module, TinyVLM)
        questions = Questions(batch["words"], batch["valid"])
        out = module.watch_whole(batch["visual"].flatten(1, 2), questions)  # (B, T, P, C) -> (B, T*P, C)
        look = evidence_loss(out.attention, batch["owner"].flatten(1), batch["wanted"])
        seconds, now = times_of(batch["visual"], self.model_config)
        answers = batch["answers"]
        logits = module.decode(module.prompts(out, seconds, now), questions, answers[:, :-1].clamp(min=0))
        words = F.cross_entropy(logits.flatten(0, 1).float(), answers[:, 1:].flatten())  # (B*A, V)
        return words + self.config.evidence_weight * look, {"words": words.detach(), "look": look.detach()}

    def evaluate(self, module: nn.Module) -> list[Row]:
        """Share of right answers by kind, in videos of three lengths, on events that training has not seen."""
        assert isinstance(module, TinyVLM)
        stock = self.stock("tune", 21, max(2, self.config.backgrounds // 8), "all")
        rows = []
        for chunks in (12, 48, 240):
            rng, right = np.random.default_rng(5), dict.fromkeys(KINDS, 0)
            for kind in KINDS:
                asked = [draw_asked(stock, rng, Drawing(chunks), kind) for _ in range(self.config.questions)]
                batch = self.collate([sample_of(stock, a, self.model_config, None) for a in asked])
                questions = Questions(batch["words"], batch["valid"])
                out = module.watch_whole(batch["visual"].flatten(1, 2), questions)
                written, _ = module.write(module.prompts(out, *times_of(batch["visual"], self.model_config)), questions)
                right[kind] = sum(" ".join(w) == a.answer for w, a in zip(written, asked, strict=True))
            shares = {kind: n / self.config.questions for kind, n in right.items()}
            gmacs = chunks * self.encoder.cost(frames=8, size=168, point=OperatingPoint(tokens=256)).gmacs
            rows.append(
                {"point": f"{chunks} chunks", "gmacs": gmacs, "accuracy": sum(shares.values()) / len(shares), **shares}
            )
        return rows

    def exported(self, module: nn.Module) -> Exported:
        """The model; its encoder stays where it is."""
        return Exported(module, licence="Apache-2.0")


def times_of(visual: Tensor, config: TinyVLMConfig) -> tuple[Tensor, Tensor]:
    """Time of each token (B, T*P) of whole videos (B, T, P, C), and how long they last (B,)."""
    batch, chunks = visual.shape[:2]
    starts = config.chunk_seconds * torch.arange(chunks, device=visual.device)  # (T,)
    seconds = chunk_times(starts, config).to(visual.device).flatten().expand(batch, -1)  # (B, T*P)
    return seconds, torch.full((batch,), chunks * config.chunk_seconds, device=visual.device)


RECIPE = AskTiny
assert min(*SHORT, *LONG) // 2 >= SLOT_CHUNKS
