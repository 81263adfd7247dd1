"""The loss of one training step of a dual encoder on a batch of `elastivid.data.mixture`.

    loss = mean over token counts of
               contrastive(clips, captions; hard negatives)       which caption is this clip's
             + attributes(clip head; clips)                       colour, shape and motion, named from the vector
             + attributes(patch head; kept tokens)                what each kept patch shows
           + attributes(clip head; captions)                      the same linear map must read captions
           + smooth-L1(smaller counts, largest count)             self-distillation, arXiv 2503.14237

The two linear heads serve training only. Without the patch head a transformer this small learns nothing but colour in
its first ten thousand clips.

Letters: B clips, T frames, H W pixels, M wrong captions, N patches, K kept patches, D channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.data.mixture import ATTRIBUTE_SIZES, IGNORED, PATCH_SIZES
from elastivid.losses.attributes import attributes
from elastivid.losses.contrastive import agreement, contrastive
from elastivid.models.dual import FluxDual

SHARPNESS = 10.0  # unit vectors are multiplied by this before the clip head


class DualLoss(nn.Module):
    """Holds the two heads and computes the loss of a step.

    Args:
        dim: channels of the shared space.
        token_dim: channels of the video tower's tokens.
    """

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.clip = nn.Linear(dim, sum(ATTRIBUTE_SIZES))
        self.patch = nn.Linear(token_dim, sum(PATCH_SIZES))

    def forward(
        self, model: FluxDual, batch: dict[str, Any], counts: tuple[int, ...]
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch.

        Args:
            model: the dual encoder.
            batch: what `collate` returns.
            counts: token counts that every clip is encoded at, the largest first; each below the tokens of a clip.

        Returns:
            The loss, and its parts as numbers for the log: `loss`, `named`, `shown` by count; `beats`, the share of
            clips nearer to their caption than to all of their wrong captions.
        """
        texts, hard = batch["texts"], [text for row in batch["hard_texts"] for text in row]
        words = F.normalize(model.text(*model.text.tokenize(texts + hard)), dim=-1)  # (B + B*M, D)
        right, wrong = words[: len(texts)], words[len(texts) :].unflatten(0, (len(texts), -1))  # (B, D), (B, M, D)
        scale = model.log_scale.exp().clamp(max=100)
        tokens = model.video.embed(to_video(model, batch["frames"]))
        loss = attributes(self.clip(SHARPNESS * right), batch["attributes"], ATTRIBUTE_SIZES)
        largest, report = None, {}
        for count in counts:
            out = model.video.encode(tokens, OperatingPoint(tokens=count))
            clips = F.normalize(out.embedding, dim=-1)
            matched = contrastive(clips, right, scale, same=batch["same"], hard_texts=wrong)
            named = attributes(self.clip(SHARPNESS * clips), batch["attributes"], ATTRIBUTE_SIZES)
            shown = self._patches(out, batch["patches"])
            loss = loss + (matched + named + shown) / len(counts)
            for name, part in (("loss", matched), ("named", named), ("shown", shown)):
                report[f"{name}{count}"] = float(part.detach())
            if largest is None:
                largest = clips
                margin = (clips * right).sum(-1) - torch.einsum("bd,bmd->bm", clips, wrong).amax(1)
                report["beats"] = float((margin > 0).float().mean())
            else:
                loss = loss + agreement(clips, largest)
        return loss, report

    def _patches(self, out: Output, wanted: Tensor) -> Tensor:
        """Name what each kept patch shows: once over all of them, once over those that show a thing."""
        assert out.tokens is not None
        index = out.taps["kept"][..., None].expand(-1, -1, len(PATCH_SIZES))  # (B, K, 3)
        kept = wanted.gather(1, index).flatten(0, 1)  # (B, K, 3) -> (B*K, 3)
        logits = self.patch(out.tokens.x[:, out.tokens.num_prefix :]).flatten(0, 1)  # (B*K, classes)
        things = torch.where(kept[:, :1] > 0, kept, IGNORED)
        return attributes(logits, kept, PATCH_SIZES) + attributes(logits, things, PATCH_SIZES)


def to_video(model: FluxDual, frames: Tensor) -> Tensor:
    """Decoded frames uint8 (B, T, H, W, 3) to model input (B, T, 3, H, W) of the same size."""
    transform = replace(model.transform, size=frames.shape[2])
    flat = transform(frames.flatten(0, 1).numpy())  # (B*T, H, W, 3) -> (B*T, 3, H, W)
    return flat.unflatten(0, frames.shape[:2])  # (B, T, 3, H, W)
