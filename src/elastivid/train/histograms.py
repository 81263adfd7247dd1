"""The loss of clips without labels: say from a few tokens how every cell looks and moves.

    visible = tokens in K / T tubes through all frames             VideoMAE's mask, arXiv 2203.12602
    tokens  = norm(encoder(visible))
    loss    = mean over operating points of
                  smooth-L1(decoder(tokens, hidden cells), histograms of hidden cells)
                + smooth-L1(linear(tokens), histograms of visible cells)

What is predicted are histograms of gradients, flow and motion boundaries (`elastivid.layers.histograms`), brought to
one scale per kind and clip: as in MaskFeat (arXiv 2112.09133), whose histograms are of gradients alone. A linear
classifier on such histograms tells real actions apart better than one on `nano` (docs/benchmarks/actions.md).

Where we depart: points draw token counts and widths, so that the encoder stays elastic; visible cells count as well,
because flow is not in a cell, it has to be found by comparing tokens; only some hidden cells are predicted, as in
VideoMAE V2, which halves the cost of a step; and the decoder gets zeros in the channels that a width leaves out.

Letters: B clips, T frames, S side in pixels, N cells, K visible, M predicted, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.point import OperatingPoint
from elastivid.core.tokens import Tokens
from elastivid.layers.elastic import layer_norm
from elastivid.layers.histograms import DIRECTIONS, KINDS, cell_histograms
from elastivid.losses.masked import masked_regression, standardised_kinds
from elastivid.models.fluxvit import FluxViT, FluxViTConfig
from elastivid.models.videomae import DecoderConfig, MaskedDecoder, VideoMAEConfig, complement, initialise
from elastivid.select.masks import RandomTokens, RandomTubes
from elastivid.train.order import mixed
from elastivid.video.transforms import Transform

PREDICTED = 96  # hidden cells of a clip
DECODER = DecoderConfig(
    embed_dim=96, depth=1, num_heads=3, output_dim=KINDS * DIRECTIONS, project_bias=True, positions="factorised"
)


class HistogramLoss(nn.Module):
    """Holds the decoder and the linear layer and computes the loss.

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
        self.norm = nn.LayerNorm(self.dim)
        self.seen = nn.Linear(self.dim, KINDS * DIRECTIONS)
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
            hidden = drawn(complement(visible, tokens.num_placed), tokens, own)  # (B, M)
            out = encoder.encode(tokens.gather(visible), replace(point, tokens=None))
            assert out.tokens is not None
            x = layer_norm(out.tokens.x[:, out.tokens.num_prefix :], self.norm)  # (B, K, d)
            x = F.pad(x, (0, self.dim - x.shape[-1]))  # (B, K, D)
            predictions = {
                "hidden": (hidden, self.decoder(x, visible, hidden, tokens.grid)),
                "seen": (visible, self.seen(x)),
            }
            for name, (places, prediction) in predictions.items():  # (B, M or K), (B, M or K, 32)
                wanted = target.gather(1, places[..., None].expand_as(prediction))
                part = masked_regression(prediction, wanted, distance=F.smooth_l1_loss)
                report[f"{name}{number}"] = part.detach()
                loss = loss + part / len(points)
        return loss, report


def drawn(hidden: Tensor, tokens: Tokens, seeds: Sequence[int]) -> Tensor:
    """`PREDICTED` of the hidden cells (B, N-K), or all where there are fewer: (B, M)."""
    among = RandomTokens(seeds).select(tokens.gather(hidden), min(PREDICTED, hidden.shape[1]))
    return hidden.gather(1, among)
