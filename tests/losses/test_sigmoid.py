"""SigLIP's loss against closed forms, the public code and itself in tiles."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F

from elastivid.losses.sigmoid import sigmoid


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def leaves(b=7, d=5, dtype=torch.float32):
    values = (unit(b, d), unit(b, d, seed=1), torch.tensor(7.0), torch.tensor(-3.0))
    return [value.to(dtype).requires_grad_() for value in values]


def test_closed_forms():
    eye = torch.eye(4)
    assert sigmoid(eye, eye, 10.0, -10.0).item() == pytest.approx(math.log(2) + 3 * math.log1p(math.exp(-10)), abs=1e-6)
    zero = torch.zeros(4, 8)
    assert sigmoid(zero, zero, 10.0, 0.0).item() == pytest.approx(4 * math.log(2), abs=1e-6)
    assert sigmoid(zero, zero, 10.0, -10.0).item() == pytest.approx(10.000182, abs=1e-5)


def test_equals_binary_cross_entropy_with_its_gradients():
    ours, theirs = leaves(), leaves()
    sigmoid(*ours).backward()
    clips, texts, scale, bias = theirs
    logits = scale * clips @ texts.T + bias
    F.binary_cross_entropy_with_logits(logits, torch.eye(7), reduction="sum").div(7).backward()
    assert sigmoid(*ours).item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, torch.eye(7), reduction="sum").item() / 7, rel=1e-6
    )
    for one, two in zip(ours, theirs, strict=True):
        assert (one.grad - two.grad).abs().max() < 1e-6


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_tiles_change_nothing(chunk):
    whole, tiled = leaves(), leaves()
    sigmoid(*whole).backward()
    loss = sigmoid(*tiled, chunk=chunk)
    loss.backward()
    assert loss.item() == pytest.approx(sigmoid(*whole).item(), rel=1e-6)
    for one, two in zip(whole, tiled, strict=True):
        assert (one.grad - two.grad).abs().max() < 1e-6


def test_no_tensor_is_larger_than_a_tile():
    """Counts what every operation returns, forward and backward."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    self.found = max(self.found, value.numel())
            return out

    clips, texts = unit(64, 4).requires_grad_(), unit(64, 4, seed=1).requires_grad_()
    with Largest() as seen:
        sigmoid(clips, texts, 10.0, -10.0, chunk=8).backward()
    assert seen.found == 64 * 4  # the vectors themselves; a tile has 64 cosines
    with Largest() as seen:
        sigmoid(clips, texts, 10.0, -10.0).backward()
    assert seen.found == 64 * 64


def test_the_best_bias_at_no_cosines():
    bias = torch.tensor(-1.0, requires_grad=True)
    zero = torch.zeros(64, 2)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(sigmoid(zero, zero, 1.0, bias), bias)
        bias.data -= 0.5 * gradient
    assert bias.item() == pytest.approx(-math.log(63), abs=1e-3)


def test_a_pair_touches_no_other_pair():
    """The gradient with respect to clip 0 does not change when clip 1 and text 1 do, but for the pair with text 1."""

    def gradient(texts):
        clips = unit(3, 4).requires_grad_()
        (found,) = torch.autograd.grad(sigmoid(clips, texts, 5.0, -1.0), clips)
        return found[0]

    texts, other = torch.eye(4)[:3], torch.eye(4)[:3].clone()
    other[1] = torch.eye(4)[3]
    changed = (gradient(texts) != gradient(other)).nonzero().flatten().tolist()
    assert changed == [1, 3]  # channels of the old and the new text 1


def test_equals_the_public_code(golden):
    """One device, and whole and in chunks; the mean of the losses of several ranks is that of the joint batch."""
    tensors, metadata = golden("contrastive_losses")
    for i, case in enumerate(json.loads(metadata["cases"])):
        settings = case["settings"]
        if settings["loss"] != "siglip":
            continue
        names = ("image", "text", "scale", "bias")
        inputs = [tensors[f"case{i}.{name}"].clone().requires_grad_() for name in names]
        loss = sigmoid(*inputs, chunk=settings.get("chunk_size"))
        loss.backward()
        world = settings["world_size"]
        assert (loss - tensors[f"case{i}.loss"].mean()).abs() < 1e-5, case["name"]
        for name, value in zip(names, inputs, strict=True):
            wanted = tensors[f"case{i}.grad_{name}"]
            joint = wanted.mean() if value.ndim == 0 else wanted / world
            assert (value.grad - joint).abs().max() < 1e-5, (case["name"], name)


def test_half_precision_vectors_get_half_precision_gradients():
    clips, texts = (unit(5, 4, seed=s).bfloat16().requires_grad_() for s in (0, 1))
    loss = sigmoid(clips, texts, 10.0, -10.0)
    loss.backward()
    assert (loss.dtype, clips.grad.dtype) == (torch.float32, torch.bfloat16)
    assert loss.item() == pytest.approx(sigmoid(clips.float(), texts.float(), 10.0, -10.0).item(), rel=0.02)


def test_errors():
    with pytest.raises(ValueError, match=r"both be \(B, D\)"):
        sigmoid(torch.zeros(2, 3), torch.zeros(3, 3), 1.0, 0.0)
    with pytest.raises(ValueError, match="chunk must be >= 1"):
        sigmoid(torch.zeros(2, 3), torch.zeros(2, 3), 1.0, 0.0, chunk=0)
