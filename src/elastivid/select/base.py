"""What a token selector is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from elastivid.core.tokens import Tokens


class Selector(ABC):
    """Chooses which patch tokens of a clip are worth computing."""

    @abstractmethod
    def select(self, tokens: Tokens, keep: int) -> Tensor:
        """Places (B, `keep`) of the kept patch tokens, ascending; prefix tokens do not count.

        Raises:
            PointError: `keep` is larger than the number of patch tokens.
        """
