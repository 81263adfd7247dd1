"""The loss of clips without labels: say from a few tokens how every cell looks and moves.

    visible    = K tubes of a drawn place each                     VideoMAE's mask, arXiv 2203.12602
    prediction = decoder(encoder(visible), drawn cells)
    loss       = mean over operating points of
                     smooth-L1(hidden cells) + smooth-L1(visible cells)

What is predicted are histograms of gradients, flow and motion boundaries (`elastivid.layers.histograms`), brought to
one scale per kind and clip: as in MaskFeat (arXiv 2112.09133), whose histograms are of gradients alone. A linear
classifier on such histograms tells real actions apart better than one on `nano` (docs/benchmarks/actions.md).

Where we depart: points draw token counts and widths, so that the encoder stays elastic; visible cells count as well,
because flow is not in a cell, it has to be found by comparing tokens; only some cells are predicted, as in VideoMAE V2,
which halves the cost of a step; and the decoder runs on the encoder's tokens with zeros in the channels that a width
leaves out.

Letters: B clips, T frames, S side in pixels, N cells, K visible, M predicted, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.point import OperatingPoint
from elastivid.layers.histograms import DIRECTIONS, KINDS, cell_histograms
from elastivid.losses.masked import masked_regression, standardised_kinds
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.models.videomae import DecoderConfig, MaskedDecoder, VideoMAEConfig, as_mask, initialise
from elastivid.select.masks import RandomTokens, RandomTubes
from elastivid.train.order import mixed
from elastivid.video.transforms import Transform

PREDICTED = 160  # cells of a clip
DECODER = DecoderConfig(
    embed_dim=96, depth=1, num_heads=3, output_dim=KINDS * DIRECTIONS, project_bias=True, positions="factorised"
)


class HistogramLoss(nn.Module):
    """Holds the decoder and computes the loss.

    Args:
        encoder: sizes of the FluxViT.
        decoder: sizes of the decoder.
    """

    def __init__(self, encoder: FluxViTConfig, decoder: DecoderConfig = DECODER) -> None:
        super().__init__()
        self.dim = encoder.full_widths[-1]
        sizes = VideoMAEConfig(
            embed_dim=self.dim,
            depth=1,
            num_heads=1,
            patch_size=encoder.patch_size,
            tubelet_size=1,
            num_frames=encoder.num_frames,
            image_size=encoder.image_size,
        )
        self.decoder = MaskedDecoder(sizes, decoder)
        initialise(self.decoder)

    def forward(
        self,
        encoder: FluxViT,
        frames: Tensor,
        transform: Transform,
        seeds: Sequence[int],
        points: Sequence[OperatingPoint],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of clips.

        Args:
            encoder: what is trained.
            frames: uint8 (B, T, S, S, 3), T >= 2.
            transform: what the encoder sees of them.
            seeds: one a clip, of its masks.
            points: tokens and width; each names fewer tokens than a clip has.

        Returns:
            The loss, and its parts for the log: `hidden` and `seen` by number of the point.
        """
        pixels = frames.movedim(-1, 2).float() / 255  # (B, T, 3, S, S)
        target = standardised_kinds(cell_histograms(pixels, encoder.config.patch_size), KINDS)  # (B, N, 32)
        video = transform.normalised(frames)
        loss, report = video.new_zeros(()), {}
        for number, point in enumerate(points):
            own, tokens = [mixed(seed, number) for seed in seeds], encoder.embed(video, point)
            visible = RandomTubes(own).select(tokens, point.tokens)  # (B, K)
            places = RandomTokens([seed + 1 for seed in own]).select(
                tokens, min(PREDICTED, tokens.num_placed)
            )  # (B, M)
            out = encoder.encode(tokens.gather(visible), replace(point, tokens=None))
            assert out.tokens is not None
            x = out.tokens.x[:, out.tokens.num_prefix :]  # (B, K, d)
            x = F.pad(x, (0, self.dim - x.shape[-1]))  # (B, K, D)
            prediction = self.decoder(x, visible, places, tokens.grid)  # (B, M, 32)
            wanted = target.gather(1, places[..., None].expand_as(prediction))  # (B, M, 32)
            seen = as_mask(visible, target.shape[1]).gather(1, places)  # (B, M)
            for name, counted in (("hidden", ~seen), ("seen", seen)):
                part = masked_regression(prediction, wanted, counted, distance=F.smooth_l1_loss)
                report[f"{name}{number}"] = part.detach()
                loss = loss + part / len(points)
        return loss, report
