"""The shipped model: small, loadable, and right about rendered events, in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import elastivid.weights
from elastivid.data.asking import Drawing, Stock, draw_asked, make_stock, tokens_of
from elastivid.memory.adacm2 import CappedAdaCM2
from elastivid.memory.cache import CacheMemory
from elastivid.models.tiny_vlm import chunk_times
from elastivid.search.watch import read_answers
from elastivid.weights.load import load_asker, read_metadata, resolve


@pytest.fixture(scope="module")
def model():
    return load_asker("nano-ask")


@pytest.fixture(scope="module")
def stock(model):
    """Events of compositions and a seed that training never saw."""
    parts = [make_stock(model.encoder, model.config, 900 + n, backgrounds=1, events=2, split="all") for n in range(7)]
    return Stock.joined(parts)


def test_all_shipped_weights_stay_small():
    folder = Path(elastivid.weights.__file__).parent
    assert sum(file.stat().st_size for file in folder.glob("nano*.safetensors")) <= 20_000_000
    told = read_metadata(resolve("nano-ask"))
    assert told["licence"] == "Apache-2.0"
    assert "not_for" in told["card"]


@torch.inference_mode()
def asked_of(model, stock, kind, count, chunks=60, tokens=60, **drawing):
    rng = np.random.default_rng(5)
    drawn = [draw_asked(stock, rng, Drawing(chunks, busy=0.8, one_camera=0.0, **drawing), kind) for _ in range(count)]
    visual = torch.stack([tokens_of(stock, a) for a in drawn])
    seconds = chunk_times(4.0 * torch.arange(float(chunks)), model.config).expand(count, -1, -1)
    questions = model.questions([a.text for a in drawn])
    out = model.qformer.stream(
        visual, seconds, CacheMemory(CappedAdaCM2(tokens)), text=model.question_text(questions),
        text_valid=questions.valid,
    )  # fmt: skip
    return list(
        zip(drawn, read_answers(model, out.memory, questions, [a.text for a in drawn], 4.0 * chunks), strict=True)
    )


def test_it_finds_what_is_there_and_when(model, stock):
    pairs = asked_of(model, stock, "when", 20, absent=0.0)
    hits = [
        bool(a.evidence) and a.evidence[0].start_seconds < q.spans[0][1] and a.evidence[0].end_seconds > q.spans[0][0]
        for q, a in pairs
    ]
    assert np.mean(hits) >= 0.6


def test_it_tells_motions_apart(model, stock):
    pairs = asked_of(model, stock, "motion", 20, absent=0.0)
    assert np.mean([a.text == q.answer for q, a in pairs]) >= 0.3  # a guess among twelve: 0.08


def test_it_says_when_nothing_is_there(model, stock):
    assert np.mean([a.found for _, a in asked_of(model, stock, "exists", 20, absent=1.0)]) <= 0.4


def test_it_does_not_answer_what_it_cannot_know(model, stock):
    assert np.mean([a.found for _, a in asked_of(model, stock, "other", 20, held_out=True)]) <= 0.2
