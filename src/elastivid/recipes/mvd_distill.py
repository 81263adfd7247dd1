"""Pre-train by masked video distillation: at hidden places, predict what an image and a video teacher see there.

    elastivid train mvd_distill --set data=FOLDER --set image_teacher=mae.safetensors \
        --set video_teacher=runs/mae/model.safetensors --out runs/mvd

Smooth L1 against both teachers, added (arXiv 2212.04500). Teachers are encoders in files of ours: `elastivid convert`
makes them of public checkpoints, `videomae_pretrain` trains a video teacher. The image teacher has cubes of one frame.

Full scale, ViT-B with ViT-B teachers on Kinetics-400 (32 GPUs): batch_size=1024 steps=93750 learning_rate=6e-4
final_share=0.67 drop_path=0.1; the teachers are 58 % of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.losses.masked import masked_regression
from elastivid.models.mvd import MVD, PRETRAINING, MVDConfig, image_targets, standardised_features, video_targets
from elastivid.models.videomae import VideoMAE
from elastivid.recipes._labelled import DataError
from elastivid.recipes._masked import MaskedConfig, MaskedRecipe, at_places, grid_tokens, teacher_of
from elastivid.recipes.videomae_pretrain import num_visible
from elastivid.select.masks import RandomTubes


@dataclass(frozen=True)
class DistillConfig(MaskedConfig):
    """Settings of `mvd_distill`.

    Args:
        image_teacher, video_teacher: files of encoders, or family/preset for untrained ones.
        image_weight, video_weight: of the two losses; 0 leaves a teacher out of the loss.
        standardise: targets with mean 0 and deviation 1 in every token.
        drop_path: of the student.
    """

    learning_rate: float = 6e-4
    final_share: float = 0.67
    image_teacher: str = ""
    video_teacher: str = ""
    image_weight: float = 1.0
    video_weight: float = 1.0
    standardise: bool = False
    drop_path: float = 0.1


class Distilled(nn.Module):
    """The student and its frozen teachers."""

    def __init__(self, student: MVD, image_teacher: VideoMAE, video_teacher: VideoMAE) -> None:
        super().__init__()
        self.student, self.image_teacher, self.video_teacher = student, image_teacher, video_teacher

    @property
    def encoder(self) -> VideoMAE:
        """What the run is for."""
        return self.student.encoder


class MVDDistill(MaskedRecipe):
    """See the module's text."""

    config_class = DistillConfig
    config: DistillConfig
    trained = ("student.*",)

    @classmethod
    def smoke(cls, config: DistillConfig) -> DistillConfig:
        """Untrained tiny teachers."""
        small: DistillConfig = super().smoke(config)
        return replace(small, image_teacher="mae/tiny", video_teacher="videomae/tiny")

    def build(self) -> nn.Module:
        """A student with decoders as wide as the teachers' features."""
        config = self.config
        teachers = []
        for name in ("image_teacher", "video_teacher"):
            address = getattr(config, name)
            if not address:
                raise DataError(f"there is no {name}; name a file of an encoder: --set {name}=FILE")
            teacher = teacher_of(address)
            if not isinstance(teacher, VideoMAE):
                raise DataError(
                    f"{name} must be a VideoMAE or an image transformer as one, got {type(teacher).__name__}"
                )
            teachers.append(teacher)
        image, video = teachers
        if image.config.tubelet_size != 1:
            raise DataError(f"image_teacher must have cubes of one frame, got {image.config.tubelet_size}")
        preset = PRETRAINING[config.preset]
        encoder = replace(preset.encoder, num_frames=config.frames, image_size=config.size, drop_path=config.drop_path)
        student = MVDConfig(encoder, preset.decoder, image.config.embed_dim, video.config.embed_dim)
        return Distilled(student.build(), image, video)

    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Smooth L1 to both teachers over hidden places."""
        assert isinstance(module, Distilled)
        config, sizes = self.config, module.student.config.encoder
        tokens = grid_tokens(sizes.table_grid, len(video), video.device)
        out = module.student(video, RandomTubes(seeds).select(tokens, num_visible(sizes.table_grid, config)))
        targets = {
            "image": image_targets(module.image_teacher, video, sizes),
            "video": video_targets(module.video_teacher, video, sizes),
        }
        parts: dict[str, Any] = {}
        for name, target in targets.items():
            wanted = at_places(standardised_features(target) if config.standardise else target, out.places)
            parts[name] = masked_regression(getattr(out, name), wanted, distance=F.smooth_l1_loss)
        return config.image_weight * parts["image"] + config.video_weight * parts["video"], parts

    def gmacs(self, module: nn.Module) -> float:
        """Student and both teachers."""
        assert isinstance(module, Distilled)
        sizes = module.student.config.encoder
        t, h, w = sizes.table_grid
        visible = num_visible((t, h, w), self.config)
        macs = module.student.config.cost(visible=visible, hidden=t * h * w - visible).macs
        for teacher, frames, times in ((module.image_teacher, 1, t), (module.video_teacher, self.config.frames, 1)):
            side = h * teacher.config.patch_size
            macs += times * teacher.config.cost(frames=frames, size=side).macs
        return macs / 1e9


RECIPE = MVDDistill
