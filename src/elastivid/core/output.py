"""`Output`: what a forward pass returns. Tensors only; clocks belong to whoever runs the model.

Letters: B batch, N tokens, D channels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from elastivid.core.state import State
    from elastivid.core.tokens import Tokens


@dataclass(frozen=True)
class Output:
    """Result of `VideoEncoder.forward`.

    Args:
        embedding: pooled feature (B, D), not normalised.
        logits: class scores (B, K), or `None` for a model without classifier.
        tokens: final tokens with their places.
        state: streaming state after this clip, for models that stream.
        taps: named intermediate tensors.
    """

    embedding: Tensor
    logits: Tensor | None = None
    tokens: Tokens | None = None
    state: State | None = None
    taps: dict[str, Tensor] = field(default_factory=dict)
