"""Unmasked teacher: equal to the released student, teacher and fine-tuning model; what its mask promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_cases import WORST, close, parsed, places

from elastivid.core.cost import measured_macs
from elastivid.core.errors import WeightsError
from elastivid.core.tokens import Tokens
from elastivid.layers.embed import patch_coordinates
from elastivid.layers.teach import taught
from elastivid.models.umt import (
    PRESETS,
    PRETRAINING,
    TEACHERS,
    ClipTeacherConfig,
    UMTConfig,
    convert_reference,
    convert_student,
    convert_teacher,
    fine_tuning_table,
    hub_teacher,
)
from elastivid.models.videomae import VideoMAEConfig
from elastivid.select.masks import AttentionScore, drawn

TINY = PRETRAINING["tiny"]


def clip(batch=2, frames=4, side=70, seed=0):
    return torch.randn(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["umt", "umt_tubelet"])
def test_equals_the_released_student_and_teacher(golden, name):
    file = parsed(golden(name))
    student = UMTConfig.from_reference(file.config["student"]).build().eval()
    student.load_state_dict(convert_student(file.part("student.")), strict=True)
    teacher = ClipTeacherConfig.from_reference(file.config["teacher"]).build().eval()
    teacher.load_state_dict(convert_teacher(file.part("teacher.")), strict=True)
    for i, case in enumerate(file.cases):
        said, visible = teacher(case.video), places(case["hidden"])
        close(said.features, case["teacher_features"], f"{name}: teacher of case {i}")
        close(
            said.attention.reshape(case["teacher_cls_attention"].shape),
            case["teacher_cls_attention"],
            f"{name}: attention",
        )
        kept = selected(case, student.config.encoder.table_grid, visible.shape[1])
        assert torch.equal(kept, visible)
        made = student(case.video, visible)
        target = said.features.gather(2, visible[None, ..., None].expand_as(made))
        close(made, case["student"], f"{name}: student of case {i}")
        close(target, case["target"], f"{name}: target of case {i}")
        losses = {"l2": (2 - 2 * (made * target).sum(-1)).mean(), "mse": F.mse_loss(made, target)}
        losses["smooth_l1"] = F.smooth_l1_loss(made, target)
        for kind, loss in losses.items():
            close(loss[None], case[f"loss_{kind}"], f"{name}: loss")
    encoder = student.config.encoder.build().eval()
    encoder.load_state_dict(convert_reference(file.part("student.")), strict=True)
    assert torch.equal(encoder(case.video).embedding, student.encoder(case.video).embedding)


def selected(case, grid, keep):
    """Places that the file's ranking keeps: the first ones of every frame."""
    batch, order = len(case["video"]), case["order"]
    scores = torch.zeros(order.shape).scatter(1, order, -torch.arange(order.shape[1]).float().expand_as(order))
    coords = patch_coordinates(grid).expand(batch, -1, -1)
    ranked = AttentionScore(lambda tokens: scores.reshape(batch, -1))
    return ranked.select(Tokens(x=coords, coords=coords, grid=grid), keep)


@torch.inference_mode()
def test_equals_the_released_fine_tuning_model(golden):
    file = parsed(golden("umt_finetune"))
    config = VideoMAEConfig.from_reference({**file.config, "use_learnable_pos_emb": True})
    model = config.build().eval()
    model.load_state_dict(convert_reference(file.parameters), strict=True)
    for case in file.cases:
        if case.about.get("kind") == "tables":
            for dim, tokens, frames in case.about["tables"]:
                side = int((tokens / frames) ** 0.5)
                table = fine_tuning_table((frames, side, side), dim)
                close(table, case[f"table_{dim}_{tokens}_{frames}"][0], "umt_finetune: table")
            continue
        out = model(case.video)
        close(out.tokens.x, case["tokens"], "umt_finetune: tokens")
        close(out.embedding, case["feature"], "umt_finetune: feature")
        close(out.logits, case["logits"], "umt_finetune: logits")


@torch.inference_mode()
def test_teacher_equals_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=70, patch_size=14,
        projection_dim=24, hidden_act="quick_gelu",
    )  # fmt: skip
    peer = transformers.CLIPVisionModelWithProjection(config).eval()
    peer.save_pretrained(tmp_path)
    teacher = hub_teacher(tmp_path, taught_blocks=2)
    image = torch.randn(3, 3, 70, 70)
    hidden = peer(image).last_hidden_state[:, 1:]
    wanted = F.normalize(peer.visual_projection(peer.vision_model.post_layernorm(hidden)), dim=-1)
    close(teacher(image[:, None]).features[-1], wanted, "transformers CLIPVisionModel: last block")


def test_the_teacher_gets_no_gradient_and_sees_frames_apart():
    teacher, video = TEACHERS["tiny"].build().eval(), clip()
    said = teacher(video)
    assert not said.features.requires_grad
    alone = teacher(video[:, 2:3])
    assert torch.allclose(said.features[:, :, 50:75], alone.features, atol=1e-5)
    assert torch.allclose(said.attention[:, 50:75], alone.attention, atol=1e-6)
    assert said.attention.unflatten(1, (4, 25)).sum(-1).lt(1).all()  # the class token also attends to itself


def test_drawn_places_are_a_share_of_every_frame_and_follow_the_attention():
    attention = torch.full((64, 100), 0.01)
    attention[:, ::25] = 1.0  # the first place of each frame
    coords = patch_coordinates((4, 5, 5)).expand(64, -1, -1)
    mask = AttentionScore(lambda tokens: drawn(attention, range(64)))
    kept = mask.select(Tokens(x=coords, coords=coords, grid=(4, 5, 5)), 20)
    assert (torch.stack([torch.bincount(row // 25, minlength=4) for row in kept]) == 5).all()
    assert (kept % 25 == 0).sum() > 0.9 * 256


def test_predicted_macs_equal_the_counter():
    student, visible = TINY.build().eval(), torch.arange(20)[None]
    counted = measured_macs(lambda: student(clip(1), visible))
    assert TINY.cost(visible=20).macs == pytest.approx(counted, rel=0.001)
    assert PRESETS["base"].cost(frames=8, size=224).gmacs == pytest.approx(180, rel=0.01)
    teacher = TEACHERS["tiny"].build().eval()
    assert TEACHERS["tiny"].cost(frames=4).macs == pytest.approx(measured_macs(lambda: teacher(clip(1))), rel=0.001)


def test_every_parameter_of_the_student_is_trained():
    student = TINY.build()
    student(clip(), torch.arange(0, 100, 5).expand(2, -1))[..., 0].sum().backward()
    assert [n for n, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_wrong_configs_are_refused():
    assert taught(12, 3, 2) == [7, 9, 11]
    with pytest.raises(ValueError, match="4 blocks at an interval of 1 do not fit into 3"):
        taught(3, 4, 1)
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        UMTConfig.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match="only 'l2' is offered"):
        UMTConfig.from_reference({"clip_norm_type": "none"})
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        ClipTeacherConfig.from_reference({"colour": "red"})


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest differences:", {name: f"{worst:.1e}" for name, worst in sorted(WORST.items())})
