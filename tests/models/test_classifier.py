"""The classifier reads what it says it reads, at every point of its encoder, and its config rebuilds it."""

from __future__ import annotations

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.layers.histograms import cubes
from elastivid.models.adavid import PRESETS as ADAVID
from elastivid.models.classifier import ClassifierConfig, ClipClassifier
from elastivid.models.fluxvit import PRESETS as FLUXVIT
from elastivid.video.transforms import Transform

TINY = FLUXVIT["tiny"]
NEW = {"motion_words", "seconds"}  # what 0.3.0 did not know


def classifier(blocks: tuple[int, ...] = (0, 2), encoder=TINY) -> ClipClassifier:
    torch.manual_seed(0)
    model = ClassifierConfig(encoder, ("a", "b", "c"), blocks, Transform(size=70), 4).build().eval()
    torch.nn.init.normal_(model.head.weight)
    return model


def video(batch: int = 3, frames: int = 4, size: int = 70) -> torch.Tensor:
    return torch.randn(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_are_means_spreads_and_changes_of_tokens():
    model, x = classifier(), video()
    features = model.features(x)
    assert features.shape == (3, model.num_features)
    out = model.encoder(x)
    d, e = TINY.embed_dim, TINY.pool_dim
    assert torch.equal(features[:, :e], out.embedding)
    tokens = out.tokens.x[:, 1:]
    assert torch.allclose(features[:, e : e + d], tokens.mean(1), atol=1e-6)
    mean, spread, change = features[:, -3 * d :].split(d, dim=1)  # of the last block, whose tokens are the final ones
    assert torch.allclose(mean, tokens.mean(1), atol=1e-6)
    assert torch.allclose(spread, tokens.var(1, unbiased=False).add(1e-6).sqrt(), atol=1e-5)
    frames = tokens.unflatten(1, (4, 25))
    assert torch.allclose(change, (frames[:, 1:] - frames[:, :-1]).abs().mean((1, 2)), atol=1e-5)
    assert torch.equal(model(x).logits, model.classify(features))


@torch.no_grad()
def test_change_compares_kept_tokens_with_those_of_the_same_place():
    model, x = classifier((2,)), video()
    point = OperatingPoint(tokens=40)
    out = model.encoder(x, point=point)
    change = model.features(x, point=point)[:, -TINY.embed_dim :]
    for clip in range(3):
        token_at = dict(zip(out.taps["kept"][clip].tolist(), out.tokens.x[clip, 1:], strict=True))
        pairs = [(token - token_at[cell - 25]).abs() for cell, token in token_at.items() if cell - 25 in token_at]
        assert pairs
        assert torch.allclose(change[clip], torch.stack(pairs).mean(0), atol=1e-5)
    still = x[:, :1].expand(-1, 4, -1, -1, -1)
    model.encoder.positions.zero_()
    assert model.features(still)[:, -TINY.embed_dim :].abs().max() < 1e-5
    assert model.features(video(frames=1))[:, -TINY.embed_dim :].abs().max() == 0  # nothing before the first frame


@torch.no_grad()
@pytest.mark.parametrize("encoder", [TINY, ADAVID["tiny"]], ids=["fluxvit", "adavid"])
def test_batches_points_and_config(encoder):
    model = classifier(encoder=encoder)
    size = 70 if encoder is TINY else encoder.image_size
    x = video(size=size)
    whole = model(x).logits
    assert torch.allclose(torch.cat([model(x[i : i + 1]).logits for i in range(3)]), whole, atol=1e-4)
    narrow = model(x, point=OperatingPoint(width=encoder.head_dim))
    assert narrow.embedding.shape == (3, model.num_features)
    assert not torch.allclose(narrow.logits, whole)
    config = ClassifierConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    again = config.build().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x).logits, whole)
    assert again.config == model.config
    cost = model.cost(frames=4, size=size)
    assert cost.macs == encoder.cost(frames=4, size=size).macs + 3 * model.num_features
    head = sum(parameter.numel() for parameter in model.head.parameters())
    assert cost.parameter_bytes == encoder.cost(frames=4, size=size).parameter_bytes + 4 * head
    with pytest.raises(PointError, match="no streaming state"):
        model(x, state=object())


@torch.no_grad()
def test_two_readers_have_their_own_logits_and_their_product_is_the_answer():
    config = ClassifierConfig(TINY, ("a", "b", "c"), (1,), Transform(size=70), 4, motion_words=4)
    model, x = config.build().eval(), video()
    assert ClassifierConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    draws = torch.Generator().manual_seed(1)
    model.motion.vectors.fit(torch.rand(60, 4, 96, generator=draws), torch.rand(60, 3, generator=draws) - 0.5)
    for layer in (model.head, model.motion.layer):
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
    out = model(x)
    assert torch.equal(out.taps["encoder"], model.classify(model.features(x)))
    shares = torch.stack([logits.softmax(dim=-1) for logits in out.taps.values()])
    wanted = shares.prod(dim=0)
    assert torch.allclose(out.logits.softmax(dim=-1), wanted / wanted.sum(dim=-1, keepdim=True), atol=1e-5)
    plain = classifier((1,)).cost(frames=4, size=70).macs
    with FlopCounterMode(display=False) as counter:
        model.motion(x[:1])
    assert model.cost(frames=4, size=70).macs == plain + counter.get_total_flops() // 2
    assert model.cost(frames=4, size=70).activation_bytes >= model.config.reader_bytes(4, 70) > 0
    layer = sum(parameter.numel() for parameter in model.motion.parameters())
    without = classifier((1,)).cost(frames=4, size=70).parameter_bytes
    assert model.cost(frames=4, size=70).parameter_bytes == without + 4 * layer + model.motion.vectors.num_bytes


def test_clips_without_motion_to_read_are_refused():
    model = ClassifierConfig(TINY, ("a", "b"), (), Transform(size=70), 4, motion_words=2).build().eval()
    for shape in ((1, 1, 3, 70, 70), (1, 4, 3, 14, 70)):
        with pytest.raises(PointError, match="it needs 2 frames of 28 pixels a side or more, got"):
            model(torch.zeros(shape))


def test_files_of_earlier_versions_are_read_or_refused_by_name():
    values = {key: value for key, value in classifier((1,)).config.to_dict().items() if key not in NEW}
    assert ClassifierConfig.from_dict({**values, "histograms": []}) == classifier((1,)).config
    with pytest.raises(ValueError, match=r"histograms as version 0\.3\.0 did; train it again with motion_words=32"):
        ClassifierConfig.from_dict({**values, "histograms": [3, 3, 3]})


def test_windows_are_as_long_as_training_clips():
    config = ClassifierConfig(TINY, ("a", "b"), (), Transform(size=70), 4)
    assert config.sampling == Sampling(frames=4, size=70)
    short = dataclasses.replace(config, seconds=1.5).sampling
    assert (short.window_seconds, short.stride_seconds, short.frames, short.size) == (1.5, 0.75, 4, 70)


@torch.no_grad()
def test_the_second_reader_sees_colours_in_full_precision():
    transform = Transform(size=70, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    reader = ClassifierConfig(TINY, ("a", "b"), (), transform, 4, motion_words=3).build().eval().motion
    draws = torch.Generator().manual_seed(1)
    reader.vectors.fit(torch.rand(60, 4, 96, generator=draws), torch.rand(60, 3, generator=draws) - 0.5)
    frames = torch.randint(256, (1, 4, 70, 70, 3), dtype=torch.uint8, generator=draws)
    video = transform.normalised(frames)
    wanted = reader.vectors(*cubes(frames.movedim(-1, 2) / 255, 14))
    assert torch.allclose(reader.read(video), wanted, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        inside = reader.read(video)
    assert torch.equal(inside, reader.read(video))


@pytest.mark.parametrize("count", [30, 2000])  # fewer rows than columns, and more
def test_the_second_reader_is_solved_for(count):
    config = ClassifierConfig(TINY, ("a", "b", "c"), (), Transform(size=70), 4, motion_words=2)
    reader = config.build().eval().motion
    rows = torch.randn(count, reader.vectors.length, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 3
    reader.solve(rows, labels, ridge=0.5, sharpness=2.0)
    x, y = rows.double(), torch.nn.functional.one_hot(labels).double()
    weight = reader.layer.weight.double().T / 2.0
    # at the least of |X W - (Y - mean Y)|^2 + ridge 4 |W|^2 the slope is 0
    slope = x.T @ (x @ weight - (y - y.mean(0))) + 0.5 * 4 * weight
    assert slope.abs().max() < 1e-5 * (x.T @ y).abs().max()
    once = reader.layer.weight.clone()
    reader.solve(rows.repeat(4, 1), labels.repeat(4), views=4, ridge=0.5, sharpness=2.0)
    assert torch.allclose(reader.layer.weight, once, atol=1e-5)  # every clip four times is every clip once


def test_impossible_configs_are_refused():
    for words, frames in ((-1, 8), (4, 1)):
        with pytest.raises(ValueError, match=rf"motion_words must be 0 for none.*; got {words} for {frames} frames"):
            ClassifierConfig(TINY, ("a", "b"), frames=frames, motion_words=words)
    with pytest.raises(ValueError, match="at least two classes with different names"):
        ClassifierConfig(TINY, ("a", "a"))
    with pytest.raises(ValueError, match=r"the encoder has blocks 0 to 2, got \(3,\)"):
        ClassifierConfig(TINY, ("a", "b"), (3,))


def test_several_threads_may_run_one_classifier():
    """Batches of different sizes at the same time: each gets its own features, from a copy as well."""
    model = classifier(blocks=(0, 1))
    copied = copy.deepcopy(model)
    clips = [torch.randn(1 + number % 3, 4, 3, 70, 70) for number in range(24)]

    def both(clip):
        with torch.inference_mode():
            return model.features(clip), copied.features(clip)

    alone = [both(clip)[0] for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for wanted, (one, two) in zip(alone, pool.map(both, clips), strict=True):
            assert torch.allclose(wanted, one, atol=1e-5)
            assert torch.allclose(wanted, two, atol=1e-5)
