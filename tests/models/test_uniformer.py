"""UniFormer and UniFormerV2: equal to the released code, and what their blocks promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_cases import WORST, close, parsed

from elastivid.core.cost import measured_macs
from elastivid.core.errors import PointError, WeightsError
from elastivid.core.point import OperatingPoint
from elastivid.models import uniformer, uniformerv2


def clip(frames=4, height=64, width=64, batch=2):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uniformer", "uniformer_split"])
def test_equals_the_released_uniformer(golden, name):
    file = parsed(golden(name))
    model = uniformer.UniFormerConfig.from_reference(file.config).build().eval()
    model.load_state_dict(uniformer.convert_reference(file.parameters), strict=True)
    for i, case in enumerate(file.cases):
        for stage, left in enumerate(model.stage_outputs(case.video), start=1):
            if f"stage{stage}" in case.tensors:
                close(left, case[f"stage{stage}"], f"{name}: stage {stage} of case {i}")
        close(model(case.video).logits, case["logits"], f"{name}: logits of case {i}")


@torch.inference_mode()
@pytest.mark.parametrize("name", ["uniformerv2", "uniformerv2_single_local", "uniformerv2_frozen"])
def test_equals_the_released_uniformerv2(golden, name):
    file = parsed(golden(name))
    model = uniformerv2.UniFormerV2Config.from_reference(file.config).build().eval()
    model.load_state_dict(uniformerv2.convert_reference(file.parameters), strict=True)
    for i, case in enumerate(file.cases):
        out = model(case.video)
        close(out.taps["frames"], case["backbone_tokens"], f"{name}: tokens of case {i}")
        for index in range(len(model.global_blocks)):
            close(out.taps[f"query{index}"], case[f"global_query_{index}"], f"{name}: query of case {i}")
        close(out.logits, case["logits"], f"{name}: logits of case {i}")


@pytest.mark.parametrize(("preset", "gmacs", "million"), [("small", 41.8, 21), ("base", 96.7, 50)])
def test_published_costs_of_uniformer(preset, gmacs, million):
    cost = replace(uniformer.PRESETS[preset], num_classes=400).cost(frames=16, size=224)
    assert cost.gmacs == pytest.approx(gmacs, rel=0.02)
    assert cost.parameter_bytes / 4e6 == pytest.approx(million, rel=0.03)


@pytest.mark.parametrize("family", [uniformer, uniformerv2])
def test_predicted_macs_equal_the_counter(family):
    tiny = family.PRESETS["tiny"]
    variants = [{"split": True, "temporal_patches": True}, {}]
    if family is uniformerv2:
        variants = [{"temporal_kernel": 3, "temporal_stride": 2, "local_blocks": 1}, {"balance": False}]
    size = tiny.image_size
    for changes in variants:
        config = replace(tiny, **changes)
        model = config.build().eval()
        counted = measured_macs(lambda model=model: model(clip(6, size, size, batch=1)))
        assert config.cost(frames=6, size=size).macs == pytest.approx(counted, rel=0.01)


@torch.inference_mode()
def test_an_untrained_uniformerv2_is_its_image_model():
    """Frames do not see each other, and the query is still zero: the result is the mean class token."""
    model = uniformerv2.PRESETS["tiny"].build().eval()
    video = clip(4, 70, 70)
    out = model(video)
    alone = torch.stack([model(video[:, t : t + 1]).taps["frames"][:, 0] for t in range(4)], dim=1)
    assert torch.allclose(out.taps["frames"], alone, atol=1e-5)
    assert not out.taps["query1"].any()
    assert torch.allclose(out.embedding, model(video.flip(1)).embedding, atol=1e-5)


@torch.inference_mode()
def test_a_local_block_reaches_two_steps_and_a_global_one_all():
    model = uniformer.PRESETS["tiny"].build().eval()
    x = torch.randn(1, 16, 9, 4, 4)
    other = x.clone()
    other[:, :, 0] += 1
    changed = (model.stages[0][0](x) - model.stages[0][0](other)).abs().amax((0, 1, 3, 4))
    assert changed[:4].gt(0).all()  # one frame by the position code, two by the mixing
    assert not changed[4:].any()
    x, other = (y[:, :1].expand(-1, 32, -1, -1, -1) for y in (x, other))
    assert (model.stages[2][0](x) - model.stages[2][0](other)).abs().amax((0, 1, 3, 4)).gt(0).all()


@torch.inference_mode()
@pytest.mark.parametrize(("family", "side"), [(uniformer, 32), (uniformerv2, 14)])
def test_takes_any_frames_and_size(family, side):
    model = family.PRESETS["tiny"].build().eval()
    out = model(clip(7, 2 * side, 3 * side))
    assert out.logits.shape == (2, 5)
    assert out.tokens.grid[1:] == (2, 3)
    with pytest.raises(ValueError, match=f"multiples of {side}, got"):
        model(clip(7, side + 1, side))
    with pytest.raises(PointError, match="has no axis tokens"):
        model(clip(7, side, side), point=OperatingPoint(tokens=3))


def test_a_reference_config_is_read_or_refused():
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        uniformer.UniFormerConfig.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        uniformerv2.UniFormerV2Config.from_reference({"colour": "red"})
    with pytest.raises(ValueError, match="four stages"):
        uniformer.UniFormerConfig(depths=(1, 2))
    with pytest.raises(ValueError, match="global_layers must be layers 0 to 11"):
        uniformerv2.UniFormerV2Config(global_layers=(12,))


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest differences:", {name: f"{worst:.1e}" for name, worst in sorted(WORST.items())})
