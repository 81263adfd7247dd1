"""What every encoder and every selector must do, whichever paper it comes from. New ones are found, not listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import elastivid.models
import elastivid.select
from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.models.base import VideoEncoder
from elastivid.select.base import Merger, Reducer, Selector
from elastivid.select.masks import AttentionScore
from elastivid.select.merge import VidTLDR
from elastivid.select.motion import GroupDynamic
from elastivid.select.text import TextGuided


def modules(package):
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names]


TINIES = {m.__name__: m.PRESETS["tiny"] for m in modules(elastivid.models) if "tiny" in getattr(m, "PRESETS", {})}
TINY = {name: config for name, config in TINIES.items() if isinstance(config.build(), VideoEncoder)}
REDUCERS = sorted(
    {c for m in modules(elastivid.select) for _, c in inspect.getmembers(m, inspect.isclass)
     if issubclass(c, Reducer) and not inspect.isabstract(c)},
    key=lambda c: c.__name__,
)  # fmt: skip
EXAMPLES = {  # for those that need more than the tokens
    AttentionScore: lambda: AttentionScore(lambda tokens: tokens.x.square().sum(dim=-1)),
    TextGuided: lambda: TextGuided(torch.arange(1.0, 9.0)),
    VidTLDR: lambda: VidTLDR(GroupDynamic().scores),
}
SELECTORS = [c for c in REDUCERS if issubclass(c, Selector)]


def made(reducer):
    """One of its kind with default arguments."""
    return EXAMPLES.get(reducer, reducer)()


def video_of(config, batch=2):
    shape = (batch, config.num_frames, 3, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=TINY, ids=lambda name: name.rpartition(".")[2])
def config(request):
    torch.manual_seed(0)
    return TINY[request.param]


@pytest.fixture
def model(config):
    return config.build().eval()


def test_something_is_found():
    assert len(TINY) >= 1
    assert len(SELECTORS) >= 8
    assert len(REDUCERS) > len(SELECTORS)


@pytest.mark.parametrize("name", TINIES)
def test_tiny_is_below_a_million_parameters(name):
    assert sum(p.numel() for p in TINIES[name].build().parameters()) < 1_000_000


def test_forward_and_backward(config):
    model = config.build().train()
    out = model(video_of(config))
    assert torch.isfinite(out.embedding).all()
    out.embedding.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@torch.inference_mode()
def test_clips_of_a_batch_do_not_see_each_other(config, model):
    video = video_of(config, batch=3)
    alone = torch.cat([model(clip[None]).embedding for clip in video])
    assert torch.allclose(model(video).embedding, alone, atol=1e-5)


@torch.inference_mode()
def test_a_state_dict_is_the_whole_model(config, model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = config.build().eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    assert torch.equal(other(video_of(config)).embedding, model(video_of(config)).embedding)


@pytest.mark.parametrize(
    ("axis", "value"), [("tokens", 5), ("selector", GroupDynamic()), ("width", None), ("memory_tokens", 4)]
)
def test_an_axis_is_honoured_or_refused(config, model, axis, value):
    if axis == "width":
        value = getattr(config, "head_dim", 8)  # the narrowest an elastic family allows
    point = OperatingPoint(**{axis: value})
    if axis not in model.supported_axes:
        with pytest.raises(PointError, match=f"no axis {axis}"):
            model(video_of(config), point=point)
    elif axis == "tokens":
        assert model(video_of(config), point=point).tokens.num_placed == value
    else:
        assert model(video_of(config), point=point).embedding.shape[0] == 2


@pytest.mark.parametrize("tokens", [None, 20])
def test_predicted_macs_equal_the_counter(config, model, tokens):
    if tokens is not None and "tokens" not in model.supported_axes:
        pytest.skip("this family has no axis tokens")
    point = OperatingPoint(tokens=tokens)
    counted = measured_macs(lambda: model(video_of(config, batch=1), point=point))
    predicted = config.cost(frames=config.num_frames, size=config.image_size, tokens=tokens).macs
    assert predicted == pytest.approx(counted, rel=0.02)


def test_leaving_attention_out_would_be_noticed(config, model, monkeypatch):
    """The check above has teeth: without the N^2 terms prediction and counter part by more than its tolerance."""
    counted = measured_macs(lambda: model(video_of(config, batch=1)))
    for module in [m for name, m in sys.modules.items() if name.startswith("elastivid.")]:
        if hasattr(module, "attention_macs"):
            monkeypatch.setattr(module, "attention_macs", lambda queries, keys, dim: 0)
    predicted = config.cost(frames=config.num_frames, size=config.image_size).macs
    assert abs(predicted / counted - 1) > 0.02


@pytest.mark.parametrize("module", [m.__name__ for m in modules(elastivid.models)])
def test_importing_a_family_loads_no_foreign_library(module):
    code = f"import sys, {module}; print([m for m in ('transformers', 'lancedb', 'torchvision') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


GRID = (4, 3, 3)


def tokens_of(x, grid=GRID, **fields):
    return Tokens(x=x, coords=patch_coordinates(grid).expand(len(x), -1, -1), grid=grid, **fields)


def random_x(batch=3, count=36, seed=1):
    return torch.randn(batch, count, 8, generator=torch.Generator().manual_seed(seed))


def each(kinds):
    return pytest.mark.parametrize("kind", kinds, ids=lambda c: c.__name__)


@each(SELECTORS)
@pytest.mark.parametrize("keep", [1, 7, 35, 36])
def test_selectors_keep_exactly_what_is_asked(kind, keep):
    tokens = tokens_of(random_x().requires_grad_())
    kept = made(kind).select(tokens, keep)
    assert kept.shape == (3, keep)
    assert not kept.requires_grad
    assert all(row == sorted(set(row)) and 0 <= row[0] <= row[-1] < 36 for row in kept.tolist())


@each(REDUCERS)
@pytest.mark.parametrize("keep", [1, 7, 35])
def test_reducers_leave_exactly_what_is_asked(kind, keep):
    tokens = tokens_of(random_x())
    left = made(kind).reduce(tokens, keep)
    assert left.x.shape == (3, keep, 8)
    assert left.coords.shape == (3, keep, 3)
    assert left.grid == tokens.grid
    assert left.valid is None
    assert left.cells.diff(dim=1).gt(0).all() or issubclass(kind, Merger)


@each(REDUCERS)
def test_clips_of_a_reduced_batch_do_not_see_each_other(kind):
    x = random_x()
    if kind is AttentionScore or kind is TextGuided:  # ties would make it a test of nothing
        assert len(made(kind).scores(tokens_of(x)).unique()) == 108
    together = made(kind).reduce(tokens_of(x), 7)
    alone = Tokens.stack([made(kind).reduce(tokens_of(x[i : i + 1]), 7) for i in range(3)])
    assert torch.allclose(together.x, alone.x, atol=1e-6)
    assert torch.allclose(together.coords, alone.coords, atol=1e-6)


@each(REDUCERS)
def test_clips_may_keep_different_numbers(kind):
    x = random_x()
    left = made(kind).reduce(tokens_of(x), [5, 20, 36])
    assert left.counts == (5, 20, 36)
    assert torch.equal(made(kind).reduce(tokens_of(x), torch.tensor([5, 20, 36])).x, left.x)
    assert made(kind).reduce(tokens_of(x), np.int64(5)).num_placed == 5
    assert left.x.shape == (3, 36, 8)
    assert not left.x[0, 5:].any()
    for row, keep in enumerate([5, 20, 36]):
        alone = made(kind).reduce(tokens_of(x[row : row + 1]), keep)
        assert torch.allclose(left.row(row).x, alone.x, atol=1e-6)
        assert torch.allclose(left.row(row).coords, alone.coords, atol=1e-6)


@each(REDUCERS)
def test_padding_never_stays_and_changes_nothing(kind):
    """A clip of 2 frames padded to 4 gives what it gives alone."""
    short = tokens_of(random_x(1, 18), (2, 3, 3))
    padded = Tokens(x=short.x, coords=short.coords, grid=GRID).pad(36)
    both = Tokens.stack([padded, tokens_of(random_x(1))])
    left = made(kind).reduce(both, [7, 7])
    assert left.num_placed == 7
    alone = made(kind).reduce(short, 7)
    if kind.__name__ == "RandomFrames":  # the first of the drawn frames may lie in the padding
        assert (left.cells[0] < 18).all()
    else:
        assert torch.allclose(left.x[:1], alone.x, atol=1e-6)


@each(REDUCERS)
def test_keeping_all_is_no_selection(kind):
    tokens = tokens_of(random_x())
    assert made(kind).reduce(tokens, 36) is tokens
    if issubclass(kind, Selector):
        assert torch.equal(made(kind).select(tokens, 36), torch.arange(36).expand(3, -1))


@each(REDUCERS)
def test_sizes_and_prefix_travel_along(kind):
    x, sizes = random_x(), torch.arange(1.0, 109.0).reshape(3, 36)
    prefixed = Tokens(
        x=torch.cat([torch.full((3, 1, 8), 9.0), x], dim=1),
        coords=patch_coordinates(GRID).expand(3, -1, -1),
        grid=GRID,
        sizes=sizes,
        num_prefix=1,
    )
    left = made(kind).reduce(prefixed, 7)
    assert (left.x[:, 0] == 9).all()
    if issubclass(kind, Selector):
        assert torch.equal(left.sizes, sizes.gather(1, made(kind).select(tokens_of(x), 7)))
    else:
        assert (left.sizes.sum(dim=1) <= sizes.sum(dim=1) + 1e-3).all()


@each(REDUCERS)
def test_the_same_call_gives_the_same_tokens_and_draws_nothing(kind):
    state = torch.get_rng_state()
    first, second = (made(kind).reduce(tokens_of(random_x()), 7) for _ in range(2))
    assert torch.equal(first.x, second.x)
    assert torch.equal(torch.get_rng_state(), state)


@each(SELECTORS)
@pytest.mark.parametrize("x", [torch.ones(2, 1200, 8), torch.ones(2, 1200, 8).bfloat16(), random_x(2, 1200).round()])
def test_of_equal_tokens_the_earlier_stay(kind, x):
    tokens = tokens_of(x, (12, 10, 10))
    selector = made(kind)
    groups = selector.num_groups(12)
    kept = torch.zeros(2, 1200).scatter(1, selector.select(tokens, 123), 1.0).bool()
    for row, scores in zip(kept.reshape(2 * groups, -1), selector.scores(tokens).reshape(2 * groups, -1), strict=True):
        tied = row[scores == scores[row].min()]  # of these some stay, some go
        assert not tied.int().diff().gt(0).any()


@each(REDUCERS)
def test_too_many_and_too_few_are_refused(kind):
    tokens = tokens_of(random_x())
    reducer = made(kind)
    with pytest.raises(PointError, match="cannot keep 37 tokens of 36; allowed: 1 to 36"):
        reducer.reduce(tokens, 37)
    with pytest.raises(PointError, match="cannot keep 0 tokens of 36"):
        reducer.reduce(tokens, 0)
    with pytest.raises(PointError, match="cannot keep 40 tokens of 36 in clip 1"):
        reducer.reduce(tokens, [3, 40, 3])
    with pytest.raises(PointError, match=r"one number or one per clip \(3\), got 2"):
        reducer.reduce(tokens, [3, 4])


@each([c for c in SELECTORS if c.__module__.endswith("motion")])
def test_a_moving_patch_beats_a_static_one(kind):
    x = torch.zeros(1, 8, 9, 4)
    x[:, :, 5] = torch.arange(8.0)[None, :, None]  # place 5 changes in every frame, the rest never
    kept = made(kind).select(tokens_of(x.flatten(1, 2), (8, 3, 3)), 16)
    assert set(range(1, 8)) <= {int(place) // 9 for place in kept[0] if place % 9 == 5}


@each([c for c in REDUCERS if made(c).__dict__.get("groups", 0) is None])
def test_every_group_keeps_its_share_when_only_one_moves(kind):
    x = torch.zeros(1, 8, 9, 8)
    x[:, 6:] = random_x(1, 18).unflatten(1, (2, 9))
    left = made(kind).reduce(tokens_of(x.flatten(1, 2), (8, 3, 3)), 12)
    times = left.coords[0, :, 0].add(1e-4).long()
    assert torch.bincount(times // 2, minlength=4).tolist() in ([3, 3, 3, 3], [4, 3, 3, 2], [4, 4, 2, 2])


@each([c for c in SELECTORS if c.__name__ in ("AttentionScore", "TextGuided")])
def test_scores_follow_tokens_within_their_group(kind):
    """What a token scores depends on the token, not on where it stands."""
    x, order = random_x(1), torch.randperm(36, generator=torch.Generator().manual_seed(0))
    scores = made(kind).scores(tokens_of(x))
    assert torch.equal(made(kind).scores(tokens_of(x[:, order])), scores[:, order])


@each(REDUCERS)
def test_every_reducer_serves_as_an_operating_point(kind):
    torch.manual_seed(0)
    model = TINY["elastivid.models.fluxvit"].build().eval()
    example = EXAMPLES.get(kind, kind) if kind is not TextGuided else lambda: TextGuided(torch.ones(48))
    video = video_of(model.config)
    with torch.inference_mode():
        out = model(video, point=OperatingPoint(tokens=50, selector=example()))
        ragged = model.encode(example().reduce(model.embed(video), [50, 30]), OperatingPoint())
    assert out.tokens.num_placed == 50
    assert out.embedding.isfinite().all()
    assert ragged.tokens.counts == (50, 30)
    assert ragged.embedding.isfinite().all()
