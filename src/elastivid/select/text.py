"""Selection by a text: keep the tokens that are most like what is asked for.

    score[i] = cos(x[i], text)

Tokens and text must lie in one space, as the final tokens of an image-text encoder do (through its projection). Early
tokens do not: patch embeddings know no words. So it is used behind an encoder, to hand fewer tokens to a language model
or a memory, or by a model whose tokens are projected (`project`). AdaCM2 (arXiv 2411.12593) scores its cache in
the same spirit, with cross-attention in place of the cosine.
Cost: N D multiply-accumulates, and those of `project`.

Letters: B batch, M placed tokens, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.errors import PointError
from elastivid.core.tokens import Tokens
from elastivid.select.base import Selector


class TextEncoder(Protocol):
    """What turns texts into vectors; every dual encoder of the library does."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (B, D) of texts."""
        ...


class TextGuided(Selector):
    """Keep the tokens whose features point where the text's vector points.

    Args:
        text: (D,) for all clips or (B, D), one per clip; length does not matter.
        project: takes features (B, M, D') into the text's space, (B, M, D); `None` when they lie in it.

    Raises:
        PointError: `text` has the wrong shape, is zero or holds values that are no numbers; on use: its width or number
            does not fit the tokens.
    """

    def __init__(self, text: Tensor, *, project: Callable[[Tensor], Tensor] | None = None) -> None:
        if text.ndim not in (1, 2):
            raise PointError(f"text must have shape (D,) or (B, D), got {tuple(text.shape)}")
        lengths = text.norm(dim=-1)
        if not bool((lengths > 0).all() and lengths.isfinite().all()):
            raise PointError(f"text vectors must be finite and not zero, got lengths {lengths.flatten().tolist()}")
        self.text = F.normalize(text.detach(), dim=-1)
        self.project = project

    @classmethod
    def asking(
        cls, encoder: TextEncoder, texts: str | Sequence[str], *, project: Callable[[Tensor], Tensor] | None = None
    ) -> TextGuided:
        """Ask with words: one text for all clips, or a list with one per clip.

        Raises:
            PointError: a text is empty, or there is none.
        """
        asked = [texts] if isinstance(texts, str) else list(texts)
        empty = [i for i, text in enumerate(asked) if not text.strip()]
        if empty or not asked:
            raise PointError(
                f"a text to select by must not be empty, got {asked or 'no text'}; keep all or use another"
            )
        vectors = encoder.embed_texts(asked)  # (B, D)
        return cls(vectors[0] if isinstance(texts, str) else vectors, project=project)

    def scores(self, tokens: Tokens) -> Tensor:
        """Cosine of every token with the text of its clip, (B, M)."""
        x = tokens.x[:, tokens.num_prefix :]  # (B, M, D')
        x = x if self.project is None else self.project(x)
        batch, _, width = x.shape
        if width != self.text.shape[-1]:
            raise PointError(
                f"text has {self.text.shape[-1]} channels, the tokens have {width}; they must lie in one space: pass "
                "project= that maps tokens to the text's space"
            )
        if self.text.ndim == 2 and len(self.text) != batch:
            raise PointError(f"text must be one vector or one per clip ({batch}), got {len(self.text)}")
        text = self.text.to(x).expand(batch, -1).unsqueeze(-1)  # (B, D, 1)
        lengths = x.norm(dim=-1).clamp(min=torch.finfo(x.dtype).tiny)  # (B, M); 1e-12 is zero in float16
        return (x @ text).squeeze(-1) / lengths
