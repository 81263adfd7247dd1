"""Text queries to vectors in numpy: the forward pass of `elastivid.models.text` without loading torch.

Nothing is padded: texts of one length run together. Agreement with torch is 1e-5 or better.
Weights are read one tensor at a time: a file that also holds a video tower costs nothing extra.

Letters: N texts, n of one length, L tokens of one text, D table channels, A heads, K channels per head, E output
channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from elastivid.core.errors import WeightsError
from elastivid.models.text_tokenizer import TextTokenizer

LAYER_NORM_EPS = 1e-5


class TextEncoder:
    """Embeds texts into the space of a weights file. Make one with `from_file`.

    Args:
        tensors: the tower's tensors by name, without prefix (see `elastivid.models.text.TextTower`).
        config: the tower's config as a dictionary.
        space_id: the space the vectors belong to.

    Raises:
        WeightsError: a tensor or a config field is missing.
    """

    def __init__(self, tensors: dict[str, np.ndarray], config: dict[str, float], space_id: str) -> None:
        self.space_id = space_id
        try:
            self.dim = int(config["output_dim"])
            self.depth = int(config["depth"])
            self.num_heads = int(config["num_heads"])
            self._table = tensors["table"]
            self._table_scale = tensors["table_scale"]
            self.tokenizer = TextTokenizer(tensors["tokenizer_json"].tobytes(), int(config["context_length"]))
        except KeyError as error:
            raise WeightsError(f"the text tower lacks {error}; fetch the weights file again") from error
        self._weights = {
            name: np.ascontiguousarray(value.T if value.ndim == 2 and name != "position" else value, dtype=np.float32)
            for name, value in tensors.items()
            if name not in ("table", "table_scale", "tokenizer_json")
        }  # linear weights are kept as (in, out)

    @classmethod
    def from_file(cls, path: str | Path, prefix: str = "text.") -> TextEncoder:
        """Read the text tower of a `.safetensors` file.

        Args:
            path: weights file with metadata keys `text_config` and `space_id`, both json.
            prefix: what names of the tower's tensors start with; other tensors are not read.

        Raises:
            WeightsError: the file is missing or damaged, or holds no text tower.
        """
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"cannot read text weights from {path}: {error}") from error
        missing = sorted({"text_config", "space_id"} - metadata.keys())
        if missing or not tensors:
            what = f"metadata {', '.join(missing)} missing" if missing else f"no tensor starts with {prefix!r}"
            raise WeightsError(f"{path} holds no text tower: {what}; use a file of a dual encoder such as nano")
        try:
            config, space_id = json.loads(metadata["text_config"]), json.loads(metadata["space_id"])
        except ValueError as error:
            raise WeightsError(f"metadata of {path} is not json ({error}); fetch the weights file again") from error
        return cls(tensors, config, space_id)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (N, E) float32 of N texts.

        Raises:
            TypeError: `texts` is one string instead of a sequence of strings.
        """
        token_ids = [np.array(ids) for ids in self.tokenizer.token_ids(texts)]
        vectors = np.zeros((len(token_ids), self.dim), dtype=np.float32)
        for length in {len(ids) for ids in token_ids}:  # texts of one length run together: no padding, no mask
            same = [place for place, ids in enumerate(token_ids) if len(ids) == length]
            vectors[same] = self._embed_ids(np.stack([token_ids[place] for place in same]))
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def _embed_ids(self, ids: np.ndarray) -> np.ndarray:
        """Vectors (n, E) of texts with token ids (n, L), not normalised."""
        rows = self._table[ids].astype(np.float32)  # (n, L, D)
        static = (rows * self._table_scale[ids].astype(np.float32)).mean(1)  # (n, D)
        x = self._norm("embed_norm", rows) + self._weights["position"][: ids.shape[1]]
        for i in range(self.depth):
            x = x + self._attention(f"blocks.{i}.attn", self._norm(f"blocks.{i}.norm1", x))
            hidden = _gelu(self._linear(f"blocks.{i}.fc1", self._norm(f"blocks.{i}.norm2", x)))
            x = x + self._linear(f"blocks.{i}.fc2", hidden)
        context = self._norm("final_norm", x).mean(1) @ self._weights["context_proj.weight"]  # (n, D)
        out: np.ndarray = (static + context) @ self._weights["projection.weight"]
        return out

    def _attention(self, name: str, x: np.ndarray) -> np.ndarray:
        n, length, dim = x.shape
        qkv = self._linear(f"{name}.qkv", x).reshape(n, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # (n, L, 3, A, K) -> three of (n, A, L, K)
        scores = q @ k.transpose(0, 1, 3, 2) * np.float32(q.shape[-1] ** -0.5)  # (n, A, L, L)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores @ v / scores.sum(-1, keepdims=True)  # (n, A, L, K)
        return self._linear(f"{name}.proj", mixed.transpose(0, 2, 1, 3).reshape(n, length, dim))  # (n, L, D)

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        weight = self._weights[f"{name}.weight"]
        flat = x.reshape(-1, x.shape[-1]) @ weight  # (n, L, C) -> (n * L, C'): one product instead of n
        out: np.ndarray = flat.reshape(*x.shape[:-1], weight.shape[1]) + self._weights[f"{name}.bias"]
        return out

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(LAYER_NORM_EPS))
        out: np.ndarray = centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return out


def _gelu(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + erf(x/sqrt 2)), erf by formula 7.1.26 of Abramowitz and Stegun (error below 1.5e-7)."""
    z = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = np.zeros_like(x)
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = (series + np.float32(coefficient)) * t
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    out: np.ndarray = x * np.float32(0.5) * (1 + erf)
    return out
