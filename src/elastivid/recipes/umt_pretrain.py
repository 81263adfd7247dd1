"""Pre-train an encoder by an unmasked teacher: learn, on a fifth of the places, what an image encoder says of them.

    elastivid train umt_pretrain --set data=FOLDER --set teacher=hf:openai/clip-vit-base-patch16 --out runs/umt
    elastivid train umt_pretrain --set data=FOLDER --set teacher=nano --set preset=tiny --out runs/umt

The teacher sees the first frame of every cube whole; in every frame places are drawn with what its class token attends
to, and the student's last blocks are aligned with the teacher's there: mean of 2 - 2 cos (arXiv 2303.16058).

A teacher is a CLIP checkpoint, an InternVideo2 or FluxViT in a file of ours, or the video tower of `nano` or of a dual
encoder. Clips are resized so that its patches make the student's grid; a CLIP model's grid is fixed and must be it.

Full scale, ViT-B with CLIP ViT-B/16 on Kinetics-710 (32 GPUs): frames=8 batch_size=2048 steps=64000
learning_rate=1.2e-3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from elastivid.losses.masked import alignment
from elastivid.models.fluxvit import FluxViT
from elastivid.models.internvideo2 import InternVideo2
from elastivid.models.mvd import fitted
from elastivid.models.umt import PRETRAINING, UMT, ClipTeacher, UMTConfig
from elastivid.models.videomae import VideoMAE, VideoMAEConfig
from elastivid.recipes._labelled import DataError
from elastivid.recipes._masked import MaskedConfig, MaskedRecipe, at_places, grid_tokens
from elastivid.recipes.flux_umt import see, token_teacher
from elastivid.recipes.videomae_pretrain import num_visible
from elastivid.select.masks import AttentionScore, drawn


@dataclass(frozen=True)
class UMTPretrainConfig(MaskedConfig):
    """Settings of `umt_pretrain`.

    Args:
        teacher: see the module's text.
        taught_blocks: last blocks that are aligned, of the student and of the teacher.
        drop_path: of the student.
    """

    frames: int = 8
    mask: float = 0.8
    teacher: str = ""
    taught_blocks: int = 6
    drop_path: float = 0.0


class Pupil(nn.Module):
    """The student and its frozen teacher."""

    def __init__(self, student: UMT, teacher: InternVideo2 | FluxViT | ClipTeacher) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    @property
    def encoder(self) -> VideoMAE:
        """What the run is for."""
        return self.student.encoder


class UMTPretrain(MaskedRecipe):
    """See the module's text."""

    config_class = UMTPretrainConfig
    config: UMTPretrainConfig
    betas = (0.9, 0.98)
    trained = ("student.*",)

    @classmethod
    def smoke(cls, config: UMTPretrainConfig) -> UMTPretrainConfig:
        """An untrained tiny teacher."""
        small: UMTPretrainConfig = super().smoke(config)
        return replace(small, teacher="internvideo2/tiny", taught_blocks=2)

    def build(self) -> nn.Module:
        """A student with a projection for each taught block, and the teacher."""
        config = self.config
        teacher = token_teacher(config.teacher)
        encoder = self.sizes()
        inner: Any = teacher.config
        side = encoder.image_sides[0] // encoder.patch_size
        if isinstance(teacher, ClipTeacher) and inner.image_size // inner.patch_size != side:
            raise DataError(
                f"the teacher sees {inner.image_size // inner.patch_size} patches a side and the student {side}; "
                f"set size to {inner.image_size // inner.patch_size * encoder.patch_size}"
            )
        if getattr(inner, "tubelet_size", 1) != 1:
            raise DataError(f"teacher must have patches of one frame, got {inner.tubelet_size}")
        dim = inner.output_dim if isinstance(teacher, ClipTeacher) else inner.embed_dim
        most = inner.taught_blocks if isinstance(teacher, ClipTeacher) else inner.depth
        if not 1 <= config.taught_blocks <= min(most, encoder.depth):
            raise DataError(
                f"taught_blocks must be 1 to {min(most, encoder.depth)}, as many as student and teacher have, got "
                f"{config.taught_blocks}"
            )
        return Pupil(UMTConfig(encoder, dim, config.taught_blocks).build(), teacher)

    def sizes(self) -> VideoMAEConfig:
        """The student's."""
        config, encoder = self.config, PRETRAINING[self.config.preset].encoder
        return replace(encoder, num_frames=config.frames, image_size=config.size, drop_path=config.drop_path)

    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The alignment at places drawn with the teacher's attention."""
        assert isinstance(module, Pupil)
        sizes = module.student.config.encoder
        features, attention = whole(module.teacher, video[:, :: sizes.tubelet_size], sizes, self.config.taught_blocks)
        tokens = grid_tokens(sizes.table_grid, len(video), video.device)
        by_attention = AttentionScore(lambda tokens: drawn(attention, seeds))
        visible = by_attention.select(tokens, num_visible(sizes.table_grid, self.config))
        return alignment(module.student(video, visible), at_places(features, visible)), {}

    def gmacs(self, module: nn.Module) -> float:
        """Student on its places and teacher on all of them."""
        assert isinstance(module, Pupil)
        sizes, teacher = module.student.config.encoder, module.teacher
        t, h, w = sizes.table_grid
        macs = module.student.config.cost(visible=num_visible((t, h, w), self.config)).macs
        inner: Any = teacher.config
        if isinstance(teacher, ClipTeacher):
            return (macs + inner.cost(frames=t).macs) / 1e9
        return (macs + inner.cost(frames=t, size=h * inner.patch_size).macs) / 1e9


def whole(
    teacher: InternVideo2 | FluxViT | ClipTeacher, frames: Tensor, student: VideoMAEConfig, blocks: int
) -> tuple[Tensor, Tensor]:
    """What a teacher says of all places: features (L, B, N, O) of its last blocks and attention (B, N).

    Args:
        teacher: an InternVideo2, FluxViT or CLIP model.
        frames: (B, t, 3, S, S), one for every step of the student's grid.
        student: gives the grid.
        blocks: L, how many of the last blocks are read.
    """
    if not isinstance(teacher, ClipTeacher):
        frames = fitted(frames, teacher.config.patch_size, student.patch_size)
    t, h, w = student.table_grid
    seen = see(teacher, frames, t * h * w, blocks)
    return seen.features, seen.attention


RECIPE = UMTPretrain
