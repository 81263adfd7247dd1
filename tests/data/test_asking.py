"""Videos put together from encoded events: what is asked has one answer, and the truth is where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elastivid.data.asking import (
    COUNTED_APART,
    MOST_EVENTS,
    SLOT_CHUNKS,
    SLOT_SECONDS,
    Drawing,
    Stock,
    draw_asked,
    draw_phrase,
    make_stock,
    owners_of,
    tokens_of,
    wanted_of,
)
from elastivid.data.questions import CANNOT_TELL, KINDS, OTHER, answer_words, question_text
from elastivid.data.world import in_split
from elastivid.models.tiny_vlm import ABSENT, COUNT, WHEN, TinyVLMConfig
from elastivid.weights.load import load

CONFIG = TinyVLMConfig()


@pytest.fixture(scope="module")
def stock():
    """Events whose tokens hold their own number."""
    rng, count, backgrounds = np.random.default_rng(0), 120, 6
    starts = rng.uniform(0.5, 4.0, count)
    numbers = torch.arange(count).float()[:, None, None, None].expand(-1, SLOT_CHUNKS, 5, 4)
    bare = -1.0 - torch.arange(backgrounds).float()[:, None, None].expand(-1, 5, 4)
    return Stock(
        tuple(draw_phrase(rng, "all") for _ in range(count)),
        np.repeat(np.arange(backgrounds), count // backgrounds),
        numbers.half(),
        starts,
        starts + rng.uniform(2.5, 7.0, count),
        bare.half(),
    )


def draws(stock, kind, count=60, **drawing):
    return [draw_asked(stock, np.random.default_rng([n, 7]), Drawing(24, **drawing), kind) for n in range(count)]


def shown(stock, asked):
    """Phrases of a video, by slot."""
    return {place: stock.phrases[event] for place, event in enumerate(asked.slots.tolist()) if event >= 0}


def fits(kind, phrase, wanted):
    if kind == "colour":
        return phrase.shape == wanted.shape
    if kind == "shape":
        return phrase.colour == wanted.colour
    return (phrase.colour, phrase.shape) == (wanted.colour, wanted.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_is_there_once_and_nothing_else_fits(stock, kind):
    for asked in draws(stock, kind):
        there = shown(stock, asked)
        fitting = {place for place, phrase in there.items() if any(fits(kind, phrase, p) for p in asked.phrases)}
        evidence = {place for place in asked.evidence if place >= 0}
        assert fitting == evidence
        if asked.answer == ABSENT:
            assert len(evidence) < (2 if kind == "order" else 1)
            continue
        assert len(evidence) == (2 if kind == "order" else len(asked.spans))
        first = there[min(evidence)]
        answers = {"colour": first.colour, "shape": f"a {first.shape}", "exists": "yes", "count": COUNT, "when": WHEN}
        answers["order"] = f"the {first.colour} {first.shape}"
        if kind == "motion":
            assert asked.answer.startswith("it ")
        else:
            assert asked.answer == answers[kind]
        for (start, end), place in zip(sorted(asked.spans), sorted(evidence), strict=True):
            assert SLOT_SECONDS * place < start < end < SLOT_SECONDS * (place + 1)


def test_counted_events_lie_apart(stock):
    counts = set()
    for asked in draws(stock, "count", absent=0.0):
        counts.add(len(asked.evidence))
        assert all(b - a >= COUNTED_APART for a, b in zip(*[sorted(asked.evidence)[i:] for i in (0, 1)], strict=False))
    assert counts == set(range(1, MOST_EVENTS + 1))


def test_near_misses_share_colour_or_shape_and_nothing_fits_by_chance(stock):
    def near_share(**drawing):
        found = []
        for asked in draws(stock, "exists", 30, busy=1.0, one_camera=0.0, absent=1.0, **drawing):
            wanted = asked.phrases[0]
            things = shown(stock, asked).values()
            assert not any(fits("exists", phrase, wanted) for phrase in things)
            found += [phrase.colour == wanted.colour or phrase.shape == wanted.shape for phrase in things]
        return np.mean(found)

    assert near_share(near=1.0) == 1
    assert near_share(near=0.5) > near_share() + 0.2


def test_shares_are_kept(stock):
    many = draws(stock, None, 400, other=0.1, absent=0.5)
    others = [a for a in many if a.kind == OTHER]
    assert 20 <= len(others) <= 65
    assert all(a.answer == CANNOT_TELL and not a.present and a.evidence == () for a in others)
    assert 0.4 < np.mean([a.answer == ABSENT for a in many if a.kind != OTHER]) < 0.6
    assert {a.kind for a in many} == {*KINDS, OTHER}
    busy, calm = (np.mean([np.mean(a.slots >= 0) for a in draws(stock, "when", busy=b)]) for b in (0.9, 0.1))
    assert busy > 0.8
    assert calm < 0.25
    assert all(len(set(a.backdrop)) == 1 for a in draws(stock, "when", one_camera=1.0))


def test_tokens_are_the_pieces_in_order(stock):
    (asked,) = draws(stock, "when", 1, busy=0.5)
    tokens = tokens_of(stock, asked)
    assert tokens.shape == (24, 5, 4)
    for place, event in enumerate(asked.slots.tolist()):
        piece = tokens[SLOT_CHUNKS * place : SLOT_CHUNKS * (place + 1)]
        assert (piece == (event if event >= 0 else -1 - asked.backdrop[place])).all()


def test_evidence_is_where_the_event_fills_a_token(stock):
    for asked in draws(stock, "when", 20, absent=0.0):
        owner = owners_of(stock, asked, CONFIG)
        (start, end), (place,) = asked.spans[0], asked.evidence
        seconds = [4.0 * chunk + g for chunk, g in owner[:, 1:].nonzero().tolist()]  # tokens of single seconds
        assert seconds == list(range(round(seconds[0]), round(seconds[-1]) + 1))
        assert abs(seconds[0] - start) <= 0.5
        assert abs(seconds[-1] + 1 - end) <= 0.5
        outside = owner.clone()
        outside[SLOT_CHUNKS * place : SLOT_CHUNKS * (place + 1)] = 0
        assert not outside.any()


def test_where_queries_should_look():
    def wanted(stock, kind, **drawing):
        return [(a, wanted_of(a, 8)) for a in draws(stock, kind, 30, **drawing)]

    stock_ = Stock(
        tuple(draw_phrase(np.random.default_rng(n), "all") for n in range(80)), np.zeros(80, int),
        torch.zeros(80, SLOT_CHUNKS, 5, 4), np.ones(80), np.full(80, 5.0), torch.zeros(1, 5, 4),
    )  # fmt: skip
    for kind in KINDS:
        for asked, shares in wanted(stock_, kind):
            assert shares.shape == (8, MOST_EVENTS + 1)
            assert torch.allclose(shares.sum(dim=1), torch.ones(8))
            if kind != "order":
                assert (shares[:, -1] == float(not asked.present)).all()
    both = next(shares for asked, shares in wanted(stock_, "order", absent=0.0))
    assert both[:4, 0].eq(1).all()
    assert both[4:, 1].eq(1).all()


def test_the_same_generator_gives_the_same(stock):
    one, other = (draw_asked(stock, np.random.default_rng(3), Drawing(24)) for _ in range(2))
    assert one.text == other.text
    assert np.array_equal(one.slots, other.slots)
    with pytest.raises(ValueError, match="needs at least 6 chunks, got 3"):
        draw_asked(stock, np.random.default_rng(0), Drawing(3))


def test_words_of_answers_are_known():
    words, rng = answer_words(), np.random.default_rng(0)
    assert len(words) == len(set(words))
    assert len(words) < 128
    for kind in KINDS:
        phrase = draw_phrase(rng, "all")
        assert question_text(kind, [phrase, phrase], rng).endswith("?") or kind == "colour"
    trained = {question_text(OTHER, [], np.random.default_rng(n)) for n in range(300)}
    held_out = {question_text(OTHER, [], np.random.default_rng(n), held_out=True) for n in range(300)}
    assert not trained & held_out


def test_a_stock_is_rendered_and_encoded(tmp_path):
    made = make_stock(load("nano"), CONFIG, 5, backgrounds=2, events=1)  # type: ignore[arg-type]
    assert made.tokens.shape == (2, SLOT_CHUNKS, 5, 256)
    assert made.bare.shape == (2, 5, 256)
    assert made.tokens.float().norm(dim=-1).sub(16).abs().max() < 0.05
    assert all(in_split((p,), "train") for p in made.phrases)
    made.save(tmp_path / "stock.pt")
    back = Stock.load(tmp_path / "stock.pt")
    assert back.phrases == made.phrases
    assert torch.equal(back.tokens, made.tokens)
    two = Stock.joined([made, back])
    assert len(two.phrases) == 4
    assert two.background.tolist() == [0, 1, 2, 3]
