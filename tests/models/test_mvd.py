"""Masked video distillation: equal to the released student and teachers; what two teachers promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from golden_cases import WORST, close, parsed, places

from elastivid.core.cost import measured_macs
from elastivid.core.errors import WeightsError
from elastivid.layers.position import sincos_3d
from elastivid.models import mae
from elastivid.models.mvd import (
    PRESETS,
    PRETRAINING,
    MVDConfig,
    convert_reference,
    convert_student,
    image_targets,
    standardised_features,
    video_targets,
)
from elastivid.models.videomae import VideoMAEConfig
from elastivid.models.videomae import convert_reference as convert_videomae

LOSSES = {"SmoothL1": F.smooth_l1_loss, "L2": F.mse_loss, "L1": F.l1_loss}
TINY = PRETRAINING["tiny"]


def clip(batch=2, side=70, seed=0):
    return torch.randn(batch, 8, 3, side, side, generator=torch.Generator().manual_seed(seed))


def video_teacher_of(config, frames):
    names = {k: v for k, v in config.items() if k != "encoder_num_classes"}
    own = {k.removeprefix("encoder_"): v for k, v in names.items()}
    return VideoMAEConfig.from_reference({**own, "all_frames": frames})


@torch.inference_mode()
@pytest.mark.parametrize("name", ["mvd", "mvd_cls_allframes"])
def test_equals_the_released_student_and_teachers(golden, name):
    file = parsed(golden(name))
    config = MVDConfig.from_reference(file.config["student"])
    student = config.build().eval()
    student.load_state_dict(convert_student(file.part("student.")), strict=True)
    image_teacher = mae.from_reference(file.config["image_teacher"]).build().eval()
    image_teacher.load_state_dict(mae.convert_reference(file.part("image_teacher.")), strict=True)
    video_teacher = video_teacher_of(file.config["video_teacher"], config.encoder.num_frames).build().eval()
    video_teacher.load_state_dict(convert_videomae(file.part("video_teacher.")), strict=True)
    for i, case in enumerate(c for c in file.cases if "hidden" in c.tensors):
        out = student(case.video, places(case["hidden"]))
        close(out.tokens, case["encoder_tokens"], f"{name}: encoder of case {i}")
        close(out.image, case["student_image"], f"{name}: image of case {i}")
        close(out.video, case["student_video"], f"{name}: video of case {i}")
        image = image_targets(image_teacher, case.video, config.encoder, all_frames=not case.about["time_stride_loss"])
        video = video_targets(video_teacher, case.video, config.encoder)
        if case.about["norm_feature"]:
            image, video = standardised_features(image), standardised_features(video)
        for kind, target, made in (("image", image, out.image), ("video", video, out.video)):
            target = target.gather(1, out.places[..., None].expand_as(made))
            close(target, case[f"target_{kind}"], f"{name}: {kind} target of case {i}")
            close(LOSSES[case.about["loss"]](made, target)[None], case[f"loss_{kind}"], f"{name}: {kind} loss")
    encoder = config.encoder.build().eval()
    encoder.load_state_dict(convert_reference(file.part("student.")), strict=True)
    assert torch.equal(encoder(case.video).embedding, student.encoder(case.video).embedding)


def test_position_tables_equal_the_released_ones(golden):
    for case in (c for c in parsed(golden("mvd")).cases if c.about.get("kind") == "tables"):
        for dim, side, frames in case.about["tables"]:
            close(sincos_3d((frames, side, side), dim), case[f"table_{dim}_{side}_{frames}"][0], "mvd: table")


@torch.inference_mode()
def test_image_teacher_equals_transformers():
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=32, patch_size=8,
        mask_ratio=0.0, layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = transformers.ViTMAEModel(config).eval()
    for parameter in peer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, "img_size": 32, "patch_size": 8}
    ours = mae.from_reference(sizes).build().eval()
    ours.load_state_dict(mae.convert_reference(peer.state_dict()), strict=True)
    image = torch.randn(2, 3, 32, 32)
    noise = torch.arange(16.0).expand(2, -1)  # the order in which transformers shuffles the patches
    wanted = peer(image, noise=noise).last_hidden_state
    close(ours.norm(ours(image[:, None]).tokens.x), wanted, "transformers ViTMAEModel: tokens")


def test_published_costs_of_a_base_student():
    """160 visible: encoder 15.9 G less what is not projected, decoders 30.7 G each."""
    config = PRETRAINING["base"]
    encoder = 12 * (12 * 160 * 768**2 + 2 * 160**2 * 768) + 160 * 1536 * 768
    ours = config.cost(visible=160, hidden=1408).gmacs
    assert (ours - encoder / 1e9) / 2 == pytest.approx(30.7, rel=0.005)
    assert PRESETS["base"].cost(frames=16, size=224).gmacs == pytest.approx(180, rel=0.005)


def test_predicted_macs_equal_the_counter():
    student, visible = TINY.build().eval(), torch.arange(20)[None]
    counted = measured_macs(lambda: student(clip(1), visible))
    assert TINY.cost(visible=20, hidden=80).macs == pytest.approx(counted, rel=0.001)


def test_each_loss_trains_its_own_decoder_and_the_shared_encoder():
    student, visible = TINY.build(), torch.arange(0, 100, 5).expand(2, -1)
    student(clip(), visible).video.square().mean().backward()
    assert all(p.grad is None for p in student.image_decoder.parameters())
    assert all(p.grad is not None for p in student.video_decoder.parameters() if p.requires_grad)
    assert student.encoder.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


@torch.inference_mode()
def test_image_targets_stand_at_the_front_frame_of_their_cube():
    """A teacher whose features are its patch embeddings: the mean colour of frame 2t at every place."""
    teacher = replace(PRESETS["tiny"], tubelet_size=1, num_frames=1, depth=1, class_token=True).build().eval()
    for layer in (teacher.blocks[0].attn.proj, teacher.blocks[0].mlp.fc2):
        layer.weight.zero_()
    teacher.positions.zero_()
    teacher.cube_proj.weight.fill_(1 / 588)
    teacher.cube_proj.bias.zero_()
    video = clip()
    target = image_targets(teacher, video, TINY.encoder)
    wanted = video[:, ::2].unflatten(3, (5, 14)).unflatten(5, (5, 14)).mean((2, 4, 6)).flatten(1)  # (B, t*h*w)
    assert torch.allclose(target[..., 0], wanted, atol=1e-5)
    both = image_targets(teacher, video, TINY.encoder, all_frames=True)
    assert both.shape == (2, 100, 96)
    assert torch.equal(both[..., :48], target)
    shuffled = image_targets(teacher, video.flip(1), TINY.encoder, all_frames=True)
    assert torch.equal(shuffled[:, :25, 48:], both[:, 75:, :48])  # the last frame of the first cube is now the first


@torch.inference_mode()
def test_a_teacher_with_other_patches_sees_the_same_grid():
    teacher = replace(PRESETS["tiny"], patch_size=16, image_size=80).build().eval()
    assert video_targets(teacher, clip(), TINY.encoder).shape == (2, 100, 48)
    with pytest.raises(ValueError, match="cubes last 1 frames and the student's 2"):
        video_targets(replace(PRESETS["tiny"], tubelet_size=1).build(), clip(), TINY.encoder)


def test_a_reference_config_is_read_or_refused():
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        MVDConfig.from_reference({"colour": "red"})
    with pytest.raises(WeightsError, match=r"unknown keys \['colour'\]"):
        mae.from_reference({"colour": "red"})


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest differences:", {name: f"{worst:.1e}" for name, worst in sorted(WORST.items())})
