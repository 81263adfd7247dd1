"""Memories of long video: sizes as promised, rows apart, and the same result however a video comes in pieces."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from fractions import Fraction
from itertools import pairwise, product

import pytest
import torch

import elastivid.memory as package
from elastivid.core.errors import BudgetError
from elastivid.memory.adacm2 import AdaCM2, CappedAdaCM2
from elastivid.memory.bank import Bank, MergingMemory
from elastivid.memory.base import TokenBytes, VideoMemory
from elastivid.memory.cache import CacheMemory, Retention
from elastivid.memory.window import FirstInFirstOut, KeepAll, RandomKeeping, UniformThinning
from elastivid.models.qformer import QFormerConfig

P = 3
MEMORIES = {
    "adacm2": CacheMemory(AdaCM2(0.1, 0.5)),
    "adacm2 per layer": CacheMemory(AdaCM2((0.1, 0.3), (0.5, 0.2))),
    "adacm2 capped": CacheMemory(CappedAdaCM2(8, 0.25)),
    "merging bank": MergingMemory(3),
    "merging bank, no query banks": MergingMemory(3, query_banks=False),
    "first in first out": CacheMemory(FirstInFirstOut(8)),
    "uniform": CacheMemory(UniformThinning(8)),
    "random": CacheMemory(RandomKeeping(8)),
    "keep all": CacheMemory(KeepAll()),
}
BLIND = ("first in first out", "uniform", "random", "keep all")


@pytest.fixture(params=MEMORIES)
def memory(request):
    return MEMORIES[request.param]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = QFormerConfig(
        vocab_size=20, context_length=8, embed_dim=32, depth=4, num_heads=4, hidden_dim=48, visual_dim=16, num_queries=4
    )
    return spread(config.build().eval())


def spread(model):
    """Weights large enough that attention prefers something."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def video(rows=2, frames=14, seed=1):
    g = torch.Generator().manual_seed(seed)
    seconds = torch.arange(float(frames))[None, :, None].expand(rows, -1, P)
    return torch.randn(rows, frames, P, 16, generator=g), seconds


def text_of(model, rows=2, seed=2):
    return model.embed_text(torch.randint(1, 20, (rows, 5), generator=torch.Generator().manual_seed(seed)))


def shown(model, memory, frames, chunk=1, text=None):
    """Queries after the last frame, and the memory, when frames come in chunks."""
    visual, seconds = frames
    out = None
    for start in range(0, visual.shape[1], chunk):
        part = slice(start, start + chunk)
        out = model.stream(visual[:, part], seconds[:, part], memory, text=text)
        memory = out.memory
    return out.queries, memory


def same(a, b):
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_every_rule_is_among_them():
    modules = [importlib.import_module(f"elastivid.memory.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    kinds = {c for m in modules for _, c in inspect.getmembers(m, inspect.isclass) if not inspect.isabstract(c)}
    rules = {type(m.rule) for m in MEMORIES.values() if isinstance(m, CacheMemory)}
    assert {c for c in kinds if issubclass(c, VideoMemory | Retention)} == rules | {CacheMemory, MergingMemory}


@torch.inference_mode()
def test_chunks_of_one_and_of_seven_frames_agree(model, memory):
    text = text_of(model)
    one, seven = (shown(model, memory, video(), chunk, text) for chunk in (1, 7))
    assert torch.equal(one[0], seven[0])
    assert same(one[1], seven[1])
    assert one[1].frames == (14, 14)


@torch.inference_mode()
def test_size_is_bounded_unless_all_is_kept(model, memory):
    sizes = [shown(model, memory, video(frames=n), 7)[1].nbytes for n in (28, 56)]
    assert (sizes[0] == sizes[1]) == memory.bounded
    assert memory.bounded or sizes[1] == 2 * sizes[0]


@torch.inference_mode()
def test_rows_do_not_see_each_other(model, memory):
    visual, seconds = video(rows=3)
    text = text_of(model, rows=3)
    together, held = shown(model, memory, (visual, seconds), 7, text)
    for row in range(3):
        one = slice(row, row + 1)
        alone, held_alone = shown(model, memory, (visual[one], seconds[one]), 7, text[one])
        assert torch.allclose(together[one], alone, atol=1e-5)
        assert all(
            torch.allclose(a.float(), b.float(), atol=1e-5)
            for a, b in zip(held.select([row]).state_dict().values(), held_alone.state_dict().values(), strict=True)
        )


@torch.inference_mode()
def test_a_reset_row_starts_anew_and_the_others_go_on(model, memory):
    (first, times), (second, _), text = video(), video(seed=5), text_of(model)
    _, held = shown(model, memory, (first, times), 7, text)
    before = {k: v.clone() for k, v in held.state_dict().items()}
    fresh = held.reset([1])
    assert fresh.frames == (14, 0)
    out, after = shown(model, fresh, (second, times), 7, text)
    gone_on, _ = shown(model, held, (second, times), 7, text)
    anew, _ = shown(model, memory, (second, times), 7, text)
    assert torch.allclose(out[0], gone_on[0], atol=1e-5)
    assert torch.allclose(out[1], anew[1], atol=1e-5)
    assert after.frames == (28, 14)
    assert all(torch.equal(v, before[k]) for k, v in held.state_dict().items())


@torch.inference_mode()
def test_a_fork_goes_its_own_way(model, memory):
    _, held = shown(model, memory, video(), 7)
    fork = held.fork()
    assert same(fork, held)
    for tensor in fork.state_dict().values():
        tensor.zero_()
    assert not same(fork, held)
    assert held.nbytes > 0


@torch.inference_mode()
def test_a_saved_memory_goes_on_as_if_nothing_happened(model, memory):
    (visual, seconds), text = video(), text_of(model)
    whole, _ = shown(model, memory, (visual, seconds), 1, text)
    _, half = shown(model, memory, (visual[:, :6], seconds[:, :6]), 1, text)
    back = memory.load_state_dict(half.state_dict())
    assert back.frames == half.frames
    assert torch.equal(shown(model, back, (visual[:, 6:], seconds[:, 6:]), 1, text)[0], whole)
    with pytest.raises(ValueError, match="the saved memory lacks"):
        memory.load_state_dict({k: v for k, v in half.state_dict().items() if k != "frames"})
    assert memory.load_state_dict({}).frames == ()


@torch.inference_mode()
def test_rows_can_be_chosen_again_and_wrong_ones_are_named(model, memory):
    _, held = shown(model, memory, video(), 7)
    assert held.select([1, 0, 1]).frames == (14, 14, 14)
    assert same(held.select([1]).select([0]), held.select([1]))
    for method in (held.select, held.reset):
        with pytest.raises(IndexError, match="rows must lie in 0 to 1, got 2"):
            method([2])
    with pytest.raises(ValueError, match="the memory has 2 rows, the frame has 3"):
        held.append(torch.zeros(3, P, 16), torch.zeros(3, P))
    with pytest.raises(ValueError, match="seconds must be"):
        held.append(torch.zeros(2, P, 16), torch.zeros(2))


@torch.inference_mode()
def test_keeping_all_is_ordinary_cross_attention_over_all_frames(model):
    (visual, seconds), text = video(), text_of(model)
    streamed, held = shown(model, MEMORIES["keep all"], (visual, seconds), 1, text)
    whole = model(visual.flatten(1, 2), text=text).queries  # (B, T, P, C) -> (B, T*P, C)
    assert (streamed - whole).abs().max() < 1e-6 * whole.abs().max()
    r_one, _ = shown(model, CacheMemory(AdaCM2(0.3, 1.0)), (visual, seconds), 1, text)
    assert torch.equal(r_one, streamed)
    assert not CacheMemory(AdaCM2(0.3, 1.0)).bounded
    assert model.read(held, text=text).queries.allclose(streamed, atol=1e-6)


@pytest.mark.parametrize("name", BLIND)
@torch.inference_mode()
def test_a_rule_that_looks_at_no_scores_needs_no_pass(model, name):
    _, held = shown(model, MEMORIES[name], video(), 7)
    assert same(model.absorb(*video(), MEMORIES[name]), held)


SETTINGS = list(product((1, 8, 32, 257), (0.1, 0.25, 0.6), (0.1, 0.35, 0.9)))


@pytest.mark.parametrize(("frame_tokens", "alpha", "beta"), SETTINGS)
def test_cache_length_is_the_recursion(frame_tokens, alpha, beta):
    rule = AdaCM2(alpha, beta)
    a, b = Fraction(str(alpha)), Fraction(str(beta))
    r = a + (1 - a) * b
    memory, expected = CacheMemory(rule), 0
    visual = torch.randn(1, frame_tokens, 2, generator=torch.Generator().manual_seed(0))
    for frame in range(60):
        memory = memory.append(visual, torch.full((1, frame_tokens), float(frame)))
        entries, memory = memory.entries(0, lambda x: (x, x))
        memory = memory.settle(0, torch.rand(1, entries.keys.shape[1])).finish()
        expected = math.ceil(r * (expected + frame_tokens))
        assert memory.tokens(0) == (expected,)
        newest = math.ceil(a * entries.keys.shape[1])  # the most recent ones are all there
        assert torch.equal(memory.layers[0].seconds[:, -newest:], entries.seconds[:, -newest:])
    for _ in range(2000):  # of the lengths alone, up to the limit
        expected = rule.keep_count(0, expected + frame_tokens)
    limit = float(frame_tokens * r / (1 - r))
    assert rule.limit(0, frame_tokens) == pytest.approx(limit)
    assert 0 <= expected - limit <= float(1 / (1 - r))


def test_thirty_six_settings():
    assert len(SETTINGS) == 36


def test_the_other_reading_keeps_far_more():
    assert float(AdaCM2(0.1, 0.1).retained(0)) == pytest.approx(0.19)
    assert float(AdaCM2.from_eq6(0.1, 0.1).retained(0)) == pytest.approx(0.91)


def test_the_best_older_tokens_stay():
    memory = CacheMemory(AdaCM2(0.2, 0.5)).append(torch.arange(10.0)[None, :, None], torch.arange(10.0)[None])
    _, memory = memory.entries(0, lambda x: (x, x))
    memory = memory.settle(0, torch.tensor([[5.0, 1, 9, 1, 8, 1, 7, 1, 0, 0]]))
    assert memory.layers[0].seconds.tolist() == [[0, 2, 4, 6, 8, 9]]


def test_layers_may_keep_different_shares(model):
    with torch.inference_mode():
        _, held = shown(model, MEMORIES["adacm2 per layer"], video(frames=40), 7)
    assert held.tokens(0) == (4, 4)  # r = 0.55, three tokens a frame
    assert held.tokens(1)[0] == AdaCM2(0.3, 0.2).keep_count(0, held.tokens(1)[0] + P)
    with pytest.raises(ValueError, match="shares are given for 1 layers, but the model has a layer 1"):
        model.stream(*video(), CacheMemory(AdaCM2((0.1,), (0.5,))))


@torch.inference_mode()
def test_a_needle_survives_a_thousand_frames_and_the_question_decides_which():
    """Two needles early on; each question keeps its own, random keeping loses both."""
    torch.manual_seed(0)
    config = QFormerConfig(
        vocab_size=2, context_length=4, embed_dim=16, depth=2, num_heads=1, hidden_dim=16, visual_dim=16, num_queries=2
    )
    model = spread(config.build().eval())
    cross = model.layers[0].cross
    text = model.embed_text(torch.tensor([[0], [1]]))
    start, _, _ = model._start(model.queries.expand(2, -1, -1), text, None, "bidirectional", None)
    asked = cross.query(model.layers[0].mixed(start, None, None)[:, :2]) @ cross.key.weight  # (2, 2, 16), before scale
    wanted = torch.tensor([[60.0, 60, -60, -60], [-60, -60, 60, 60]])  # logits of either needle for all four queries
    needles = (torch.linalg.pinv(asked.flatten(0, 1)) @ wanted.T).T
    frames = 0.1 * torch.randn(1000, P, 16)
    frames[20, 0], frames[40, 0] = needles[0], needles[1]
    visual = frames.expand(2, -1, -1, -1)
    seconds = torch.arange(1000.0)[None, :, None].expand(2, -1, P)
    held = model.stream(visual, seconds, CacheMemory(CappedAdaCM2(12, 0.25)), text=text).memory
    assert [20.0 in held.layers[0].seconds[0], 40.0 in held.layers[0].seconds[0]] == [True, False]
    assert [20.0 in held.layers[0].seconds[1], 40.0 in held.layers[0].seconds[1]] == [False, True]
    lost = model.stream(visual, seconds, CacheMemory(RandomKeeping(12, seed=3)), text=text).memory
    assert not ({20.0, 40.0} & set(lost.layers[0].seconds.flatten().tolist()))
    blank = model.stream(visual[:1], seconds[:1], CacheMemory(CappedAdaCM2(12, 0.25)))  # no question: it still answers
    assert blank.queries.isfinite().all()


def frames_kept(rule, frames):
    memory = CacheMemory(rule)
    for frame in range(frames):
        memory = memory.append(torch.zeros(1, P, 1), torch.full((1, P), float(frame)))
        _, memory = memory.entries(0, lambda x: (x, x))
        memory = memory.settle(0, torch.zeros(1, memory.tokens(0)[0])).finish()
    return memory.layers[0].frame[0].tolist()


def test_what_rules_without_text_keep():
    assert frames_kept(FirstInFirstOut(6), 50) == [48, 48, 48, 49, 49, 49]
    even = frames_kept(UniformThinning(5 * P), 100)[::P]
    assert even[0] == 0
    assert even[-1] == 99
    assert max(b - a for a, b in pairwise(even)) <= 50
    random = frames_kept(RandomKeeping(5 * P), 100)[::P]
    assert random == sorted(set(random))
    assert random != frames_kept(RandomKeeping(5 * P, seed=1), 100)[::P]


def test_random_keeping_treats_all_frames_alike():
    early = [sum(f < 100 for f in frames_kept(RandomKeeping(10 * P, seed=s), 200)[::P]) for s in range(20)]
    assert 70 <= sum(early) <= 130  # of 200 kept frames half come from the first half


def test_one_merge_is_that_of_the_released_code(golden):
    tensors, _ = golden("malmm_memory")
    bank, sizes = tensors["case4.bank"], tensors["case4.sizes"]
    merged = Bank(bank, sizes, sizes.clone(), torch.tensor([6, 6])).merged(5)
    assert (merged.slots - tensors["case4.bank_out"]).abs().max() < 1e-6
    assert torch.equal(merged.sizes, tensors["case4.sizes_out"])


@torch.inference_mode()
def test_banks_end_with_their_video_unless_the_released_leak_is_wanted(model):
    (visual, seconds), text = video(), text_of(model)
    clean, leaky = MergingMemory(3), MergingMemory(3, reference_frames=20)
    fresh, _ = shown(model, clean, (visual, seconds), 7, text)
    after_clean = shown(model, clean, (visual, seconds), 7, text)[1].next_video()
    after_leaky = shown(model, leaky, (visual, seconds), 7, text)[1].next_video()
    assert torch.equal(shown(model, after_clean, (visual, seconds), 7, text)[0], fresh)
    assert not torch.allclose(shown(model, after_leaky, (visual, seconds), 7, text)[0], fresh, atol=1e-3)
    full = shown(model, MergingMemory(3, reference_frames=14), (visual, seconds), 7, text)[1]
    assert full.queries == ()


def test_a_cap_becomes_tokens_and_one_too_small_is_named():
    room = TokenBytes(layers=2, dim=192, frame_tokens=5, rows=3)
    assert room.per_token == 2 * (2 * 192 * 4 + 8)
    assert room.tokens_within(10 * room.minimum) == 100
    with pytest.raises(BudgetError, match=r"1,000 bytes is below the minimum of 92,640 bytes \(two frames of 5 tokens"):
        room.tokens_within(1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaCM2(1.5), "alpha must be a share in 0 to 1"),
        (lambda: AdaCM2(0.1, (0.1, -1.0)), "beta must be a share"),
        (lambda: AdaCM2((0.1, 0.2), (0.1,)), "alpha has 2 layers and beta 1"),
        (lambda: CappedAdaCM2(0), "tokens must be >= 1"),
        (lambda: CappedAdaCM2(5, 2.0), "recent_share must be in 0 to 1"),
        (lambda: FirstInFirstOut(0), "tokens must be >= 1"),
        (lambda: UniformThinning(0), "tokens must be >= 1"),
        (lambda: RandomKeeping(0), "tokens must be >= 1"),
        (lambda: MergingMemory(0), "length must be >= 1 slot"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_earliest_of_pairs_that_rounding_tells_apart_merges():
    """cos(0, 1) is below cos(1, 2) by less than float32 can be trusted with."""
    slots = torch.tensor([[1.0, 0.0], [1.0, 4e-4], [1.0, 4e-4], [0.0, 1.0]]).view(1, 4, 1, 2)
    alike = torch.nn.functional.cosine_similarity(slots[:, :-1], slots[:, 1:], dim=-1).flatten()
    assert alike[0] < alike[1]
    ones = torch.ones(1, 4, 1)
    assert Bank(slots, ones, ones.clone(), torch.tensor([4])).merged(3).sizes.flatten().tolist() == [2, 1, 1]
