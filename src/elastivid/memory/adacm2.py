"""AdaCM2: of older visual tokens those stay that the question attends to, layer by layer, frame by frame.

Paper: "AdaCM2: On Understanding Extremely Long-Term Video with Adaptive Cross-Modality Memory Reduction",
arXiv 2411.12593. No code by its authors is public.

    after each frame of P tokens a layer holds N' = N + P candidates;
    the most recent share alpha stays as it is; of the rest the share beta with the highest scores stays:
    N <- ceil(r N'),  r = alpha + (1 - alpha) beta,      so N tends to P r / (1 - r), whatever the length

A token's score is the attention that it gets from the queries in this frame, summed over queries and heads (the paper
leaves the sum open). The queries have seen the text, so a changed question keeps other tokens.

The paper's Eq. 8 is the recursion above. Read by its Eq. 6, alpha is the share that is thinned:
r = 1 - alpha + alpha beta; `AdaCM2.from_eq6` gives that. Shares are exact fractions and rounding is up, so that a layer
is never empty; the cache is then at most 1 / (1 - r) tokens above the limit of real numbers.

`CappedAdaCM2` is the same rule for a fixed number of tokens: nothing goes while there is room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from elastivid.memory.cache import Candidates, Retention

Share = float | tuple[float, ...]


@dataclass(frozen=True)
class AdaCM2(Retention):
    """Recursion with shares alpha and beta, one number for all layers or one per layer.

    Args:
        alpha: share of the tokens, the most recent ones, that stays untouched.
        beta: share of the others that stays.

    Raises:
        ValueError: a share is outside 0 to 1, or alpha and beta name different numbers of layers.
    """

    alpha: Share = 0.1
    beta: Share = 0.1

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            shares = value if isinstance(value, tuple) else (value,)
            if not shares or any(not 0 <= share <= 1 for share in shares):
                raise ValueError(f"{name} must be a share in 0 to 1, or one per layer, got {value}")
        if isinstance(self.alpha, tuple) and isinstance(self.beta, tuple) and len(self.alpha) != len(self.beta):
            raise ValueError(f"alpha has {len(self.alpha)} layers and beta {len(self.beta)}; give equally many")

    @classmethod
    def from_eq6(cls, alpha: float, beta: float) -> AdaCM2:
        """The rule in the other reading: the oldest share `alpha` is thinned, the rest is kept as recent."""
        return cls(float(1 - _exact(alpha)), beta)

    @property
    def bounded(self) -> bool:
        """Whether every layer drops something."""
        layers = max(len(share) if isinstance(share, tuple) else 1 for share in (self.alpha, self.beta))
        return all(self.retained(layer) < 1 for layer in range(layers))

    def retained(self, layer: int) -> Fraction:
        """Share r of the candidates that stays in layer `layer`."""
        alpha, beta = _of_layer(self.alpha, layer), _of_layer(self.beta, layer)
        return alpha + (1 - alpha) * beta

    def limit(self, layer: int, frame_tokens: int) -> float:
        """Tokens P r / (1 - r) that layer `layer` tends to with `frame_tokens` P; infinite for r = 1."""
        r = self.retained(layer)
        return math.inf if r == 1 else float(frame_tokens * r / (1 - r))

    def keep_count(self, layer: int, count: int) -> int:
        """ceil(r N')."""
        return math.ceil(self.retained(layer) * count)

    def priorities(self, candidates: Candidates) -> Tensor:
        """Scores; above all of them the most recent ceil(alpha N')."""
        alpha = _of_layer(self.alpha, candidates.layer)
        recent = torch.tensor([math.ceil(alpha * n) for n in candidates.counts.tolist()])
        return _recent_first(candidates, recent)


@dataclass(frozen=True)
class CappedAdaCM2(Retention):
    """At most `tokens` per layer: the most recent `recent_share` of them, and of the others the best by score.

    Args:
        tokens: most tokens of a layer; at least the tokens of one frame.
        recent_share: share of `tokens` that belongs to the most recent ones.

    Raises:
        ValueError: there is no room for a token, or the share is outside 0 to 1.
    """

    tokens: int
    recent_share: float = 0.1

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {self.tokens}")
        if not 0 <= self.recent_share <= 1:
            raise ValueError(f"recent_share must be in 0 to 1, got {self.recent_share}")

    def keep_count(self, layer: int, count: int) -> int:
        """All while they fit."""
        return min(count, self.tokens)

    def priorities(self, candidates: Candidates) -> Tensor:
        """Scores; above all of them the most recent ones."""
        recent = math.ceil(_exact(self.recent_share) * self.tokens)
        return _recent_first(candidates, torch.full_like(candidates.counts, recent))


def _recent_first(candidates: Candidates, recent: Tensor) -> Tensor:
    newest = candidates.order >= (candidates.counts - recent).to(candidates.order.device)[:, None]  # (B, N)
    return candidates.scores.masked_fill(newest, torch.inf)


def _exact(share: float) -> Fraction:
    """The decimal fraction that was meant: 0.1 is one tenth."""
    return Fraction(repr(float(share)))


def _of_layer(share: Share, layer: int) -> Fraction:
    if not isinstance(share, tuple):
        return _exact(share)
    if layer >= len(share):
        raise ValueError(f"shares are given for {len(share)} layers, but the model has a layer {layer}; give one each")
    return _exact(share[layer])
