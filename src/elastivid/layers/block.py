"""A pre-norm transformer block.

Letters: B batch, N tokens, D channels, d active ones (see `layers.elastic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.layers.attention import Attention
from elastivid.layers.elastic import first, linear
from elastivid.layers.norm import RMSNorm


class Mlp(nn.Module):
    """Linear, activation, linear, with int(mlp_ratio * D) hidden channels. Cost: 2 r N D^2 multiply-accumulates."""

    def __init__(self, dim: int, mlp_ratio: float, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.mlp_ratio = mlp_ratio
        self.activation = activation
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, d) to (B, N, d) with the first r * d hidden channels."""
        d = x.shape[-1]
        return linear(self.activation(linear(x, self.fc1, int(d * self.mlp_ratio))), self.fc2, d)


class Block(nn.Module):
    """x + s1 * attention(norm(x)), then x + s2 * mlp(norm(x)), with learned channel scales s1 and s2.

    Args:
        dim: channels D.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over D.
        layer_scale: initial value of the channel scales.
        drop_path: probability that a sample skips a residual branch in training.
        local: give the attention its local position term.
        qk_norm, qkv_bias: normalise queries and keys; give queries, keys and values a bias.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        local: bool = False,
        qk_norm: bool = True,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(dim)
        self.attn = Attention(dim, num_heads, local=local, qk_norm=qk_norm, qkv_bias=qkv_bias)
        self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.norm2 = RMSNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio)
        self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, d) to (B, N, d) with the first d channels of everything.

        `sizes` (B, N) says how much each token counts as a key (`None`: the same).
        """
        d = x.shape[-1]
        x = torch.addcmul(x, self._dropped(self.attn(self.norm1(x), sizes)), first(self.scale1, d))
        return torch.addcmul(x, self._dropped(self.mlp(self.norm2(x))), first(self.scale2, d))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        mask = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep  # (B, 1, 1)
        return branch * mask / keep


def initialise_linears(*modules: nn.Module) -> None:
    """Truncated normal weights (std 0.02) and zero biases for every linear layer in `modules`."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def initialise_block(block: Block, layer: int) -> None:
    """As `initialise_linears`; both output projections divided by sqrt(2 * layer), layer from 1."""
    initialise_linears(block)
    with torch.no_grad():
        block.attn.proj.weight.div_(math.sqrt(2.0 * layer))
        block.mlp.fc2.weight.div_(math.sqrt(2.0 * layer))


@torch.no_grad()
def initialise_mimetic(block: Block, likeness: float = 0.7) -> None:
    """Start as trained transformers end (arXiv 2305.09828): queries resemble keys, so like tokens find each other.

    For training from scratch on little data; `initialise_block` is what the released code does. Query and key
    matrices share an orthogonal part of weight `likeness`; values and outputs are random with gain one; the paper's
    diagonal part of value times output is left out, because the residual carries the token already.
    """
    dim = block.attn.proj.in_features
    shared = nn.init.orthogonal_(torch.empty(dim, dim))
    noise, values = torch.randn(2, dim, dim) / math.sqrt(dim)  # (2, D, D)
    block.attn.qkv.weight.copy_(torch.cat([shared, likeness * shared + (1 - likeness) * noise, values]))  # (3D, D)
    nn.init.normal_(block.attn.proj.weight, std=dim**-0.5)
    nn.init.normal_(block.mlp.fc1.weight, std=dim**-0.5)
    nn.init.normal_(block.mlp.fc2.weight, std=0.5 * dim**-0.5)
