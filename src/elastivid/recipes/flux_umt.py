"""Pre-train a FluxViT by a teacher of visible tokens: double mask, three token counts at a time, any grid.

    elastivid train flux_umt --set data=FOLDER --set teacher=internvideo2.safetensors --out runs/flux
    elastivid train flux_umt --set data=FOLDER --set teacher=hf:openai/clip-vit-large-patch14 --out runs/flux

The teacher sees the K tokens that change most (group-dynamic selection); the student sees those of them that the
teacher's class token attends to most, at each of three counts. Its last blocks and its pooled feature are aligned with
the teacher's: mean of 2 - 2 cos (arXiv 2303.16058, 2503.14237). Batches differ in frames and size within a number of
tokens (flexi-sampling).

A teacher is an InternVideo2 or FluxViT in a file of ours (`elastivid convert`), the video tower of `nano` or of a dual
encoder, or a CLIP checkpoint, which sees every frame whole and gives no pooled feature. It must have the student's
patches of 14 pixels.

Full scale, FluxViT-S with InternVideo2-1B on 1.1 M clips (32 GPUs): preset=small batch_size=2048 steps=53000
learning_rate=1e-3 counts=2048,1536,1024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elastivid.data.sampling import Shapes
from elastivid.layers.teach import Projection, taught
from elastivid.losses.masked import alignment
from elastivid.models.base import VideoEncoder
from elastivid.models.fluxvit import PRESETS, FluxViT
from elastivid.models.internvideo2 import InternVideo2
from elastivid.models.umt import ClipTeacher
from elastivid.recipes._labelled import DataError
from elastivid.recipes._masked import MaskedConfig, MaskedRecipe, at_places, grid_tokens, teacher_of
from elastivid.select.masks import AttentionScore
from elastivid.select.motion import GroupDynamic


@dataclass(frozen=True)
class FluxUMTConfig(MaskedConfig):
    """Settings of `flux_umt`; `mask` is not used.

    Args:
        teacher: see the module's text.
        counts: tokens that the student sees, the most first.
        teacher_tokens: tokens that the teacher sees; 0 for as many as the first of `counts`.
        aligned_blocks: last blocks that are aligned; the teacher's must be as many.
        flexi_frames, flexi_sizes: first, last and step of frames and sides; empty takes `frames` and `size` alone.
        flexi_tokens: fewest and most tokens of a clip.
        drop_path: of the student.
    """

    preset: str = "small"
    learning_rate: float = 1e-3
    warmup_share: float = 0.2
    teacher: str = ""
    counts: tuple[int, ...] = (2048, 1536, 1024)
    teacher_tokens: int = 0
    aligned_blocks: int = 6
    flexi_frames: tuple[int, ...] = (4, 26, 2)
    flexi_sizes: tuple[int, ...] = (168, 280, 28)
    flexi_tokens: tuple[int, int] = (2048, 4096)
    drop_path: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.counts or list(self.counts) != sorted(self.counts, reverse=True) or min(self.counts) < 1:
            raise ValueError(f"counts must be token counts of at least 1, the most first, got {self.counts}")
        if len(self.flexi_frames) not in (0, 3) or len(self.flexi_sizes) != len(self.flexi_frames):
            raise ValueError(
                "flexi_frames and flexi_sizes must be first, last and step each, or both empty, got "
                f"{self.flexi_frames} and {self.flexi_sizes}"
            )

    @property
    def teacher_count(self) -> int:
        """Tokens that the teacher sees."""
        return self.teacher_tokens or self.counts[0]


@dataclass(frozen=True)
class Seen:
    """What a teacher says of a batch.

    Args:
        places: (B, K), ascending grid cells that it saw.
        features: (L, B, K, O) of its last blocks, the earliest first.
        attention: (B, K), what its class token attends to.
        pooled: (B, O'), or `None`.
    """

    places: Tensor
    features: Tensor
    attention: Tensor
    pooled: Tensor | None


class Taught(nn.Module):
    """The student, what brings it to the teacher's space, and the frozen teacher."""

    def __init__(self, student: FluxViT, teacher: VideoEncoder | ClipTeacher, blocks: int) -> None:
        super().__init__()
        self.encoder, self.teacher = student, teacher
        inner: Any = teacher.config
        clip = isinstance(teacher, ClipTeacher)
        features = inner.output_dim if clip else inner.embed_dim
        self.projections = nn.ModuleList(Projection(student.config.embed_dim, features) for _ in range(blocks))
        self.final = None if clip else Projection(student.config.pool_dim, inner.pool_dim)


class FluxUMT(MaskedRecipe):
    """See the module's text."""

    config_class = FluxUMTConfig
    config: FluxUMTConfig
    betas = (0.9, 0.98)
    trained = ("encoder.*", "projections.*", "final.*")

    @classmethod
    def smoke(cls, config: FluxUMTConfig) -> FluxUMTConfig:
        """An untrained tiny teacher; 64 to 128 tokens."""
        small: FluxUMTConfig = super().smoke(config)
        return replace(
            small,
            teacher="internvideo2/tiny",
            counts=(48, 32, 16),
            aligned_blocks=2,
            flexi_frames=(4, 8, 4),
            flexi_sizes=(56, 56, 28),
            flexi_tokens=(64, 128),
        )

    def build(self) -> nn.Module:
        """A student without classifier, projections, and the teacher."""
        config = self.config
        teacher = token_teacher(config.teacher)
        student = replace(PRESETS[config.preset], num_classes=0, drop_path=config.drop_path)
        if not isinstance(teacher, ClipTeacher) and teacher.config.patch_size != student.patch_size:
            raise DataError(
                f"the teacher's patches have {teacher.config.patch_size} pixels and the student's {student.patch_size}"
            )
        return Taught(student.build(), teacher, config.aligned_blocks)

    def stages(self) -> Any:
        """One; a CLIP teacher has no pooled feature to align."""
        (stage,) = super().stages()
        if self.config.teacher.startswith("hf:"):
            stage = replace(stage, trained=("encoder.*", "projections.*", "!encoder.pools.*", "!encoder.pool_norm.*"))
        return (stage,)

    def shapes(self) -> Shapes:
        """Frames and sides with as many tokens as the settings allow."""
        config = self.config
        if not config.flexi_frames:
            return super().shapes()
        frames, sizes = config.flexi_frames, config.flexi_sizes
        return Shapes.flexi(
            (frames[0], frames[1], frames[2]),
            (sizes[0], sizes[1], sizes[2]),
            config.flexi_tokens,
            PRESETS[config.preset].patch_size,
        )

    def loss(self, module: nn.Module, video: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The alignment at each count, added; nothing is drawn, so seeds do not matter."""
        assert isinstance(module, Taught)
        blocks = self.config.aligned_blocks
        seen = see(module.teacher, video, self.config.teacher_count, blocks)
        student = module.encoder
        own = student.embed(video)
        total, parts = video.new_zeros(()), {}
        for count in self.config.counts:
            best = AttentionScore(lambda tokens: seen.attention, groups=1)
            among = best.select(own.gather(seen.places), min(count, seen.places.shape[1]))  # (B, V) of the K
            out, streams = student.tapped(own.gather(seen.places.gather(1, among)), taught(len(student.blocks), blocks))
            made = [p(stream[:, 1:]) for p, stream in zip(module.projections, streams, strict=True)]
            loss = alignment(torch.stack(made), at_places(seen.features, among))
            if module.final is not None and seen.pooled is not None:
                assert out.embedding is not None
                loss = loss + alignment(module.final(out.embedding), seen.pooled)
            parts[f"at_{count}"] = loss.detach()
            total = total + loss
        return total, parts

    def gmacs(self, module: nn.Module) -> float:
        """The student at its three counts and the teacher, at the settings' frames and size."""
        assert isinstance(module, Taught)
        frames, size, student = self.config.frames, self.config.size, module.encoder.config
        available = frames * (size // student.patch_size) ** 2
        macs = sum(
            student.cost(frames=frames, size=size, tokens=min(count, available)).macs for count in self.config.counts
        )
        teacher: Any = module.teacher
        if isinstance(teacher, ClipTeacher):  # sees every frame whole
            return (macs + teacher.config.cost(frames=frames).macs) / 1e9
        seen = min(self.config.teacher_count, available)
        return (macs + teacher.config.cost(frames=frames, size=size, tokens=seen).macs) / 1e9


def token_teacher(address: str) -> InternVideo2 | FluxViT | ClipTeacher:
    """The frozen teacher at `address`, see `teacher_of`.

    Raises:
        DataError: there is none, or it is a model of another kind.
    """
    if not address:
        raise DataError("there is no teacher; name a file, a shipped model or hf:ORG/NAME: --set teacher=...")
    teacher = teacher_of(address)
    if not isinstance(teacher, ClipTeacher | InternVideo2 | FluxViT):
        raise DataError(f"teacher must be an InternVideo2, a FluxViT or a CLIP model, got {type(teacher).__name__}")
    return teacher


@torch.no_grad()
def see(teacher: nn.Module, video: Tensor, count: int, blocks: int) -> Seen:
    """What a teacher says of the `count` tokens of each clip that change most (all, where there are fewer).

    Args:
        teacher: an InternVideo2, FluxViT or CLIP model.
        video: (B, T, 3, S, S).
        count: tokens it sees; a CLIP model sees all and tells of these.
        blocks: how many of the last blocks are read.
    """
    if isinstance(teacher, ClipTeacher):
        said = teacher(video)
        t = video.shape[1]
        places = changing(said.features[-1], t, count)
        features = at_places(said.features[-blocks:], places)
        return Seen(places, features, said.attention.gather(1, places), None)
    assert isinstance(teacher, InternVideo2 | FluxViT)
    tokens = teacher.embed(video)
    places = GroupDynamic().select(tokens, min(count, tokens.num_placed))
    kept, depth = tokens.gather(places), len(teacher.blocks)
    numbers = taught(depth, blocks)
    wanted = sorted({*numbers, depth - 2})
    if isinstance(teacher, FluxViT):
        out, streams = teacher.tapped(kept, wanted)
    else:
        last, kept_streams = teacher.transform_tokens(teacher.placed(kept), taps=wanted)
        out, streams = teacher.read(last), [kept_streams[number] for number in wanted]
    by_number = dict(zip(wanted, streams, strict=True))
    block: Any = teacher.blocks[-1]
    attention = block.attn.weights(block.norm1(by_number[depth - 2]), 1)[:, :, 0, 1:].mean(dim=1)  # (B, K)
    features = torch.stack([by_number[number][:, 1:] for number in numbers])  # (L, B, K, D)
    return Seen(places, features, attention, out.taps["pooled"])


def changing(features: Tensor, frames: int, count: int) -> Tensor:
    """Places of the `count` tokens whose features (B, N, D) change most from frame to frame."""
    sites = features.shape[1] // frames
    tokens = replace(grid_tokens((frames, 1, sites), len(features), features.device), x=features)
    return GroupDynamic().select(tokens, min(count, tokens.num_placed))


RECIPE = FluxUMT
