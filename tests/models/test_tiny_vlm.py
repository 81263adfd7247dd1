"""The tiny video language model: reading, writing, where it looks, and what its times mean."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from elastivid.core.errors import QuestionError
from elastivid.data.questions import answer_words
from elastivid.memory.cache import CacheMemory
from elastivid.memory.window import KeepAll
from elastivid.models.evidence import stretches
from elastivid.models.tiny_vlm import (
    BEGIN,
    END,
    Questions,
    TinyVLMConfig,
    chunk_times,
    chunk_tokens,
    evidence_loss,
    question_words,
    time_code,
)
from elastivid.weights.load import load

CONFIG = TinyVLMConfig(answers=answer_words())


@pytest.fixture(scope="module")
def encoder():
    return load("nano")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CONFIG.build().eval()


def asked(rows=2, length=6):
    valid = torch.ones(rows, length, dtype=torch.bool)
    valid[1:, -2:] = False
    words = torch.randn(rows, length, CONFIG.word_dim, generator=torch.Generator().manual_seed(3))
    return Questions(words, valid)


def visual_of(rows=2, chunks=6):
    return torch.randn(rows, chunks, 5, 256, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_what_training_sees_is_what_streaming_gives(model):
    visual, questions = visual_of(), asked()
    whole = model.watch_whole(visual.flatten(1, 2), questions)
    seconds = chunk_times(4.0 * torch.arange(6.0), CONFIG).expand(2, -1, -1)
    out = model.qformer.stream(
        visual, seconds, CacheMemory(KeepAll()), text=model.question_text(questions), text_valid=questions.valid
    )
    assert torch.allclose(out.queries, whole.queries, atol=1e-5)
    assert torch.allclose(out.attention[-1], whole.attention[-1], atol=1e-6)
    now = torch.full((2,), 24.0)
    a, b = (model.prompts(o, seconds.flatten(1), now) for o in (out, whole))
    assert torch.allclose(a, b, atol=1e-5)


@torch.inference_mode()
def test_answers_are_written_word_by_word(model):
    questions, prompts = asked(), torch.randn(2, 8, 192, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([[0, 5, 7, 9], [0, 5, 7, 9]])
    logits = model.decode(prompts, questions, ids)
    assert logits.shape == (2, 4, len(CONFIG.answers))
    assert torch.allclose(model.decode(prompts, questions, ids[:, :2]), logits[:, :2], atol=1e-5)  # no look ahead
    longer = Questions(
        torch.cat([questions.words, torch.ones(2, 3, CONFIG.word_dim)], dim=1),
        torch.cat([questions.valid, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    )
    assert torch.allclose(model.decode(prompts, longer, ids), logits, atol=1e-5)  # padding changes nothing
    written, certainty = model.write(prompts, questions)
    assert all(0 < c <= 1 for c in certainty)
    assert all(END not in words and len(words) <= 7 for words in written)
    assert CONFIG.answers.index(BEGIN) == 0


def test_evidence_loss_in_closed_form():
    attention = torch.tensor([0.5, 0.2, 0.1, 0.2]).expand(1, 2, 1, -1)  # two heads, one query, three tokens, a sink
    owner = torch.tensor([[1, 1, 0]])
    on_event = torch.tensor([[[1.0, 0.0, 0.0]]])
    on_sink = torch.tensor([[[0.0, 0.0, 1.0]]])
    assert evidence_loss([attention], owner, on_event) == pytest.approx(-math.log(0.7))
    assert evidence_loss([attention, attention], owner, on_sink) == pytest.approx(-math.log(0.2))
    halves = evidence_loss([attention], torch.tensor([[1, 2, 0]]), torch.tensor([[[0.5, 0.5, 0.0]]]))
    assert halves == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)


@torch.inference_mode()
def test_prompts_tell_when_queries_looked(model):
    whole = model.watch_whole(visual_of().flatten(1, 2), asked())
    seconds = chunk_times(4.0 * torch.arange(6.0), CONFIG).flatten().expand(2, -1)
    one = model.prompts(whole, seconds, torch.full((2,), 24.0))
    later = model.prompts(whole, seconds + 100, torch.full((2,), 124.0))
    assert (one - later).abs().max() > 1e-3
    assert time_code(torch.tensor([0.5])).shape == (1, 13)
    assert time_code(torch.tensor([0.5]))[0, 0] == 0.5


@torch.inference_mode()
def test_tokens_of_a_chunk_are_of_the_encoders_space(encoder):
    video = torch.randn(2, 8, 3, 168, 168, generator=torch.Generator().manual_seed(0))
    tokens = chunk_tokens(encoder, video, 256)
    assert tokens.shape == (2, CONFIG.chunk_tokens, 256)
    assert torch.allclose(tokens.norm(dim=-1), torch.full((2, 5), 16.0), atol=1e-3)
    alone = torch.cat([chunk_tokens(encoder, clip[None], 256) for clip in video])
    assert torch.allclose(tokens, alone, atol=1e-4)
    changed = video.clone()
    changed[:, 6:] = 0  # the last second
    moved = (chunk_tokens(encoder, changed, 256) - tokens).norm(dim=-1)[0]
    assert moved[4] == moved[1:].max()
    assert chunk_times(torch.tensor([8.0]), CONFIG).tolist() == [[10.0, 8.5, 9.5, 10.5, 11.5]]


def test_questions_become_words(encoder):
    questions = question_words(encoder, ["is there a red star?", "why?"], CONFIG)
    assert questions.words.shape[2] == CONFIG.word_dim
    assert questions.valid.sum(dim=1).tolist()[0] > questions.valid.sum(dim=1).tolist()[1]
    assert not questions.words[1][~questions.valid[1]].any()
    assert questions.select([1]).words.shape[0] == 1
    with pytest.raises(QuestionError, match="a question must hold at least one word, got ''"):
        question_words(encoder, [""], CONFIG)
    with pytest.raises(QuestionError, match="at most 31 fit"):
        question_words(encoder, ["star " * 50], CONFIG)


def test_a_config_survives_json():
    import json
    from dataclasses import asdict

    changed = replace(CONFIG, chunk_patches=128, qformer=replace(CONFIG.qformer, depth=2))
    assert TinyVLMConfig.from_dict(json.loads(json.dumps(asdict(changed)))) == changed


def test_stretches_of_attention():
    seconds = torch.tensor([2.0, 6.0, 10.0, 50.0, 54.0, 90.0])
    attention = torch.tensor([0.01, 0.2, 0.1, 0.3, 0.05, 0.02])
    found = stretches(attention, seconds, 4.0, now_seconds=91.0, share=0.2)
    assert [(e.start_seconds, e.end_seconds) for e in found] == [(4.0, 12.0), (48.0, 52.0)]
    assert [e.weight for e in found] == [0.3, 0.3]
    loose = stretches(attention, seconds, 4.0, now_seconds=91.0, share=0.05)
    assert (88.0, 91.0) in [(e.start_seconds, e.end_seconds) for e in loose]
    assert stretches(torch.zeros(2), torch.tensor([2.0, 6.0]), 4.0, 8.0) == []
