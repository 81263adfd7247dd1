"""Unmasked teacher: a student learns, on the tokens it sees, what a CLIP image encoder says of them.

Paper: "Unmasked Teacher: Towards Training-Efficient Video Foundation Models", arXiv 2303.16058.

    teacher   every frame through CLIP's image transformer; features of its last blocks, and what its class token
              attends to in the last one
    visible   per frame, places drawn with that attention (about a fifth of them)
    student   VideoMAE's encoder with cubes of one frame, on the visible places; its last blocks through a norm, plus
              positions, plus a linear layer each
    loss      mean of 2 - 2 cos(student, teacher) over visible tokens and blocks

After pre-training the encoder is fine-tuned with trained positions that start from the formula's.

Where we depart: biases of keys, which cancel in the softmax, are not kept; the draw is Gumbel noise on the logarithm of
the attention (`select.masks.drawn`), which is the released draw without replacement in another form.

Cost of a step: the teacher on all frames, 4 + 2r times N D^2 and 2 N n D a block; the student on a fifth of the tokens.

Letters: B batch, T frames, t steps of time, n places of a frame, N = t n tokens, V visible, K blocks that are taught,
D channels, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import WeightsError, require_known_keys
from elastivid.core.files import read_json
from elastivid.layers.teach import Projection, taught
from elastivid.layers.vit import BlockStyle, cubes, quick_gelu, through_blocks, vit_blocks
from elastivid.models.token_encoder import flat_table
from elastivid.models.videomae import VideoMAEConfig, initialise, renamed


@dataclass(frozen=True)
class UMTConfig:
    """A student and the layers that bring it to the teacher's space.

    Args:
        encoder: sizes of the student.
        output_dim: channels of the teacher's features.
        taught_blocks: how many of the last blocks are taught.
        interval: blocks from one taught block to the next.
    """

    encoder: VideoMAEConfig
    output_dim: int = 768
    taught_blocks: int = 6
    interval: int = 1

    def build(self) -> UMT:
        """An untrained student."""
        return UMT(self)

    def cost(self, *, visible: int) -> Cost:
        """Closed-form cost of the student's forward pass on one clip, the teacher not counted."""
        encoder = self.encoder
        macs = linear_macs(visible, encoder.cube_values, encoder.embed_dim)
        macs += encoder.depth * block_macs(visible, encoder.embed_dim, encoder.mlp_ratio)
        return Cost(macs=macs + self.taught_blocks * linear_macs(visible, encoder.embed_dim, self.output_dim))

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> UMTConfig:
        """Our config for the arguments of the released student.

        Raises:
            WeightsError: a key that we do not know, or a value that we do not offer.
        """
        require_known_keys("UMT reference config", config, _STUDENT, _STUDENT_REST)
        norm = config.get("clip_norm_type", "l2")
        if norm != "l2":
            raise WeightsError(f"UMT reference config has clip_norm_type={norm!r}; only 'l2' is offered")
        encoder = VideoMAEConfig(**{_STUDENT[k]: v for k, v in config.items() if k in _STUDENT})
        return cls(
            encoder,
            config["clip_output_dim"],
            config["clip_return_layer"],
            config.get("clip_student_return_interval", 1),
        )


class UMT(nn.Module):
    """The student with its projections; see the module's text."""

    def __init__(self, config: UMTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        dim = config.encoder.embed_dim
        self.projections = nn.ModuleList(Projection(dim, config.output_dim) for _ in range(config.taught_blocks))
        initialise(self.projections)

    def forward(self, video: Tensor, visible: Tensor) -> Tensor:
        """Unit features (K, B, V, output_dim) of the visible places, the earliest taught block first.

        Args:
            video: (B, T, 3, H, W).
            visible: (B, V) grid cells that the student sees, ascending.
        """
        encoder, config = self.encoder, self.config
        placed = encoder.placed(encoder.embed_at(video, visible))
        blocks = taught(len(encoder.blocks), config.taught_blocks, config.interval)
        _, streams = encoder.transform_tokens(placed, taps=blocks)
        table = encoder.table(placed.grid, placed.x.shape[-1])[visible]  # (B, V, D), a second time
        features = [
            projection(encoder.norm(streams[block]) + table)
            for block, projection in zip(blocks, self.projections, strict=True)
        ]
        return torch.stack(features)


@dataclass(frozen=True)
class ClipTeacherConfig:
    """Sizes of a CLIP image transformer that teaches.

    Args:
        embed_dim, depth, num_heads: width, blocks, heads.
        patch_size, image_size: pixels of a patch and side of the image it was trained at.
        tubelet_size: frames that one image is made of.
        output_dim: channels of the joint space.
        taught_blocks, interval: which blocks are read, see `taught`.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    image_size: int = 224
    tubelet_size: int = 1
    output_dim: int = 512
    taught_blocks: int = 6
    interval: int = 1

    def build(self) -> ClipTeacher:
        """An untrained teacher."""
        return ClipTeacher(self)

    def cost(self, *, frames: int) -> Cost:
        """Closed-form cost of one clip of `frames` frames at the size it was trained at."""
        images, places = frames // self.tubelet_size, (self.image_size // self.patch_size) ** 2
        macs = linear_macs(places, 3 * self.tubelet_size * self.patch_size**2, self.embed_dim)
        macs += self.depth * block_macs(places + 1, self.embed_dim)
        macs += linear_macs(places + 1, self.embed_dim, 3 * self.embed_dim + 1)  # what the class token attends to
        return Cost(macs=images * (macs + self.taught_blocks * linear_macs(places, self.embed_dim, self.output_dim)))

    @classmethod
    def from_transformers(cls, sizes: Mapping[str, Any], output_dim: int, taught_blocks: int) -> ClipTeacherConfig:
        """Our config for transformers' `CLIPVisionConfig`.

        Raises:
            WeightsError: its activation is not the one of CLIP.
        """
        if sizes.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise WeightsError(f"a CLIP teacher has the activation quick_gelu, got {sizes['hidden_act']!r}")
        depth = sizes.get("num_hidden_layers", 12)
        return cls(
            sizes.get("hidden_size", 768),
            depth,
            sizes.get("num_attention_heads", 12),
            sizes.get("patch_size", 32),
            sizes.get("image_size", 224),
            output_dim=output_dim,
            taught_blocks=min(taught_blocks, depth),
        )

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> ClipTeacherConfig:
        """Our config for the arguments of the released teacher.

        Raises:
            WeightsError: a key that we do not know, or a value that we do not offer.
        """
        require_known_keys("CLIP teacher config", config, _TEACHER, {"clip_norm_type"})
        return cls(**{_TEACHER[key]: value for key, value in config.items() if key in _TEACHER})


@dataclass(frozen=True)
class Taught:
    """What a teacher says of a batch.

    Args:
        features: unit vectors (K, B, N, output_dim), the earliest block first.
        attention: (B, N), what the class token of every frame attends to in the last block, the mean over heads.
    """

    features: Tensor
    attention: Tensor


class ClipTeacher(nn.Module):
    """CLIP's image transformer, frame by frame."""

    def __init__(self, config: ClipTeacherConfig) -> None:
        super().__init__()
        self.config = config
        dim, side = config.embed_dim, config.image_size // config.patch_size
        self.cube_proj = nn.Linear(3 * config.tubelet_size * config.patch_size**2, dim, bias=False)
        self.cls_token = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + side * side, dim) * dim**-0.5)  # the class token's first
        self.norm_before = nn.LayerNorm(dim)
        style = BlockStyle(eps=1e-5, activation=quick_gelu)
        self.blocks = vit_blocks((dim,) * config.depth, dim // config.num_heads, style)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, config.output_dim, bias=False)

    @torch.no_grad()
    def forward(self, video: Tensor) -> Taught:
        """Features and attention of all tokens of clips (B, T, 3, H, W), resized where they have another size."""
        config, b = self.config, len(video)
        video = resized(video, config.image_size)
        x = self.cube_proj(cubes(video.to(self.proj.weight.dtype), config.tubelet_size, config.patch_size))  # (B, N, D)
        x = x.reshape(-1, len(self.positions) - 1, config.embed_dim)  # (B, N, D) -> (B*t, n, D)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), x], dim=1) + self.positions  # (B*t, 1+n, D)
        blocks = taught(config.depth, config.taught_blocks, config.interval)
        _, streams = through_blocks(self.blocks, self.norm_before(x), taps={*blocks, config.depth - 2} - {-1})
        last = self.blocks[-1]
        before = streams[config.depth - 2] if config.depth > 1 else self.norm_before(x)
        weights = last.attn.weights(last.norm1(before), 1)  # type: ignore[union-attr, operator]
        attention = weights[:, :, 0, 1:].mean(dim=1)  # (B*t, n)
        features = torch.stack([self.proj(self.norm(streams[block][:, 1:])) for block in blocks])  # (K, B*t, n, O)
        features = F.normalize(features, dim=-1).unflatten(1, (b, -1)).flatten(2, 3)  # (K, B, N, O)
        return Taught(features, attention.reshape(b, -1))  # (B*t, n) -> (B, N)


def hub_teacher(folder: Path, taught_blocks: int = 6) -> ClipTeacher:
    """The image transformer of a CLIP checkpoint in transformers' format.

    Args:
        folder: holds config.json and the weights.
        taught_blocks: how many of the last blocks teach.

    Raises:
        WeightsError: it is no CLIP checkpoint, or is incomplete.
    """
    from safetensors import safe_open

    config = read_json(folder / "config.json")
    sizes = config.get("vision_config", config)
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise WeightsError(
            f"{folder} is a {config.get('model_type')}, a teacher must be a CLIP model; take another one"
        )
    teacher = ClipTeacherConfig.from_transformers(sizes, config.get("projection_dim", 512), taught_blocks).build()
    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(("vision_model.", "visual_projection.")):
                    state[name] = file.get_tensor(name).float()
    try:
        teacher.load_state_dict(convert_hub_teacher(state), strict=True)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(f"{folder} does not fit its config.json: {error}") from error
    return teacher.eval()


def resized(video: Tensor, side: int) -> Tensor:
    """Frames of (B, T, 3, H, W) as squares of `side` pixels, bicubically; the clip itself when they are."""
    if video.shape[-2:] == (side, side):
        return video
    frames = F.interpolate(video.flatten(0, 1), size=(side, side), mode="bicubic", align_corners=False)
    return frames.unflatten(0, video.shape[:2])  # (B*T, 3, S, S) -> (B, T, 3, S, S)


def fine_tuning_table(grid: tuple[int, int, int], dim: int, native: tuple[int, int, int] = (8, 14, 14)) -> Tensor:
    """What trained positions (N, dim) of a grid start from: the table of pre-training, resized."""
    return flat_table(native, grid, dim).clone()


_CUBE: dict[str, Any] = {"tubelet_size": 1, "num_frames": 8}
PRESETS = {
    "tiny": VideoMAEConfig(
        embed_dim=48, depth=3, num_heads=4, patch_size=14, tubelet_size=1, num_frames=4, image_size=70
    ),
    "base": VideoMAEConfig(**_CUBE),
    "large": VideoMAEConfig(embed_dim=1024, depth=24, num_heads=16, **_CUBE),
}
TEACHERS = {
    "tiny": ClipTeacherConfig(32, 2, 4, 14, 70, output_dim=24, taught_blocks=2),
    "base": ClipTeacherConfig(),  # CLIP ViT-B/16
    "large": ClipTeacherConfig(1024, 24, 16, 14, 196, output_dim=768),  # ViT-L/14 on the grid of 16 pixels at 224
}
PRETRAINING = {
    "tiny": UMTConfig(PRESETS["tiny"], 24, 2),
    "base": UMTConfig(PRESETS["base"], 512),
    "large": UMTConfig(PRESETS["large"], 768),
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
}
_STUDENT_REST = {
    *("qkv_bias", "clip_norm_type", "clip_decoder_embed_dim", "clip_output_dim", "clip_return_layer"),
    "clip_student_return_interval",
}
_TEACHER = {
    "width": "embed_dim",
    "layers": "depth",
    "heads": "num_heads",
    "patch_size": "patch_size",
    "input_resolution": "image_size",
    "kernel_size": "tubelet_size",
    "output_dim": "output_dim",
    "clip_return_layer": "taught_blocks",
    "clip_return_interval": "interval",
}
_TEACHER_NAMES = {
    "conv1.": "cube_proj.",
    "class_embedding": "cls_token",
    "positional_embedding": "positions",
    "ln_pre.": "norm_before.",
    "ln_post.": "norm.",
    "transformer.resblocks.": "blocks.",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.out_proj.": "attn.proj.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def convert_student(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `UMT` for the released student."""
    return {name.replace("clip_decoder.", "projections."): value for name, value in renamed(state).items()}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the encoder (`VideoMAE`) for the released student or the model fine-tuned from it."""
    kept = {k: v for k, v in state.items() if not k.startswith("clip_decoder.")}
    ours = {name.removeprefix("encoder."): value for name, value in renamed(kept).items()}
    return {name.replace("head.", "classifier."): value for name, value in ours.items()}


def convert_teacher(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `ClipTeacher` for the released teacher, or for the `visual` part of a CLIP checkpoint."""
    ours = {}
    for name, value in state.items():
        name = name.removeprefix("visual.")
        for old, new in _TEACHER_NAMES.items():
            name = name.replace(old, new)
        if name == "cube_proj.weight":
            value = value.flatten(1)  # (D, 3, k, P, P) or (D, 3, P, P) -> (D, 3*k*P*P)
        elif name == "proj":
            name, value = "proj.weight", value.T  # (D, O) -> (O, D)
        elif name.endswith("in_proj_bias"):  # of keys: cancels in the softmax
            stem, third = name.removesuffix("in_proj_bias"), len(value) // 3
            ours[stem + "q_bias"], ours[stem + "v_bias"] = value[:third], value[2 * third :]
            continue
        ours[name] = value
    return ours


_HUB_NAMES = {
    "vision_model.": "",
    "embeddings.patch_embedding.": "conv1.",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.": "ln_pre.",
    "post_layernorm.": "ln_post.",
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}


def convert_hub_teacher(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `ClipTeacher` for transformers' `CLIPVisionModelWithProjection`, or `CLIPModel` without texts."""
    released = {}
    for source, value in state.items():
        name = source
        for old, new in _HUB_NAMES.items():
            name = name.replace(old, new)
        if name == "visual_projection.weight":
            released["proj"] = value.T  # (O, D) -> (D, O)
        elif ".self_attn.q_proj." in name:
            parts = [state[source.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            released[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)  # 3 (D, ...) -> (3*D, ...)
        elif ".self_attn." not in name and not name.endswith("position_ids"):
            released[name] = value
    return convert_teacher(released)
