"""What every encoder and every selector must do, whichever paper it comes from. New ones are found, not listed."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

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
from elastivid.select.base import Selector


def modules(package):
    names = [f"{package.__name__}.{m.name}" for m in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names]


TINY = {m.__name__: m.PRESETS["tiny"] for m in modules(elastivid.models) if "tiny" in getattr(m, "PRESETS", {})}
SELECTORS = sorted(
    {c for m in modules(elastivid.select) for _, c in inspect.getmembers(m, inspect.isclass)
     if issubclass(c, Selector) and c is not Selector},
    key=lambda c: c.__name__,
)  # fmt: skip


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
    assert len(SELECTORS) >= 1


def test_tiny_is_an_encoder_below_a_million_parameters(model):
    assert isinstance(model, VideoEncoder)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


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
    ("axis", "value"), [("tokens", 5), ("selector", SELECTORS[0]()), ("width", None), ("memory_tokens", 4)]
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


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("keep", [1, 7, 36])
def test_selectors_keep_exactly_what_is_asked(selector, keep):
    grid = (4, 3, 3)
    x = torch.randn(3, 36, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    tokens = Tokens(x=x, coords=patch_coordinates(grid).expand(3, -1, -1), grid=grid)
    kept = selector().select(tokens, keep)
    assert kept.shape == (3, keep)
    assert not kept.requires_grad
    assert all(row == sorted(set(row)) and 0 <= row[0] <= row[-1] < 36 for row in kept.tolist())
    alone = Tokens(x=x[1:2], coords=patch_coordinates(grid)[None], grid=grid)
    assert torch.equal(selector().select(alone, keep), kept[1:2])
    with pytest.raises(PointError, match="cannot keep 37 tokens of 36"):
        selector().select(tokens, 37)
