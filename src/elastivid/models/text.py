"""Text tower: a distilled static token table plus a few small transformer blocks that see word order.

    static(text)  = mean over tokens t of table[t]                      (order-blind)
    context(text) = W_c mean over tokens of blocks(norm(table[t]) + position)
    tower(text)   = W_o (static(text) + context(text))

The table holds each vocabulary token's own sentence embedding under all-MiniLM-L6-v2 (arXiv 2002.10957, 1908.10084),
reduced to `table_dim` principal components and weighted by smooth inverse frequency (ICLR 2017, "A simple but
tough-to-beat baseline for sentence embeddings"); it is int8 with one scale per row and is never trained. W_c starts
at zero, so an untrained tower equals the static embedding up to a rotation; the blocks then learn what order adds.
Blocks are pre-norm with LayerNorm and erf GELU. Attention has no mask but padding, no dropout.

Cost: depth * L * (4 + 2 mlp_ratio) * D^2 + 2 depth L^2 D multiply-accumulates, 4 M for 10 tokens at D = 128: nothing
beside a clip. `elastivid.search.text` repeats this forward pass in numpy.

Letters: B texts, L tokens, D table channels, A heads, K channels per head, E output channels, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from elastivid.core.errors import WeightsError
from elastivid.models.text_tokenizer import TextTokenizer

DISTILLED = Path(__file__).parents[1] / "weights" / "text_minilm128.safetensors"
MINILM_VOCAB_SIZE = 30_522


@dataclass(frozen=True)
class TextConfig:
    """Shape of a `TextTower`.

    Args:
        vocab_size: rows V of the token table.
        table_dim: channels D of the table and of the blocks.
        depth: transformer blocks; 0 leaves the static embedding alone.
        num_heads: attention heads.
        mlp_ratio: hidden channels of an MLP over D.
        context_length: most tokens of a text.
        output_dim: channels E of the shared space, at least D.
        tokenizer_bytes: size of the compressed tokenizer that travels in the state dict; 0 for none.

    Raises:
        ValueError: a value is out of range.
    """

    vocab_size: int = MINILM_VOCAB_SIZE
    table_dim: int = 128
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 4.0
    context_length: int = 32
    output_dim: int = 256
    tokenizer_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "table_dim", "num_heads", "context_length", "output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.depth < 0 or self.tokenizer_bytes < 0 or self.mlp_ratio <= 0:
            raise ValueError(
                "depth and tokenizer_bytes must be >= 0 and mlp_ratio > 0, "
                f"got {self.depth}, {self.tokenizer_bytes} and {self.mlp_ratio}"
            )
        if self.table_dim % self.num_heads:
            raise ValueError(f"table_dim {self.table_dim} must be a multiple of num_heads {self.num_heads}")

    def build(self) -> TextTower:
        """A tower with a zero table and untrained blocks."""
        return TextTower(self)

    @classmethod
    def from_json(cls, text: str) -> TextConfig:
        """Config from what `to_json` wrote.

        Raises:
            WeightsError: `text` is not such a json.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"not a text config: {error}; got {text[:200]!r}") from error

    def to_json(self) -> str:
        """Json for the metadata key `text_config` of a weights file."""
        return json.dumps(asdict(self))


class TextAttention(nn.Module):
    """Multi-head self-attention over the valid tokens of each text."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map tokens x (B, L, D) to (B, L, D); `valid` (B, L) is true at tokens, false at padding."""
        b, length, dim = x.shape
        qkv = self.qkv(x).view(b, length, 3, self.num_heads, dim // self.num_heads)  # (B, L, 3, A, K)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, A, L, K)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])  # (B, A, L, K)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(b, length, dim))  # (B, L, D)
        return out


class TextBlock(nn.Module):
    """Pre-norm block: attention, then a GELU MLP, each added to its input."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim, hidden = config.table_dim, int(config.table_dim * config.mlp_ratio)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = TextAttention(dim, config.num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Map tokens x (B, L, D) to (B, L, D)."""
        x = x + self.attn(self.norm1(x), valid)
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class TextTower(nn.Module):
    """Embeds token ids. See the head of this file for the formula.

    The state dict holds everything, the int8 table, its scales and the tokenizer included; `TextConfig` rebuilds
    the module around it. The table is a buffer: optimisers never see it.
    """

    table: Tensor
    table_scale: Tensor
    tokenizer_json: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.table_dim
        self.register_buffer("table", torch.zeros(config.vocab_size, dim, dtype=torch.int8))
        self.register_buffer("table_scale", torch.zeros(config.vocab_size, 1, dtype=torch.float16))
        self.register_buffer("tokenizer_json", torch.zeros(config.tokenizer_bytes, dtype=torch.uint8))
        self.embed_norm = nn.LayerNorm(dim)
        self.position = nn.Parameter(torch.zeros(config.context_length, dim))
        self.blocks = nn.ModuleList([TextBlock(config) for _ in range(config.depth)])
        self.final_norm = nn.LayerNorm(dim)
        self.context_proj = nn.Linear(dim, dim, bias=False)
        self.projection = nn.Linear(dim, config.output_dim, bias=False)
        self._tokenizer: TextTokenizer | None = None
        self._initialise()

    def _initialise(self) -> None:
        self.position.data.copy_(_sine_cosine(*self.position.shape))
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.table_dim**-0.5)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.context_proj.weight)
        nn.init.orthogonal_(self.projection.weight)  # orthonormal columns: cosines of the table are kept

    @property
    def dim(self) -> int:
        """Channels E of the embeddings."""
        return self.config.output_dim

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed texts; the result is not normalised.

        Args:
            token_ids: (B, L) int64, padded at the end with any valid id.
            lengths: (B,) int64, tokens of each text, between 1 and L.

        Returns:
            (B, E) float32.

        Raises:
            ValueError: shapes do not fit, L is above `context_length`, or a length is outside 1..L.
        """
        out: Tensor = self.projection(self.pooled(token_ids, lengths))
        return out

    def pooled(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """What `forward` projects: static plus context, (B, D). Arguments and errors as `forward`."""
        self._check(token_ids, lengths)
        length = token_ids.shape[1]
        valid = torch.arange(length, device=token_ids.device) < lengths[:, None]  # (B, L)
        rows = self.table[token_ids].to(self.position.dtype)  # (B, L, D)
        weight = (valid / lengths[:, None]).to(rows.dtype)[..., None]  # (B, L, 1), sums to 1 over L
        static = (rows * self.table_scale[token_ids].to(rows.dtype) * weight).sum(1)  # (B, D)
        x = self.embed_norm(rows) + self.position[:length]
        for block in self.blocks:
            x = block(x, valid)
        context: Tensor = self.context_proj((self.final_norm(x) * weight).sum(1))  # (B, D)
        return static + context

    def _check(self, token_ids: Tensor, lengths: Tensor) -> None:
        if token_ids.ndim != 2 or lengths.shape != token_ids.shape[:1]:
            raise ValueError(
                "token_ids must be (B, L) and lengths (B,), "
                f"got {tuple(token_ids.shape)} and {tuple(lengths.shape)}; TextTower.tokenize makes both"
            )
        length = token_ids.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"texts may have at most {self.config.context_length} tokens, got {length}; TextTower.tokenize cuts"
            )
        if lengths.numel() and (int(lengths.min()) < 1 or int(lengths.max()) > length):
            raise ValueError(f"lengths must be between 1 and {length}, got {lengths.tolist()}")

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that travels with the weights.

        Raises:
            WeightsError: the tower carries none.
        """
        if self._tokenizer is None:
            if not self.tokenizer_json.numel():
                raise WeightsError("this text tower carries no tokenizer; load one with TextTower.from_file")
            self._tokenizer = TextTokenizer(self.tokenizer_json.cpu().numpy().tobytes(), self.config.context_length)
        return self._tokenizer

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (B, L) int64 and lengths (B,) int64 on the tower's device, ready for `forward`."""
        ids, lengths = self.tokenizer.tokenize(texts)
        device = self.position.device
        return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)

    @torch.no_grad()
    def set_table(self, rows: Tensor) -> None:
        """Store float rows (V, D) as int8 with one float16 scale each; what is lost is at most half a scale.

        Raises:
            ValueError: the shape is not that of the table.
        """
        if rows.shape != self.table.shape:
            raise ValueError(f"rows must be {tuple(self.table.shape)}, got {tuple(rows.shape)}")
        scale = (rows.abs().amax(1, keepdim=True) / 127).half()  # (V, 1)
        steps = rows / scale.float().where(scale > 0, 1.0)  # (V, D)
        self.table.copy_(steps.round().clamp(-127, 127))
        self.table_scale.copy_(scale)

    @classmethod
    def from_file(cls, path: str | Path = DISTILLED, prefix: str = "text.", output_dim: int | None = None) -> TextTower:
        """Load a tower from a `.safetensors` file; by default the distilled one that comes with the source.

        Args:
            path: weights file; its metadata key `text_config` holds the config as json.
            prefix: what names of the tower's tensors start with in the file.
            output_dim: channels E wanted. Where it differs from the file's, the projection is not the file's but
                a new one that keeps cosines.

        Raises:
            WeightsError: the file is missing or damaged, or its tensors do not fit the config.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                state = {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            hint = "; it comes with the source, not with the installed package: clone it" if path == DISTILLED else ""
            raise WeightsError(f"cannot read text weights from {path}: {error}{hint}") from error
        if "text_config" not in metadata:
            raise WeightsError(
                f"{path} has no text tower: metadata key 'text_config' is missing, got {sorted(metadata)}"
            )
        config = TextConfig.from_json(metadata["text_config"])
        if output_dim is not None and output_dim != config.output_dim:
            config = TextConfig(**{**asdict(config), "output_dim": output_dim})
            state["projection.weight"] = config.build().projection.weight.detach()
        tower = config.build()
        try:
            tower.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"text tensors of {path} (prefix {prefix!r}) do not fit its config: {error}") from error
        return tower


def _sine_cosine(length: int, dim: int) -> Tensor:
    """Position codes (L, D), periods 4 to 400 tokens. Order is learned far sooner from these than from noise."""
    frequency = 1.6 * 100.0 ** -torch.linspace(0, 1, (dim + 1) // 2)  # (D/2,) radians per token
    angle = torch.arange(length)[:, None] * frequency  # (L, D/2)
    return 0.7 * torch.cat([angle.sin(), angle.cos()], dim=1)[:, :dim]
