"""FluxViT elastic in width: one model, any schedule, exact exports, exact costs, exact zeros outside."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from peak import peak_bytes

from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint
from elastivid.models import fluxvit
from elastivid.models.fluxvit import PRESETS, FluxViT, FluxViTConfig

# 4 heads of 12 channels in the blocks, 6 of 8 in the pool: widths that cut pool heads
CONFIG = replace(PRESETS["tiny"], layer_scale=1.0, num_classes=5, pool_heads=6)
SCHEDULES = [12, 24, 36, 48, (48, 36, 24), (12, 48, 36), (24, 24, 48)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    built = CONFIG.build().eval()
    with torch.no_grad():  # norms and position terms away from their neutral start
        for p in built.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return built


def clip(frames=8, side=70, batch=2, seed=0):
    return torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def test_full_width_is_the_model_without_a_width_bit_for_bit(model):
    for width in (48, (48, 48, 48)):
        assert torch.equal(model(clip(), point=OperatingPoint(width=width)).logits, model(clip()).logits)


@torch.inference_mode()
@pytest.mark.parametrize("tokens", [None, 60])
@pytest.mark.parametrize("width", SCHEDULES)
def test_an_exported_model_computes_the_same(model, width, tokens):
    exported = model.at(OperatingPoint(width=width))
    elastic = model(clip(), point=OperatingPoint(tokens=tokens, width=width))
    alone = exported(clip(), point=OperatingPoint(tokens=tokens))
    for ours, theirs in ((alone.embedding, elastic.embedding), (alone.logits, elastic.logits)):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    assert torch.equal(alone.tokens.coords, elastic.tokens.coords)
    assert alone.tokens.x.shape[-1] == (width if isinstance(width, int) else width[-1])


@torch.inference_mode()
def test_an_exported_model_stands_alone(model):
    exported = model.at(OperatingPoint(width=(36, 24, 12)))
    assert not exported.training
    assert exported.config.widths == (36, 24, 12)
    assert all(p.is_contiguous() for p in exported.parameters())
    theirs = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not theirs & {p.untyped_storage().data_ptr() for p in exported.parameters()}
    assert sum(p.untyped_storage().nbytes() for p in exported.parameters()) == (
        exported.config.cost(frames=8, size=70).parameter_bytes
    )
    rebuilt = FluxViTConfig(**asdict(exported.config)).build().eval()
    rebuilt.load_state_dict(exported.state_dict(), strict=True)
    assert torch.equal(rebuilt(clip()).embedding, exported(clip()).embedding)
    again = exported.at(OperatingPoint(width=12))
    assert torch.allclose(again(clip()).embedding, model(clip(), point=OperatingPoint(width=12)).embedding, atol=1e-5)
    with pytest.raises(PointError, match=r"width 48 of layer 0 of FluxViT .* allowed: 12, 24, 36, or None"):
        exported(clip(), point=OperatingPoint(width=48))


def test_exporting_neither_draws_random_numbers_nor_tracks_gradients(model):
    before = torch.get_rng_state()
    exported = model.at(OperatingPoint(width=24))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad and p.is_leaf for p in exported.parameters())
    assert not replace(CONFIG, learned_positions=False).build().at(OperatingPoint(width=24)).positions.requires_grad


def test_an_export_of_everything_is_the_model(model):
    assert torch.equal(model.at(OperatingPoint())(clip()).embedding, model(clip()).embedding)
    with pytest.raises(PointError, match="no axis memory_tokens"):
        model.at(OperatingPoint(memory_tokens=3))


def test_weights_outside_the_width_get_a_gradient_of_exactly_zero(model):
    widths = (24, 36, 12)
    model.zero_grad()
    model(clip(), point=OperatingPoint(tokens=60, width=widths)).logits.square().sum().backward()
    marked = CONFIG.build()  # ones where the exported model has its weights, by the same rule as `at`
    inside = replace(CONFIG, widths=widths).build().state_dict()
    with torch.no_grad():
        for p in marked.parameters():
            p.zero_()
    checked = 0
    for name, p in model.named_parameters():
        mask = torch.zeros_like(p)
        parts = 3 if ".qkv." in name else 1
        stacked = mask.unflatten(0, (parts, -1))
        small = inside[name].unflatten(0, (parts, -1))
        stacked[tuple(slice(n) for n in small.shape)] = 1
        assert (p.grad[mask == 0] == 0).all(), name
        checked += int((mask == 0).sum())
        if "classifiers" not in name and p.grad[mask == 1].numel() > 1:
            assert (p.grad[mask == 1] != 0).any(), name
    assert checked > 10_000
    model.zero_grad()


def test_training_at_random_widths_moves_every_weight(model):
    from elastivid.layers.elastic import sample_widths

    torch.manual_seed(0)
    student, generator = CONFIG.build().train(), torch.Generator().manual_seed(0)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    optimiser = torch.optim.SGD(student.parameters(), lr=1e-2)
    for step in range(12):
        width = sample_widths(generator, CONFIG.depth, (12, 24, 36, 48), decreasing=step % 2 == 0)
        student(clip(2, 28, seed=step), point=OperatingPoint(width=width)).logits.square().sum().backward()
    optimiser.step()
    assert [n for n, p in student.named_parameters() if torch.equal(p.detach(), before[n])] == []


@pytest.mark.parametrize("tokens", [None, 60])
@pytest.mark.parametrize("width", SCHEDULES)
def test_predicted_macs_equal_the_counter(model, width, tokens):
    point = OperatingPoint(tokens=tokens, width=width)
    counted = measured_macs(lambda: model(clip(batch=1), point=point))
    predicted = CONFIG.cost(frames=8, size=70, tokens=tokens, width=width).macs
    assert abs(predicted / counted - 1) < 0.02
    exported = model.at(OperatingPoint(width=width)).config
    assert exported.cost(frames=8, size=70, tokens=tokens).macs == predicted
    assert exported.cost(frames=8, size=70, tokens=tokens).activation_bytes == (
        CONFIG.cost(frames=8, size=70, tokens=tokens, width=width).activation_bytes
    )


@pytest.mark.parametrize(
    ("preset", "tokens", "width"),
    [("tiny", None, None), ("nano", None, None), ("nano", 256, 128), ("nano", None, 64), ("small", 900, None)],
)
def test_predicted_activations_are_those_that_live(preset, tokens, width):
    config = replace(PRESETS[preset], depth=2)
    built = config.build().eval()
    video = torch.randn(1, 8, 3, min(config.image_size, 168), min(config.image_size, 168))
    point = OperatingPoint(tokens=tokens, width=width)
    predicted = config.cost(frames=8, size=video.shape[-1], tokens=tokens, width=width).activation_bytes
    assert predicted == pytest.approx(peak_bytes(lambda: built(video, point=point)), rel=0.15)


@pytest.mark.parametrize("preset", ["small", "base", "nano", "tiny", "large"])
def test_every_preset_has_a_pool_for_every_width(preset):
    config = replace(PRESETS[preset], depth=1, num_frames=1, image_size=28)
    torch.manual_seed(0)
    built = config.build().eval()
    for width in range(config.head_dim, config.embed_dim + 1, config.head_dim):
        point = OperatingPoint(width=width)
        counted = measured_macs(lambda point=point: built(clip(1, 28, batch=1), point=point))
        assert config.cost(frames=1, size=28, width=width).macs == pytest.approx(counted, rel=0.02)


@torch.inference_mode()
@pytest.mark.parametrize("at_once", [1, 201, 402])
def test_a_few_clips_at_a_time_equal_all_at_once(model, monkeypatch, at_once):
    video, point = clip(batch=3), OperatingPoint(width=(48, 24, 36))
    whole = model(video, point=point)
    tokens = replace(
        model.embed(video, point), valid=torch.rand(3, 200, generator=torch.Generator().manual_seed(2)) > 0.2
    )
    masked = model.encode(tokens, point)
    monkeypatch.setattr(fluxvit, "ROWS_AT_ONCE", at_once)
    assert torch.allclose(model(video, point=point).embedding, whole.embedding, atol=1e-5)
    assert torch.allclose(model.encode(tokens, point).embedding, masked.embedding, atol=1e-5)
    assert not torch.allclose(masked.embedding, whole.embedding, atol=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("precision", "point"), [("float32", OperatingPoint()), ("bfloat16", OperatingPoint(tokens=50, width=(48, 24, 12)))]
)
def test_the_model_compiles_into_one_graph(precision, point):
    """`fullgraph` fails at the first break; the backend runs the graph without generating code."""
    torch.manual_seed(0)
    cast = CONFIG.build().eval().cast(precision)
    compiled = torch.compile(cast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(clip(), point=point).embedding, cast(clip(), point=point).embedding)
    torch._dynamo.reset()


@torch.inference_mode()
def test_bfloat16_moves_embeddings_little(model):
    cast = model.at(OperatingPoint()).cast("bfloat16")
    for width in (48, (24, 36, 24)):
        point = OperatingPoint(tokens=60, width=width)
        exact, rounded = model(clip(), point=point).embedding, cast(clip(), point=point).embedding
        assert rounded.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(exact, rounded.float()).min() > 0.99


def test_tokens_of_another_width_are_refused(model):
    tokens = model.embed(clip(), OperatingPoint(width=24))
    with pytest.raises(PointError, match="the tokens have 24 channels, but the point starts with 48"):
        model.encode(tokens, OperatingPoint())
    shared = model.encode(tokens, OperatingPoint(width=(24, 48, 48))).embedding
    assert torch.equal(shared, model(clip(), point=OperatingPoint(width=(24, 48, 48))).embedding)


def test_configs_that_cannot_be_are_refused():
    with pytest.raises(PointError, match="FluxViT has 3 layers"):
        replace(CONFIG, widths=(12,))
    with pytest.raises(PointError, match=r"width 13 of layer 1"):
        replace(CONFIG, widths=(12, 13, 12))
    with pytest.raises(ValueError, match="num_heads must divide embed_dim 48, got 5"):
        replace(CONFIG, num_heads=5)
    assert isinstance(replace(CONFIG, widths=[12, 24, 12]).build(), FluxViT)
