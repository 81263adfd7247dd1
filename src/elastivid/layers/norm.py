"""Root-mean-square norms, written for CPUs.

torch's own `rms_norm` runs on CPUs as separate powers, means and products; the vector norm used here reads its input
once. Measured on one AVX2 core, 4112 tokens of 192 channels: 0.4 ms against 4.3 ms.

Letters: N tokens, D channels, O output channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.layers.elastic import first


def inverse_rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, squared and inverted in float32: (..., D) to (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).float()  # asking it for float32 would convert all of x
    return torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467). Parameter names are those of `torch.nn.RMSNorm`."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., d) to (..., d): statistics over the d channels at hand, first d weights."""
        return x * inverse_rms(x, self.eps) * first(self.weight, x.shape[-1])


def norm_linear(x: Tensor, norm: RMSNorm, layer: nn.Linear, out_features: int) -> Tensor:
    """The first outputs of layer(norm(x)) in one product: the norm's weight moves into the matrix, its division behind.

    Worth it where D is larger than O, as for patches: (..., D) to (..., O).
    """
    out = F.linear(x, first(layer.weight, out_features) * norm.weight) * inverse_rms(x, norm.eps)
    return out if layer.bias is None else out + first(layer.bias, out_features)
