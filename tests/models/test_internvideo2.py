"""InternVideo2: equal to the released encoder and to the student of stage 1."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_cases import WORST, close, parsed, places

from elastivid.core.cost import measured_macs
from elastivid.core.errors import WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.models.internvideo2 import (
    PRESETS,
    STAGE1,
    InternVideo2Config,
    Stage1Config,
    convert_reference,
    convert_stage1,
)

TINY = PRESETS["tiny"]


def clip(batch=2, frames=4, side=70, seed=0):
    return torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def randomised(model, seed=0):
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.15, mean=float("norm" in name and name.endswith("weight")))
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize("name", ["internvideo2", "internvideo2_variants"])
def test_equals_the_released_encoder(golden, name):
    file = parsed(golden(name))
    model = InternVideo2Config.from_reference(file.config).build().eval()
    model.load_state_dict(convert_reference(file.parameters), strict=True)
    for i, case in enumerate(file.cases):
        out = model(case.video)
        close(out.tokens.x, case["tokens"], f"{name}: tokens of case {i}")
        close(out.taps["pooled"], case["pooled"], f"{name}: pooled of case {i}")
        close(out.logits, case["logits"], f"{name}: logits of case {i}")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["internvideo2_pretrain", "internvideo2_pretrain_sep"])
def test_equals_the_released_student_of_stage_1(golden, name):
    file = parsed(golden(name))
    student = Stage1Config.from_reference(file.config).build().eval()
    student.load_state_dict(convert_stage1(file.parameters), strict=True)
    for i, case in enumerate(file.cases):
        out = student(case.video, places(case["hidden"][:, 1:]))
        made = {"clip_middle": out.clip, "clip_final": out.final, "mae": out.mae}
        for kind, value in made.items():
            close(value, case["final" if kind == "clip_final" else kind], f"{name}: {kind} of case {i}")
            if f"loss_{kind}" in case.tensors:
                target = case["teacher_mae" if kind == "mae" else f"teacher_{kind}"]
                close((2 - 2 * (value * target).sum(-1)).mean()[None], case[f"loss_{kind}"], f"{name}: loss")
    encoder = replace(student.config.encoder).build().eval()
    encoder.load_state_dict(convert_reference(file.parameters), strict=True)
    assert torch.equal(encoder(case.video).embedding, student.encoder(case.video).embedding)


@pytest.mark.parametrize(
    ("preset", "frames", "gmacs"), [("small", 12, 154), ("base", 12, 440), ("small", 8, 83), ("base", 8, 253)]
)
def test_published_costs(preset, frames, gmacs):
    assert PRESETS[preset].cost(frames=frames, size=224).gmacs == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(("preset", "billion"), [("1b", 1.02), ("6b", 5.91)])
def test_published_sizes(preset, billion):
    assert PRESETS[preset].cost(frames=8, size=224).parameter_bytes / 4e9 == pytest.approx(billion, rel=0.02)


def test_predicted_macs_of_the_student_equal_the_counter():
    student, visible = STAGE1["tiny"].build().eval(), torch.arange(20)[None]
    counted = measured_macs(lambda: student(clip(1), visible))
    assert STAGE1["tiny"].cost(visible=20).macs == pytest.approx(counted, rel=0.001)


@torch.inference_mode()
@pytest.mark.parametrize("separate", [False, True])
def test_positions_follow_the_grid(separate):
    model = randomised(replace(TINY, separate_positions=separate).build())
    assert model.table((4, 5, 5), 48).shape == (100, 48)
    assert torch.equal(model.table((4, 5, 5), 12), model.table((4, 5, 5), 48)[:, :12])
    longer = model.table((8, 5, 5), 48)
    assert longer.shape == (200, 48)
    middle = longer.unflatten(0, (8, 25))[1:7:2] * 0.5 + longer.unflatten(0, (8, 25))[2:8:2] * 0.5
    native = model.table((4, 5, 5), 48).unflatten(0, (4, 25))
    assert torch.allclose(middle, 0.5 * (native[:-1] + native[1:]), atol=1e-5)  # time is linear
    assert model(clip(frames=7, side=42)).tokens.grid == (7, 3, 3)


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "qk_norm": False, "separate_positions": True}])
def test_a_cut_copy_computes_what_the_elastic_model_computes(changes):
    model = randomised(replace(TINY, **changes).build())
    point = OperatingPoint(width=(48, 36, 24), tokens=30)
    alone = model.at(point)(clip(), point=OperatingPoint(tokens=30))
    assert torch.allclose(alone.logits, model(clip(), point=point).logits, atol=1e-5)


@torch.inference_mode()
def test_hidden_pixels_and_the_order_of_tokens_change_nothing():
    student = randomised(STAGE1["tiny"].build())
    visible = torch.arange(0, 100, 4).expand(2, -1)
    video = clip()
    other = video.clone()
    other[:, 0, :, :14, 14:28] = 9.0  # cell 1, hidden
    assert torch.equal(student(video, visible).final, student(other, visible).final)
    turned = student(video, visible.flip(1))
    assert torch.allclose(turned.final, student(video, visible).final, atol=1e-5)
    assert torch.allclose(turned.mae.flip(2), student(video, visible).mae, atol=1e-5)


def test_every_parameter_of_the_student_is_trained():
    student = randomised(STAGE1["tiny"].build())
    out = student(clip(), torch.arange(0, 100, 5).expand(2, -1))
    (out.clip[..., 0].sum() + out.final[..., 0].sum() + out.mae[..., 0].sum()).backward()
    assert [n for n, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_a_reference_config_is_read_or_refused():
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        InternVideo2Config.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        Stage1Config.from_reference({"colour": "red"})


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest differences:", {name: f"{worst:.1e}" for name, worst in sorted(WORST.items())})
