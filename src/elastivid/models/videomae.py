"""VideoMAE and VideoMAE V2: a plain video transformer that learns by rebuilding what was hidden from it.

Papers: "VideoMAE", arXiv 2203.12602, and "VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking",
arXiv 2303.16727.

    encoder   tokens = cubes(video) + positions;  blocks;  mean over tokens, LayerNorm
    training  visible = encoder of about a tenth of the tokens;  decoder([linear(visible), mask tokens]) = pixels
              loss = mean squared error over hidden places that are predicted, pixels standardised per cube and colour

VideoMAE predicts all hidden places. V2 predicts a chosen part (half, a running cell), and only what the encoder did not
see counts; places that are both visible and predicted stand in the decoder twice, as in the released code.

Positions are a formula over the number of the token in its native grid ("flat"), a stored table that is not trained
("factorised", MVD's) or a trained one ("learned").

Where we depart:
- tokens can be selected and blocks run narrower, at any grid: positions of another grid than the native one are the
  native ones resized (as UMT does before fine-tuning), while released code computes the formula anew for the numbers of
  the new grid. `replace(config, num_frames=..., image_size=...)` gives that;
- training embeds visible cubes only; released code embeds all and drops most. The result is the same;
- biases of keys, which cancel in the softmax, are not kept.

Cost per clip of N tokens: N D 3kPP + sum over blocks of (4 + 2r) N D^2 + 2 N^2 D multiply-accumulates.

Letters: B batch, T frames, H W pixels, k frames and P pixels of a cube, N tokens, V visible, M predicted, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import UnknownNameError, WeightsError, require_known_keys
from elastivid.core.output import Output
from elastivid.core.tokens import Tokens
from elastivid.layers.elastic import layer_norm, linear
from elastivid.layers.pool import mean_token
from elastivid.layers.position import resize_table, sincos_3d
from elastivid.layers.vit import BlockStyle, through_blocks, vit_blocks
from elastivid.models.token_encoder import TokenEncoder, TokenSizes, Widths, flat_table

POSITIONS = ("flat", "factorised", "learned")
POOLS = ("mean", "first")


@dataclass(frozen=True)
class VideoMAEConfig(TokenSizes):
    """Sizes of an encoder.

    Args:
        embed_dim, depth, num_heads: width D, number of blocks, attention heads.
        patch_size, tubelet_size: pixels P and frames k of a cube.
        num_frames, image_size: the native grid; `image_size` is a side or (height, width).
        mlp_ratio: hidden channels of an MLP over D.
        positions: "flat", "factorised" or "learned"; see the module's text.
        pool: "mean" of the placed tokens, then the norm, or the "first" token after the norm.
        class_token: a learned token in front.
        layer_scale: initial value of the channel scales on both branches; 0 for none.
        cosine: cosine attention with a learned sharpness.
        eps, head_eps: of the norms in the blocks and of the one behind them.
        drop_path: probability of skipping the last block in training, linear in depth.
        num_classes: classes of the classifier; 0 for none.
        widths: channels of each block for a model that holds only the first ones (`at` makes it); empty for all.

    Raises:
        ValueError, PointError: sizes contradict each other.
        UnknownNameError: there is no such kind of positions or pool.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    tubelet_size: int = 2
    num_frames: int = 16
    image_size: int | tuple[int, int] = 224
    mlp_ratio: float = 4.0
    positions: str = "flat"
    pool: str = "mean"
    class_token: bool = False
    layer_scale: float = 0.0
    cosine: bool = False
    eps: float = 1e-6
    head_eps: float = 1e-6
    drop_path: float = 0.0
    num_classes: int = 0
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.check_sizes()
        for name, allowed in (("positions", POSITIONS), ("pool", POOLS)):
            if getattr(self, name) not in allowed:
                raise UnknownNameError(name, getattr(self, name), allowed)

    @property
    def style(self) -> BlockStyle:
        """What its blocks are like."""
        return BlockStyle(self.mlp_ratio, self.eps, self.layer_scale, self.cosine)

    def build(self) -> VideoMAE:
        """An untrained model of these sizes."""
        return VideoMAE(self)

    def cost(self, *, frames: int, size: int, tokens: int | None = None, width: Widths = None) -> Cost:
        """Closed-form cost of one clip in float32: `frames` squares of `size` pixels, `tokens` of them kept.

        Raises:
            PointError: `width` cannot be.
        """
        macs = self.token_macs(frames, size, tokens, width, int(self.class_token))
        macs += linear_macs(1, self.widths_at(width)[-1], self.num_classes)
        if self.positions != "flat":  # the formula's table is resized once and kept
            macs += self.table_macs(frames, size, width)
        return self.cost_of(macs, frames, size, tokens, width)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> VideoMAEConfig:
        """Our config for transformers' `VideoMAEConfig` or the arguments of the released fine-tuning model.

        Raises:
            WeightsError: a key that we do not know, or a value that we do not offer.
        """
        if "hidden_size" in config:
            return cls(**_from_transformers(config))
        return cls(**_from_released(config))


class VideoMAE(TokenEncoder):
    """The encoder; see the module's text. Build it from a `VideoMAEConfig` or `PRESETS`."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        first_width, last_width = config.full_widths[0], config.full_widths[-1]
        self.cube_proj = nn.Linear(config.cube_values, first_width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, first_width)) if config.class_token else None
        self.positions = None
        if config.positions == "factorised":
            self.positions = nn.Parameter(sincos_3d(config.table_grid, config.embed_dim), requires_grad=False)
        elif config.positions == "learned":
            self.positions = nn.Parameter(flat_table(config.table_grid, config.table_grid, config.embed_dim).clone())
        if self.positions is not None:
            self.positions.data = self.positions.data[:, :first_width].contiguous()  # (N, d)
        self.blocks = vit_blocks(config.full_widths, config.head_dim, config.style, config.drop_path)
        self.norm = nn.LayerNorm(last_width, eps=config.head_eps)
        self.classifier = nn.Linear(last_width, config.num_classes) if config.num_classes else None
        initialise(self)

    def embedded(self, values: Tensor, width: int) -> Tensor:
        """Flattened cubes (B, M, 3kPP) to tokens (B, M, width)."""
        return linear(values, self.cube_proj, width)

    def table(self, grid: tuple[int, int, int], width: int) -> Tensor:
        """Positions (N, width) of a grid."""
        native, like = self.config.table_grid, self.cube_proj.weight
        if self.positions is None:
            return flat_table(native, grid, self.config.embed_dim)[:, :width].to(like)
        return resize_table(self.positions[:, :width].float(), native, grid).to(like.dtype)

    def prefix(self, width: int) -> Tensor | None:
        """The class token (1, 1, width), where there is one."""
        return None if self.cls_token is None else self.cls_token[..., :width]

    def read(self, tokens: Tokens) -> Output:
        """Pooled tokens through the norm, and class scores."""
        if self.config.pool == "mean":
            sizes, prefix = tokens.key_sizes, tokens.num_prefix
            pooled = mean_token(tokens.x[:, prefix:], None if sizes is None else sizes[:, prefix:])[:, 0]  # (B, D)
        else:
            pooled = tokens.x[:, 0]
        embedding = layer_norm(pooled, self.norm)
        logits = None if self.classifier is None else linear(embedding, self.classifier)
        return Output(embedding=embedding, logits=logits, tokens=tokens)


def initialise(model: nn.Module) -> None:
    """Xavier-uniform matrices, zero biases, truncated normal (0.02) class and mask tokens, as the released code."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] in ("cls_token", "mask_token"):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    Args:
        embed_dim, depth, num_heads: width, blocks, heads.
        output_dim: numbers predicted per place; 0 for the values of a cube.
        project_bias: whether the layer from the encoder's width to this one has a bias.
        positions: "flat" or "factorised".
        eps: of the norm before the last layer.
    """

    embed_dim: int = 384
    depth: int = 4
    num_heads: int = 6
    output_dim: int = 0
    project_bias: bool = False
    positions: str = "flat"
    eps: float = 1e-6


class MaskedDecoder(nn.Module):
    """From visible tokens to a prediction at chosen places.

    Args:
        encoder: sizes of the encoder whose tokens come in; gives grid, width and the style of the blocks.
        config: sizes of its own.
    """

    def __init__(self, encoder: VideoMAEConfig, config: DecoderConfig) -> None:
        super().__init__()
        self.grid = encoder.table_grid
        self.config = config
        self.project = nn.Linear(encoder.full_widths[-1], config.embed_dim, bias=config.project_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.positions = None
        if config.positions == "factorised":
            self.positions = nn.Parameter(sincos_3d(self.grid, config.embed_dim), requires_grad=False)
        widths = (config.embed_dim,) * config.depth
        self.blocks = vit_blocks(widths, config.embed_dim // config.num_heads, encoder.style)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.eps)
        self.head = nn.Linear(config.embed_dim, config.output_dim or encoder.cube_values)

    def forward(self, tokens: Tensor, visible: Tensor, predicted: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Predict.

        Args:
            tokens: (B, P+V, D) of the encoder after its norm; prefix tokens have no position.
            visible: (B, V) places of the others.
            predicted: (B, M) places to predict.
            grid: what the places are numbers in.

        Returns:
            (B, M, output_dim).
        """
        x = self.project(tokens)  # (B, P+V, d)
        native, d = self.grid, self.config.embed_dim
        if self.positions is None:
            table = flat_table(native, grid, d).to(x)
        else:
            table = resize_table(self.positions.float(), native, grid).to(x.dtype)
        front = x.shape[1] - visible.shape[1]
        x = torch.cat([x[:, :front], x[:, front:] + table[visible], self.mask_token + table[predicted]], dim=1)
        x, _ = through_blocks(self.blocks, x)  # (B, P+V+M, d)
        prediction: Tensor = self.head(self.norm(x[:, -predicted.shape[1] :]))
        return prediction

    def macs(self, visible: int, predicted: int, encoder_dim: int, mlp_ratio: float) -> int:
        """Multiply-accumulates of one clip."""
        d, length = self.config.embed_dim, visible + predicted
        macs = linear_macs(visible, encoder_dim, d) + linear_macs(predicted, d, self.head.out_features)
        return macs + self.config.depth * block_macs(length, d, mlp_ratio)


@dataclass(frozen=True)
class Rebuilt:
    """What a masked autoencoder says of a batch.

    Args:
        prediction: (B, M, values).
        places: (B, M), grid cells it is for.
        counted: (B, M) bool, false where the encoder saw the place: such predictions do not count.
        tokens: visible tokens (B, P+V, D) after the encoder's norm.
    """

    prediction: Tensor
    places: Tensor
    counted: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class PretrainingConfig:
    """An encoder and the decoder it is trained with.

    Args:
        encoder, decoder: their sizes.
    """

    encoder: VideoMAEConfig = VideoMAEConfig()
    decoder: DecoderConfig = DecoderConfig()

    def build(self) -> MaskedAutoencoder:
        """An untrained model of these sizes."""
        return MaskedAutoencoder(self)

    def cost(self, *, visible: int, predicted: int) -> Cost:
        """Closed-form cost of the forward pass of one clip; hidden cubes are not embedded."""
        encoder, seen = self.encoder, visible + int(self.encoder.class_token)
        with torch.device("meta"):
            decoder = MaskedDecoder(encoder, self.decoder)
        macs = decoder.macs(seen, predicted, encoder.embed_dim, encoder.mlp_ratio)
        return Cost(macs=self.encoder_macs(visible) + macs)

    def encoder_macs(self, visible: int) -> int:
        """Multiply-accumulates of the encoder on `visible` tokens."""
        encoder = self.encoder
        macs = linear_macs(visible, encoder.cube_values, encoder.embed_dim)
        seen = visible + int(encoder.class_token)
        return macs + encoder.depth * block_macs(seen, encoder.embed_dim, encoder.mlp_ratio)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> PretrainingConfig:
        """Our config for transformers' `VideoMAEConfig` or the arguments of the released pre-training model.

        Raises:
            WeightsError: a key that we do not know, or a value that we do not offer.
        """
        if "hidden_size" in config:
            encoder = VideoMAEConfig(**_from_transformers(config))
            decoder = DecoderConfig(
                config["decoder_hidden_size"],
                config["decoder_num_hidden_layers"],
                config["decoder_num_attention_heads"],
                eps=1e-5,
            )
            return cls(replace(encoder, head_eps=encoder.eps), decoder)
        names = {"decoder_embed_dim": "embed_dim", "decoder_depth": "depth", "decoder_num_heads": "num_heads"}
        decoder = DecoderConfig(**{names[k]: v for k, v in config.items() if k in names})
        rest = {k: v for k, v in config.items() if k not in names and k != "decoder_num_classes"}
        own = VideoMAEConfig(**_from_released({k.removeprefix("encoder_"): v for k, v in rest.items()}))
        if config.get("decoder_num_classes", own.cube_values) != own.cube_values:
            raise WeightsError(f"decoder_num_classes must be {own.cube_values}, got {config['decoder_num_classes']}")
        return cls(own, decoder)


class MaskedAutoencoder(nn.Module):
    """Encoder of what is visible, decoder of what is asked; see the module's text."""

    def __init__(self, config: PretrainingConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.decoder = MaskedDecoder(config.encoder, config.decoder)
        initialise(self.decoder)

    def forward(self, video: Tensor, visible: Tensor, predicted: Tensor | None = None) -> Rebuilt:
        """Predict cubes from the visible ones.

        Args:
            video: (B, T, 3, H, W).
            visible: (B, V) grid cells that the encoder sees, ascending; a selector's `select` gives them.
            predicted: (B, M) cells to predict, ascending; `None` is all that are not visible.

        Raises:
            ValueError: nothing is left to predict.
        """
        tokens, grid = visible_tokens(self.encoder, video, visible)
        count = grid[0] * grid[1] * grid[2]
        places = complement(visible, count) if predicted is None else predicted
        if places.shape[1] == 0:
            raise ValueError(f"all {count} tokens are visible, nothing is left to predict; keep fewer of them")
        prediction = self.decoder(tokens, visible, places, grid)
        return Rebuilt(prediction, places, ~as_mask(visible, count).gather(1, places), tokens)


def visible_tokens(encoder: VideoMAE, video: Tensor, visible: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Tokens (B, P+V, D) of the visible cells (B, V) after the encoder's norm, and the grid."""
    tokens, _ = encoder.transform_tokens(encoder.placed(encoder.embed_at(video, visible)))
    return encoder.norm(tokens.x), tokens.grid


def as_mask(places: Tensor, count: int) -> Tensor:
    """Cells (B, V) as a mask (B, `count`), true at them."""
    mask = torch.zeros(len(places), count, dtype=torch.bool, device=places.device)
    return mask.scatter(1, places, True)


def complement(places: Tensor, count: int) -> Tensor:
    """The other cells (B, `count` - V), ascending."""
    return (~as_mask(places, count)).nonzero()[:, 1].reshape(len(places), -1)


PRESETS = {
    "tiny": VideoMAEConfig(
        embed_dim=48, depth=3, num_heads=4, patch_size=14, num_frames=8, image_size=70, num_classes=5
    ),
    "small": VideoMAEConfig(embed_dim=384, num_heads=6),
    "base": VideoMAEConfig(),
    "large": VideoMAEConfig(embed_dim=1024, depth=24, num_heads=16),
    "huge": VideoMAEConfig(embed_dim=1280, depth=32, num_heads=16),
    "giant": VideoMAEConfig(embed_dim=1408, depth=40, num_heads=16, patch_size=14, mlp_ratio=48 / 11),
}

PRETRAINING = {  # decoders of the released V2 code; VideoMAE's own huge decoder has 640 channels
    "tiny": PretrainingConfig(replace(PRESETS["tiny"], num_classes=0), DecoderConfig(24, 2, 3)),
    "small": PretrainingConfig(PRESETS["small"], DecoderConfig(192, 4, 3)),
    "base": PretrainingConfig(PRESETS["base"], DecoderConfig(384, 4, 6)),
    "large": PretrainingConfig(PRESETS["large"], DecoderConfig(512, 4, 8)),
    "huge": PretrainingConfig(PRESETS["huge"], DecoderConfig(512, 4, 8)),
    "giant": PretrainingConfig(PRESETS["giant"], DecoderConfig(512, 4, 8)),
}


_RELEASED = {
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "all_frames": "num_frames",
    "img_size": "image_size",
    "mlp_ratio": "mlp_ratio",
    "init_values": "layer_scale",
    "cos_attn": "cosine",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path",
}
_TRANSFORMERS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "num_frames": "num_frames",
    "layer_norm_eps": "eps",
}
_FIXED = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True, "qv_bias": True}


def _require_fixed(config: Mapping[str, Any]) -> None:
    for key, wanted in _FIXED.items():
        if config.get(key, wanted) != wanted:
            raise WeightsError(f"VideoMAE reference config has {key}={config[key]!r}; only {wanted!r} is offered")


def _from_released(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VideoMAEConfig` for those of the released code."""
    require_known_keys("VideoMAE reference config", config, _RELEASED, _FIXED, _RELEASED_REST)
    _require_fixed(config)
    ours = {_RELEASED[key]: value for key, value in config.items() if key in _RELEASED}
    image = ours.get("image_size")
    if isinstance(image, list | tuple):
        ours["image_size"] = image[0] if len(set(image)) == 1 else tuple(image)
    ours["pool"] = "mean" if config.get("use_mean_pooling", True) else "first"
    ours["positions"] = "learned" if config.get("use_learnable_pos_emb", False) else "flat"
    return ours


_RELEASED_REST = {"use_mean_pooling", "use_learnable_pos_emb", "init_scale"}


def _from_transformers(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `VideoMAEConfig` for a transformers config; its many keys about files and training do not matter."""
    _require_fixed(config)
    ours = {_TRANSFORMERS[key]: value for key, value in config.items() if key in _TRANSFORMERS}
    image = config.get("image_size", 224)
    ours["image_size"] = image if isinstance(image, int) else tuple(image)
    ours["mlp_ratio"] = config.get("intermediate_size", 3072) / ours["embed_dim"]
    ours["pool"] = "mean" if config.get("use_mean_pooling", True) else "first"
    ours["head_eps"] = 1e-5 if ours["pool"] == "mean" else config.get("layer_norm_eps", 1e-12)
    ours["num_classes"] = len(config.get("id2label") or ()) if "VideoClassification" in _task(config) else 0
    return ours


def _task(config: Mapping[str, Any]) -> str:
    return (config.get("architectures") or [""])[0]


_RENAMED = {  # in this order: names of transformers, then of the released code
    "videomae.": "",
    "encoder.layer.": "blocks.",
    "decoder.decoder_layers.": "decoder.blocks.",
    "embeddings.patch_embeddings.projection.": "cube_proj.",
    "attention.attention.": "attn.",
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
    "layernorm.": "norm.",
    "patch_embed.proj.": "cube_proj.",
    "pos_embed": "positions",
    "attn.scale": "attn.sharpness",
    "gamma_1": "scale1",
    "gamma_2": "scale2",
    "fc_norm.": "norm.",
}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of released code or transformers under our names, joined and reshaped; prefixes stay."""
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = name
        for old, new in _RENAMED.items():
            ours = ours.replace(old, new)
        if ours.endswith("cube_proj.weight"):
            value = value.flatten(1)  # (D, 3, k, P, P) -> (D, 3*k*P*P)
        elif ours.endswith("positions"):
            value = value[0]  # (1, N, D) -> (N, D)
        elif ours.endswith("sharpness"):
            value = value.flatten()  # (A, 1, 1) -> (A,)
        elif ours.endswith("qkv.bias"):  # of keys: cancels in the softmax
            stem, third = ours.removesuffix("qkv.bias"), len(value) // 3
            converted[stem + "q_bias"], converted[stem + "v_bias"] = value[:third], value[2 * third :]
            continue
        converted[ours] = value
    return _joined(converted)


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate matrices of queries, keys and values (transformers) stacked into one."""
    joined = {}
    for name, value in state.items():
        stem, _, kind = name.rpartition("attn.query.")
        if kind == "weight":
            parts = [state[f"{stem}attn.{part}.weight"] for part in ("query", "key", "value")]
            joined[f"{stem}attn.qkv.weight"] = torch.cat(parts)  # 3 (D, D) -> (3*D, D)
        elif name.endswith(("attn.query.bias", "attn.value.bias")):
            joined[name.replace("query.bias", "q_bias").replace("value.bias", "v_bias")] = value
        elif ".attn.key." not in name and ".attn.value." not in name:
            joined[name] = value
    return joined


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `VideoMAE` for the released fine-tuning model or transformers' model or classifier.

    Of a pre-training model it takes the encoder. Loading it strictly reports whatever does not fit.
    """
    ours = {name.removeprefix("encoder."): value for name, value in renamed(state).items()}
    if "mask_token" in ours:
        training = ("decoder.", "encoder_to_decoder.", "to_decoder.", "mask_token", "head.", "position_embeddings")
        ours = {name: value for name, value in ours.items() if not name.startswith(training)}
    return {name.replace("head.", "classifier."): value for name, value in ours.items()}


def convert_pretraining(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of `MaskedAutoencoder` for the released or transformers' pre-training model."""
    ours = {}
    for name, value in renamed(state).items():
        if name.startswith("encoder_to_decoder."):
            name = "decoder.project." + name.removeprefix("encoder_to_decoder.")
        elif name == "mask_token":
            name = "decoder.mask_token"
        elif not name.startswith(("decoder.", "encoder.")):
            name = "encoder." + name
        ours[name] = value
    return ours
