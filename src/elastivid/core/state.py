"""`State`: the memory of a streaming model as a value.

Letters: B rows, one stream each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from torch import Tensor


class State(ABC):
    """What a streaming model carries from one clip to the next, for B streams side by side.

    A state is a value: every method returns a new one and leaves the old one usable, so that one past can be
    continued in two ways. Its size is bounded by construction.
    """

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes held by the state's tensors."""

    @abstractmethod
    def fork(self) -> Self:
        """An independent copy: continuing either one never changes the other."""

    @abstractmethod
    def select(self, rows: Sequence[int]) -> Self:
        """The state of the streams `rows`, in that order; a row may occur more than once.

        Raises:
            IndexError: a row lies outside 0 to B - 1.
        """

    @abstractmethod
    def reset(self, rows: Sequence[int]) -> Self:
        """The state in which the streams `rows` have seen nothing yet; other rows are unchanged.

        Raises:
            IndexError: a row lies outside 0 to B - 1.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Named tensors that hold the whole state, for saving."""
