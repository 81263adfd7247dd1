"""The loss of one training step of a dual encoder on a batch of `elastivid.data.mixture`.

    loss = mean over operating points of
               contrastive(clips, captions; hard negatives)       which caption is this clip's
             + attributes(clip head; clips)                       colour, shape and motion, named from the vector
             + attributes(patch head; kept tokens)                what each kept patch shows
           + attributes(clip head; captions)                      the same linear map must read captions
           + smooth-L1(other points, first point)                 self-distillation, arXiv 2503.14237

The first point is the dearest, at full width; the others draw token counts and widths at random, so that one model
serves them all (tokens: FluxViT, arXiv 2503.14237; width per layer: AdaVid, arXiv 2504.12513). The two linear heads
serve training only. Without the patch head a transformer this small learns nothing but colour in its first ten
thousand clips.

Letters: B clips, T frames, H W pixels, M wrong captions, N patches, K kept patches, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.data.mixture import ATTRIBUTE_SIZES, IGNORED, PATCH_SIZES, same_content
from elastivid.layers.elastic import sample_widths
from elastivid.losses.attributes import attributes
from elastivid.losses.contrastive import agreement, contrastive
from elastivid.losses.gather import gathered
from elastivid.models.dual import FluxDual
from elastivid.models.text_tokenizer import TextTokenizer

DEAR_TOKENS = (256, 384, 512)
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
        self, model: FluxDual, batch: dict[str, Any], points: Sequence[OperatingPoint]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch.

        Args:
            model: the dual encoder.
            batch: what `collate` returns, with `add_words`.
            points: what every clip is encoded at, the teacher of the others first; each names fewer tokens than a
                clip has.

        Returns:
            The loss, and its parts for the log: `loss`, `named`, `shown` by number of the point; `beats`, the share
            of clips nearer to their caption than to all of their wrong captions.
        """
        device = model.log_scale.device
        wanted, shown_by, contents = (batch[name].to(device) for name in ("attributes", "patches", "contents"))
        contents = gathered(contents)
        same = same_content(contents, contents)  # (B, B)
        ids, lengths, count = batch["words"].to(device), batch["lengths"].to(device), len(batch["texts"])
        words = F.normalize(model.text(ids, lengths), dim=-1)  # (B + B*M, D)
        right, wrong = words[:count], words[count:].unflatten(0, (count, -1))  # (B, D), (B, M, D)
        all_right, all_wrong = gathered(right), gathered(wrong)
        scale = model.log_scale.exp().clamp(max=100)
        video = model.transform.normalised(batch["frames"].to(device))
        loss = attributes(self.clip(SHARPNESS * right), wanted, ATTRIBUTE_SIZES)
        teacher: Tensor | None = None
        report: dict[str, Tensor] = {}
        for number, point in enumerate(points):
            out = model.video(video, point=point)
            clips = F.normalize(out.embedding, dim=-1)
            matched = contrastive(gathered(clips), all_right, scale, same=same, hard_texts=all_wrong)
            named = attributes(self.clip(SHARPNESS * clips), wanted, ATTRIBUTE_SIZES)
            shown = self._patches(out, shown_by)
            loss = loss + (matched + named + shown) / len(points)
            for name, part in (("loss", matched), ("named", named), ("shown", shown)):
                report[f"{name}{number}"] = part.detach()
            margin = (clips * right).sum(-1) - torch.einsum("bd,bmd->bm", clips, wrong).amax(1)
            report[f"beats{number}"] = (margin > 0).float().mean()
            if teacher is None:
                teacher = clips
            else:
                loss = loss + agreement(clips, teacher)
        return loss, report

    def _patches(self, out: Output, wanted: Tensor) -> Tensor:
        """Name what each kept patch shows: once over all of them, once over those that show a thing."""
        assert out.tokens is not None
        index = out.taps["kept"][..., None].expand(-1, -1, len(PATCH_SIZES))  # (B, K, 3)
        kept = wanted.gather(1, index).flatten(0, 1)  # (B, K, 3) -> (B*K, 3)
        x = out.tokens.x[:, out.tokens.num_prefix :]  # (B, K, d), d the width of the last layer
        logits = F.linear(x, self.patch.weight[:, : x.shape[-1]], self.patch.bias).flatten(0, 1)  # (B*K, classes)
        things = torch.where(kept[:, :1] > 0, kept, IGNORED)
        return attributes(logits, kept, PATCH_SIZES) + attributes(logits, things, PATCH_SIZES)


def add_words(batch: dict[str, Any], tokenizer: TextTokenizer) -> dict[str, Any]:
    """The batch with `words` (B + B*M, L) and `lengths` (B + B*M,): tokens of the captions, then of the wrong ones."""
    hard = [text for row in batch["hard_texts"] for text in row]
    words, lengths = tokenizer.tokenize(batch["texts"] + hard)
    return {**batch, "words": torch.from_numpy(words), "lengths": torch.from_numpy(lengths)}


def draw_points(
    generator: torch.Generator,
    available_tokens: int,
    widths: Sequence[int],
    depth: int,
    dear: Sequence[int] = DEAR_TOKENS,
) -> tuple[OperatingPoint, OperatingPoint, OperatingPoint]:
    """The points of one training step: dear at full width, medium and cheap at drawn widths.

    Args:
        generator: the only source of randomness.
        available_tokens: tokens of a clip; every count stays below.
        widths: widths a layer may have. One of three draws is a single width for all layers, one a schedule that
            never grows with depth, one a width of its own for each layer.
        depth: layers of the video tower.
        dear: what the dear point draws its tokens from; the others never have more.
    """

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    most = min(dear[whole(0, len(dear) - 1)], available_tokens - 1)
    points = [OperatingPoint(tokens=most)]
    for low, high in ((96, 256), (32, 128)):
        tokens, kind = min(whole(low, high), most), whole(0, 2)
        drawn = sample_widths(generator, depth, widths, decreasing=kind == 1)
        points.append(OperatingPoint(tokens=tokens, width=drawn[:1] * depth if kind == 0 else drawn))
    return points[0], points[1], points[2]
