"""Masked video distillation: a student rebuilds, at hidden places, what an image and a video teacher see there.

Paper: "Masked Video Distillation: Rethinking Masked Feature Modeling", arXiv 2212.04500.

    student   = VideoMAE's encoder on the visible tokens, with stored three-dimensional sine-cosine positions
    image     = decoder_1(student) against an image transformer's features of the first frame of every cube
    video     = decoder_2(student) against a video transformer's features of the whole clip
    loss      = smooth L1 of both over hidden places, added

Teachers see the unmasked clip and are read after their last block, before the norm. Both are encoders of
`models.videomae`: the image teacher has cubes of one frame and a class token, whose row of the position table is added
to the token when it is converted.

Where we depart: teachers whose patches have another size are fed the clip resized to the student's grid here, not in
the data loader; biases of keys, which cancel in the softmax, are not kept.

Cost of a step: student at its visible tokens, two decoders over all places, image teacher on T / k frames, video
teacher on the clip; for a base student with base teachers the teachers are 58 % of it.

Letters: B batch, T frames, H W pixels, k frames of a cube, h w grid, n = h w, N tokens, V visible, M hidden,
D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost
from elastivid.core.errors import require_known_keys
from elastivid.models.videomae import (
    DecoderConfig,
    MaskedDecoder,
    PretrainingConfig,
    VideoMAE,
    VideoMAEConfig,
    complement,
    initialise,
    renamed,
    visible_tokens,
)


@dataclass(frozen=True)
class MVDConfig:
    """A student and its two decoders.

    Args:
        encoder: sizes of the student.
        decoder: sizes of both decoders; its `output_dim` is not used.
        image_dim, video_dim: channels of the targets; `image_dim` counts all frames of a cube when all are taught.
    """

    encoder: VideoMAEConfig
    decoder: DecoderConfig
    image_dim: int
    video_dim: int

    def build(self) -> MVD:
        """An untrained student."""
        return MVD(self)

    def cost(self, *, visible: int, hidden: int) -> Cost:
        """Closed-form cost of the student's forward pass on one clip, teachers not counted."""
        both = [
            PretrainingConfig(self.encoder, replace(self.decoder, output_dim=dim))
            for dim in (self.image_dim, self.video_dim)
        ]
        first = both[0].cost(visible=visible, predicted=hidden)
        second = both[1].cost(visible=visible, predicted=hidden).macs - both[1].encoder_macs(visible)
        return Cost(macs=first.macs + second)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> MVDConfig:
        """Our config for the arguments of the released student.

        Raises:
            WeightsError: a key that we do not know.
        """
        require_known_keys("MVD reference config", config, _STUDENT, _STUDENT_REST)
        encoder = VideoMAEConfig(**{_STUDENT[k]: v for k, v in config.items() if k in _STUDENT}, positions="factorised")
        decoder = DecoderConfig(
            config["feat_decoder_embed_dim"],
            config["decoder_depth"],
            config["feat_decoder_num_heads"],
            project_bias=True,
            positions="factorised",
        )
        return cls(encoder, decoder, config["target_feature_dim"], config["target_video_feature_dim"])


@dataclass(frozen=True)
class Imitated:
    """What a student says of a batch.

    Args:
        image, video: (B, M, channels of the teacher), for the hidden places.
        places: (B, M), their grid cells.
        tokens: visible tokens (B, P+V, D) after the encoder's norm.
    """

    image: Tensor
    video: Tensor
    places: Tensor
    tokens: Tensor


class MVD(nn.Module):
    """The student with its decoders; see the module's text."""

    def __init__(self, config: MVDConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.image_decoder = MaskedDecoder(config.encoder, replace(config.decoder, output_dim=config.image_dim))
        self.video_decoder = MaskedDecoder(config.encoder, replace(config.decoder, output_dim=config.video_dim))
        initialise(self.image_decoder)
        initialise(self.video_decoder)

    def forward(self, video: Tensor, visible: Tensor) -> Imitated:
        """Predict both teachers' features at the places that are not visible.

        Args:
            video: (B, T, 3, H, W).
            visible: (B, V) grid cells that the encoder sees, ascending.
        """
        tokens, grid = visible_tokens(self.encoder, video, visible)
        places = complement(visible, grid[0] * grid[1] * grid[2])
        image = self.image_decoder(tokens, visible, places, grid)
        return Imitated(image, self.video_decoder(tokens, visible, places, grid), places, tokens)


@torch.no_grad()
def image_targets(teacher: VideoMAE, video: Tensor, student: VideoMAEConfig, *, all_frames: bool = False) -> Tensor:
    """Features of an image teacher for every token of the student.

    Args:
        teacher: an encoder of cubes of one frame.
        video: (B, T, 3, H, W) as the student gets it.
        student: gives the cube.
        all_frames: features of all frames of a cube side by side, instead of its first frame's.

    Returns:
        (B, N, D), or (B, N, k*D).
    """
    k, b = student.tubelet_size, len(video)
    frames = fitted(video if all_frames else video[:, ::k], teacher.config.patch_size, student.patch_size)
    tokens = teacher(frames.flatten(0, 1)[:, None]).tokens  # of (B*T', 1, 3, H, W)
    assert tokens is not None
    x = tokens.x[:, tokens.num_prefix :].unflatten(0, (b, -1))  # (B, T', n, D)
    if not all_frames:
        return x.flatten(1, 2)  # (B, N, D)
    return x.unflatten(1, (-1, k)).transpose(2, 3).flatten(3).flatten(1, 2)  # (B, t, k, n, D) -> (B, t*n, k*D)


@torch.no_grad()
def video_targets(teacher: VideoMAE, video: Tensor, student: VideoMAEConfig) -> Tensor:
    """Features (B, N, D) of a video teacher for every token of the student.

    Raises:
        ValueError: their grids differ in time.
    """
    if teacher.config.tubelet_size != student.tubelet_size:
        raise ValueError(
            f"the teacher's cubes last {teacher.config.tubelet_size} frames and the student's {student.tubelet_size}; "
            "take a teacher with the same"
        )
    tokens = teacher(fitted(video, teacher.config.patch_size, student.patch_size)).tokens
    assert tokens is not None
    return tokens.x[:, tokens.num_prefix :]


def fitted(video: Tensor, patch_size: int, student_patch_size: int) -> Tensor:
    """`video` (B, T, 3, H, W) resized so that patches of `patch_size` make the grid that the student's make of it."""
    if patch_size == student_patch_size:
        return video
    height, width = (side // student_patch_size * patch_size for side in video.shape[-2:])
    frames = F.interpolate(video.flatten(0, 1), size=(height, width), mode="bicubic", align_corners=False)
    return frames.unflatten(0, video.shape[:2])  # (B*T, 3, H', W') -> (B, T, 3, H', W')


def standardised_features(features: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the channels of every token, the option "norm_feature" of the released code."""
    return F.layer_norm(features, features.shape[-1:], eps=1e-6)


_PLACES: dict[str, Any] = {"positions": "factorised"}
PRESETS = {
    "tiny": VideoMAEConfig(embed_dim=48, depth=3, num_heads=4, patch_size=14, num_frames=8, image_size=70, **_PLACES),
    "small": VideoMAEConfig(embed_dim=384, num_heads=6, **_PLACES),
    "base": VideoMAEConfig(**_PLACES),
    "large": VideoMAEConfig(embed_dim=1024, depth=24, num_heads=16, **_PLACES),
    "huge": VideoMAEConfig(embed_dim=1280, depth=32, num_heads=16, **_PLACES),
}


def _decoder(dim: int, depth: int, heads: int) -> DecoderConfig:
    return DecoderConfig(dim, depth, heads, project_bias=True, positions="factorised")


PRETRAINING = {  # teachers of the student's own size
    "tiny": MVDConfig(PRESETS["tiny"], _decoder(32, 2, 4), 48, 48),
    "small": MVDConfig(PRESETS["small"], _decoder(384, 2, 6), 768, 768),  # base teachers
    "base": MVDConfig(PRESETS["base"], _decoder(768, 2, 12), 768, 768),
    "large": MVDConfig(PRESETS["large"], _decoder(512, 4, 8), 1024, 1024),
    "huge": MVDConfig(PRESETS["huge"], _decoder(640, 8, 8), 1280, 1280),
}


_STUDENT = {
    "encoder_embed_dim": "embed_dim",
    "encoder_depth": "depth",
    "encoder_num_heads": "num_heads",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "num_frames": "num_frames",
    "img_size": "image_size",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
    "use_cls_token": "class_token",
}
_STUDENT_REST = {
    *("qkv_bias", "decoder_depth", "feat_decoder_embed_dim", "feat_decoder_num_heads"),
    *("target_feature_dim", "target_video_feature_dim"),
}


def convert_student(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `MVD` for the released student."""
    ours = {}
    for name, value in renamed({k: v for k, v in state.items() if not k.startswith("pos_embed_")}).items():
        for short, decoder in (("img", "image_decoder"), ("vid", "video_decoder")):
            name = name.replace(f"decoder_{short}.", f"{decoder}.").replace(f"down_{short}.", f"{decoder}.project.")
            name = f"{decoder}.mask_token" if name == f"mask_token_{short}" else name
        ours[name if "_decoder." in name else "encoder." + name] = value
    for short, decoder in (("img", "image_decoder"), ("vid", "video_decoder")):
        if f"pos_embed_{short}" in state:
            ours[f"{decoder}.positions"] = state[f"pos_embed_{short}"][0]  # (1, N, d) -> (N, d)
    return ours


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the student's encoder (`VideoMAE`) for the released student or the model fine-tuned from it."""
    training = ("decoder_", "down_", "mask_token_", "pos_embed_")
    ours = renamed({k: v for k, v in state.items() if not k.startswith(training)})
    return {name.replace("head.", "classifier."): value for name, value in ours.items()}
