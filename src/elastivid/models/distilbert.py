"""DistilBERT as a text tower: the text half of Frozen in Time, EgoVLP and AdaVid.

Papers: DistilBERT, arXiv 1910.01108; the projection behind it, arXiv 2104.00650.

    x = norm(words[ids] + positions)
    x = norm(x + attend(x));  x = norm(x + mlp(x))          per block, norms after the sums
    tower(text) = W relu(x of the first token) + b           the first token is [CLS]

Where we depart: no dropout. The tokenizer travels in the state dict, as in `models.text`.

Cost: depth * (12 L D^2 + 2 L^2 D) + D E multiply-accumulates for hidden channels of 4 D.

Letters: B texts, L tokens, D channels, A heads, E output channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import WeightsError, require_known_keys
from elastivid.models.text import MINILM_VOCAB_SIZE, TextAttention, TextTower
from elastivid.models.text_tokenizer import TextTokenizer

EPS = 1e-12  # of every norm, as in BERT
BEGIN, END = "[CLS]", "[SEP]"


@dataclass(frozen=True)
class DistilBertConfig:
    """Sizes of a `DistilBert`.

    Args:
        vocab_size: rows V of the table of words.
        embed_dim, depth, num_heads: channels D, blocks, attention heads.
        hidden_dim: hidden channels of an MLP.
        context_length: rows of the table of positions: most tokens of a text, [CLS] and [SEP] included.
        output_dim: channels E of the shared space.
        tokenizer_bytes: size of the compressed tokenizer that travels in the state dict; 0 for none.
    """

    vocab_size: int = MINILM_VOCAB_SIZE
    embed_dim: int = 768
    depth: int = 6
    num_heads: int = 12
    hidden_dim: int = 3072
    context_length: int = 512
    output_dim: int = 256
    tokenizer_bytes: int = 0

    def build(self) -> DistilBert:
        """An untrained tower of these sizes."""
        return DistilBert(self)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any], output_dim: int) -> DistilBertConfig:
        """Our config for that of a transformers `DistilBertConfig`.

        Raises:
            WeightsError: a key this does not know, or an activation that is not GELU.
        """
        known = {
            "vocab_size": "vocab_size",
            "dim": "embed_dim",
            "n_layers": "depth",
            "n_heads": "num_heads",
            "hidden_dim": "hidden_dim",
            "max_position_embeddings": "context_length",
        }
        require_known_keys("DistilBERT reference config", config, known, {"dropout", "attention_dropout", "activation"})
        if config.get("activation", "gelu") != "gelu":
            raise WeightsError(
                f"DistilBERT reference config has activation={config['activation']!r}, only 'gelu' is known"
            )
        return cls(output_dim=output_dim, **{known[key]: value for key, value in config.items() if key in known})


class DistilBertBlock(nn.Module):
    """Attention, then a GELU MLP, each added to its input and normalised."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.attn = TextAttention(dim, config.num_heads)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.fc1 = nn.Linear(dim, config.hidden_dim)
        self.fc2 = nn.Linear(config.hidden_dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map tokens x (B, L, D) to (B, L, D); `valid` (B, L) is true at tokens, false at padding."""
        x = self.norm1(x + self.attn(x, valid))
        out: Tensor = self.norm2(x + self.fc2(F.gelu(self.fc1(x))))
        return out


class DistilBert(nn.Module):
    """Embeds token ids; see the head of this file for the formula. The state dict holds the tokenizer."""

    tokenizer_json: Tensor

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.register_buffer("tokenizer_json", torch.zeros(config.tokenizer_bytes, dtype=torch.uint8))
        self.words = nn.Parameter(torch.empty(config.vocab_size, dim))
        self.positions = nn.Parameter(torch.empty(config.context_length, dim))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.blocks = nn.ModuleList(DistilBertBlock(config) for _ in range(config.depth))
        self.projection = nn.Linear(dim, config.output_dim)
        self._tokenizer: TextTokenizer | None = None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed texts; the result is not normalised.

        Args:
            token_ids: (B, L) int64, [CLS] first, padded at the end with any valid id.
            lengths: (B,) int64, tokens of each text, between 1 and L.

        Returns:
            (B, E) float32.

        Raises:
            ValueError: L is above `context_length`.
        """
        length = token_ids.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"texts may have at most {self.config.context_length} tokens, got {length}")
        valid = torch.arange(length, device=token_ids.device) < lengths[:, None]  # (B, L)
        x = self.norm(self.words[token_ids] + self.positions[:length])  # (B, L, D)
        for block in self.blocks:
            x = block(x, valid)
        out: Tensor = self.projection(F.relu(x[:, 0]))
        return out

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that travels with the weights.

        Raises:
            WeightsError: the tower carries none.
        """
        if self._tokenizer is None:
            if not self.tokenizer_json.numel():
                raise WeightsError("this text tower carries no tokenizer; see AdaVidDualConfig.build, which gives one")
            packed = self.tokenizer_json.cpu().numpy().tobytes()
            self._tokenizer = TextTokenizer(packed, self.config.context_length - 2)
        return self._tokenizer

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 from [CLS] to [SEP] and lengths (B,) int64, ready for `forward`."""
        begin, end = self.tokenizer.id_of(BEGIN), self.tokenizer.id_of(END)
        rows = [torch.tensor([begin, *row, end]) for row in self.tokenizer.token_ids(texts)]
        device = self.positions.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device), lengths  # (B, L), (B,)


def shipped_tokenizer() -> Tensor:
    """The packed tokenizer of lower-case English that the package ships: BERT's and DistilBERT's own vocabulary."""
    return TextTower.from_file().tokenizer_json


_RENAMED = {
    "embeddings.word_embeddings.weight": "words",
    "embeddings.position_embeddings.weight": "positions",
    "embeddings.LayerNorm.": "norm.",
    "transformer.layer.": "blocks.",
    "attention.out_lin.": "attn.proj.",
    "sa_layer_norm.": "norm1.",
    "output_layer_norm.": "norm2.",
    "ffn.lin1.": "fc1.",
    "ffn.lin2.": "fc2.",
}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of transformers' `DistilBertModel`; the projection is not part of that."""
    converted = {}
    for name, value in state.items():
        if name == "embeddings.position_ids" or ".k_lin." in name or ".v_lin." in name:
            continue  # the first only counts up, the others are stacked on the queries below
        ours = name
        for old, new in _RENAMED.items():
            ours = ours.replace(old, new)
        if ".q_lin." in name:
            ours = ours.replace("attention.q_lin.", "attn.qkv.")
            value = torch.cat([state[name.replace(".q_lin.", f".{part}_lin.")] for part in "qkv"])  # (3D, ...)
        converted[ours] = value
    return converted
