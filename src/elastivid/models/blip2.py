"""BLIP-2: a frozen image tower and a frozen language model, and a Q-Former that learns to stand between them.

Paper: "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image Encoders and Large Language Models",
arXiv 2301.12597.

    stage 1 (`Blip2Stage1`): contrast + matching + writing, without a language model
        similarity(image, text) = max over queries of cosine(W_v query, W_t [CLS])
        match(image, text)      = mean over queries of W_m query, queries and text seeing each other
        next word               = softmax(E transform(word)), a word seeing all queries and the words before it
    stage 2 (`Blip2`):  language model([W query_1 ... W query_K; prompt; answer])

Only the Q-Former, the norm before it and the projections learn; gradients of stage 2 pass through the language model,
which comes from transformers (extra `hf`) and is handed in.

Where we depart from the released code: masked places get no attention at all instead of a logit of -10000, and batches
of one work. Video: every frame passes by itself and prompts stand in order of time, as in InstructBLIP, or frames are
streamed through a memory (`elastivid.memory`).

Cost of an image: the tower's 12 N D^2 + 2 N^2 D per block, and the Q-Former's (see there). The language model's
sequence grows by K, whatever the image.

Letters: B batch, T frames, H W pixels, N image tokens, C their channels, K queries, L words, D channels of the
Q-Former, E channels of the shared space, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.errors import MissingExtraError, PointError, WeightsError
from elastivid.core.files import read_json
from elastivid.layers.elastic import merge_heads, split_heads
from elastivid.losses.image_text import (
    IGNORED,
    contrast,
    negative_weights,
    query_similarity,
    shared_targets,
    writing,
)
from elastivid.memory.base import VideoMemory
from elastivid.models import qformer
from elastivid.models.qformer import QFormerConfig


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of the image tower (EVA-CLIP's ViT-g by default, without its last block).

    Args:
        image_size: height and width in pixels.
        patch_size: side of a patch.
        embed_dim, depth, num_heads, hidden_dim: channels, blocks, heads, hidden channels of an MLP.
        norm_eps: of the norms inside; `final_eps` of the norm behind, which learns.
    """

    image_size: tuple[int, int] = (224, 224)
    patch_size: int = 14
    embed_dim: int = 1408
    depth: int = 39
    num_heads: int = 16
    hidden_dim: int = 6144
    norm_eps: float = 1e-6
    final_eps: float = 1e-5

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> TowerConfig:
        """Our config for a `Blip2VisionConfig` of transformers.

        Raises:
            WeightsError: an activation other than GELU, or no biases of queries and values.
        """
        if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
            raise WeightsError(f"the image tower must have gelu and qkv_bias, got {config}")
        return cls(
            image_size=(config["image_size"], config["image_size"]),
            patch_size=config["patch_size"],
            embed_dim=config["hidden_size"],
            depth=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            hidden_dim=config["intermediate_size"],
            norm_eps=config["layer_norm_eps"],
            final_eps=config["layer_norm_eps"],
        )


class TowerBlock(nn.Module):
    """Pre-norm block: attention, then a GELU MLP, each added to its input."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.head_dim = dim // config.num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps), nn.LayerNorm(dim, eps=config.norm_eps)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, config.hidden_dim), nn.Linear(config.hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, N, C) to (B, N, C)."""
        q, k, v = (split_heads(y, self.head_dim) for y in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class ImageTower(nn.Module):
    """ViT with a class token and learned positions; no norm behind the last block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.config = config
        dim, p = config.embed_dim, config.patch_size
        self.patches = nn.Conv2d(3, dim, p, stride=p)
        places = 1 + (config.image_size[0] // p) * (config.image_size[1] // p)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, places, dim))
        self.blocks = nn.ModuleList(TowerBlock(config) for _ in range(config.depth))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of images (B, 3, H, W), the class token first.

        Raises:
            PointError: the images have another size.
        """
        if tuple(images.shape[-2:]) != tuple(self.config.image_size):
            raise PointError(f"images must be {self.config.image_size} pixels, got {tuple(images.shape[-2:])}")
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h*w, C)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return x


class Seeing(nn.Module):
    """Image tower, the norm behind it, and a Q-Former: what both stages and InstructBLIP share."""

    def __init__(self, tower: TowerConfig, reader: QFormerConfig) -> None:
        super().__init__()
        self.tower = ImageTower(tower)
        self.norm = nn.LayerNorm(tower.embed_dim, eps=tower.final_eps)
        self.qformer = reader.build()

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised image tokens (B, N, C) of images (B, 3, H, W), or (B, T, N, C) of frames (B, T, 3, H, W)."""
        if images.ndim == 5:
            flat: Tensor = self.norm(self.tower(images.flatten(0, 1)))  # (B*T, N, C)
            return flat.unflatten(0, images.shape[:2])
        out: Tensor = self.norm(self.tower(images))
        return out

    def train(self, mode: bool = True) -> Seeing:
        """A frozen tower stays in evaluation mode."""
        super().train(mode)
        if not any(p.requires_grad for p in self.tower.parameters()):
            self.tower.eval()
        return self

    def freeze_tower(self) -> None:
        """Leave the tower out of training; its norm goes on learning."""
        self.tower.requires_grad_(False).eval()


@dataclass(frozen=True)
class Stage1Config:
    """Sizes of a `Blip2Stage1`; `embed_dim` is E, `begin_id` the word that writing starts with, 0 is padding."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed_dim: int = 256
    begin_id: int = 30_522

    def build(self) -> Blip2Stage1:
        """An untrained model of these sizes."""
        return Blip2Stage1(self)


class Blip2Stage1(nn.Module):
    """Q-Former above a frozen image tower, with the heads of stage 1."""

    def __init__(self, config: Stage1Config) -> None:
        super().__init__()
        self.config = config
        dim = config.qformer.embed_dim
        self.seeing = Seeing(config.tower, config.qformer)
        self.vision_proj = nn.Linear(dim, config.embed_dim)
        self.text_proj = nn.Linear(dim, config.embed_dim)
        self.match_head = nn.Linear(dim, 2)
        self.write_fc, self.write_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-12)
        self.write_bias = nn.Parameter(torch.zeros(config.qformer.vocab_size))
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.seeing.freeze_tower()

    def images(self, tokens: Tensor) -> Tensor:
        """Unit vectors of every query (B, K, E) from image tokens (B, N, C)."""
        return F.normalize(self.vision_proj(self.seeing.qformer(tokens).queries), dim=-1)

    def texts(self, ids: Tensor, valid: Tensor) -> Tensor:
        """Unit vectors (B, E) of texts by their first token, [CLS]."""
        out = self.seeing.qformer(text=self.seeing.qformer.embed_text(ids), text_valid=valid).text
        assert out is not None
        return F.normalize(self.text_proj(out[:, 0]), dim=-1)

    def match_logits(self, tokens: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, K, 2) of "does not match" and "matches", for each query."""
        reader = self.seeing.qformer
        out: Tensor = self.match_head(reader(tokens, text=reader.embed_text(ids), text_valid=valid).queries)
        return out

    def word_logits(self, tokens: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        """Logits (B, L, V) of the word after each word; the first is replaced by the one that writing starts with."""
        reader = self.seeing.qformer
        begun = torch.cat([torch.full_like(ids[:, :1], self.config.begin_id), ids[:, 1:]], dim=1)
        seen = reader(tokens, text=reader.embed_text(begun), text_valid=valid, mask="multimodal_causal")
        assert reader.words is not None
        hidden = self.write_norm(F.gelu(self.write_fc(seen.text)))  # (B, L, D)
        return F.linear(hidden, reader.words.weight, self.write_bias)

    def losses(
        self,
        images: Tensor,
        ids: Tensor,
        valid: Tensor,
        *,
        image_ids: Tensor | None = None,
        negatives: tuple[Tensor, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The three losses of a batch; training minimises their sum.

        Args:
            images: (B, 3, H, W).
            ids, valid: texts (B, L), false for padding.
            image_ids: (B,) where several texts may have the same image.
            negatives: for each text an image and for each image a text that do not belong to it, int64 (B,) each;
                `None` draws hard ones.
            generator: of that draw.

        Returns:
            "contrast", "match" and "write".
        """
        tokens = self.seeing.tokens(images)
        similarity = query_similarity(self.images(tokens), self.texts(ids, valid))  # (B, B)
        targets = shared_targets(image_ids, len(ids)).to(similarity.device)
        if negatives is None:
            with torch.no_grad():
                of_text = negative_weights(similarity.T, self.temperature, image_ids)
                of_image = negative_weights(similarity, self.temperature, image_ids)
                negatives = tuple(torch.multinomial(w, 1, generator=generator)[:, 0] for w in (of_text, of_image))  # type: ignore[assignment]
        assert negatives is not None
        other_image, other_text = negatives
        logits = self.match_logits(
            torch.cat([tokens, tokens[other_image], tokens]),  # (3B, N, C): true pairs, then two kinds of false ones
            torch.cat([ids, ids, ids[other_text]]),
            torch.cat([valid, valid, valid[other_text]]),
        ).mean(dim=1)  # (3B, 2)
        truth = (torch.arange(len(logits), device=logits.device) < len(ids)).long()
        words = ids.masked_fill(~valid.bool(), IGNORED)
        return {
            "contrast": contrast(similarity, self.temperature, targets),
            "match": F.cross_entropy(logits, truth),
            "write": writing(self.word_logits(tokens, ids, valid), words),
        }


class Speaking(nn.Module):
    """A language model that takes soft prompts in front of its words, and the projection that makes them.

    Args:
        dim: channels of a query.
        language: a causal or an encoder-decoder model of transformers, frozen here.
    """

    def __init__(self, dim: int, language: nn.Module) -> None:
        super().__init__()
        self.language = language.requires_grad_(False).eval()
        self.proj = nn.Linear(dim, language.get_input_embeddings().embedding_dim)  # type: ignore[operator]

    def inputs(self, queries: Tensor, ids: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """Embeddings (B, K + L, .) of projected queries (B, K, D) before words (B, L), and who of them counts."""
        words = self.language.get_input_embeddings()(ids)  # type: ignore[operator]
        prompts = self.proj(queries).to(words.dtype)
        ones = valid.new_ones(len(valid), prompts.shape[1])
        return {
            "inputs_embeds": torch.cat([prompts, words], dim=1),
            "attention_mask": torch.cat([ones, valid], dim=1).long(),
        }

    def forward(self, queries: Tensor, ids: Tensor, valid: Tensor, labels: Tensor | None = None) -> Any:
        """What the language model returns, with `loss` where labels are given.

        Args:
            queries: (B, K, D).
            ids, valid: prompt, and for a causal model the answer behind it, (B, L).
            labels: causal: (B, L), `IGNORED` where nothing is to be learned; encoder-decoder: the answer.
        """
        given = self.inputs(queries, ids, valid)
        if labels is not None and not self.language.config.is_encoder_decoder:  # type: ignore[union-attr]
            labels = torch.cat([labels.new_full((len(labels), queries.shape[1]), IGNORED), labels], dim=1)
        return self.language(**given, labels=labels)

    @torch.no_grad()
    def generate(self, queries: Tensor, ids: Tensor, valid: Tensor, **how: Any) -> Tensor:
        """Words that go on from the prompt; `how` is what `generate` of transformers takes."""
        out: Tensor = self.language.generate(**self.inputs(queries, ids, valid), **how)  # type: ignore[operator]
        return out

    def train(self, mode: bool = True) -> Speaking:
        """The frozen language model stays in evaluation mode."""
        super().train(mode)
        self.language.eval()
        return self


@dataclass(frozen=True)
class Blip2Config:
    """Sizes of the parts of stage 2 that are ours; the language model is handed to `build`."""

    tower: TowerConfig = field(default_factory=TowerConfig)
    qformer: QFormerConfig = field(default_factory=lambda: QFormerConfig(vocab_size=0, takes_text=False))

    def build(self, language: nn.Module) -> Blip2:
        """A model around `language`."""
        return Blip2(self, language)

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> Blip2Config:
        """Our config for a `Blip2Config` of transformers, as a dict."""
        reader = QFormerConfig.from_reference(
            config["qformer_config"], config["num_query_tokens"], takes_text=False, words=False
        )
        return cls(TowerConfig.from_reference(config["vision_config"]), reader)


class Blip2(nn.Module):
    """Stage 2: images as soft prompts of a frozen language model."""

    def __init__(self, config: Blip2Config, language: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.seeing = Seeing(config.tower, config.qformer)
        self.speaking = Speaking(config.qformer.embed_dim, language)
        self.seeing.freeze_tower()

    def queries(self, images: Tensor) -> Tensor:
        """Query outputs (B, K, D) of images (B, 3, H, W), or (B, T*K, D) of frames (B, T, 3, H, W) in order."""
        tokens = self.seeing.tokens(images)
        if tokens.ndim == 3:
            return self.seeing.qformer(tokens).queries
        out = self.seeing.qformer(tokens.flatten(0, 1)).queries  # (B*T, K, D)
        return out.unflatten(0, tokens.shape[:2]).flatten(1, 2)  # (B, T*K, D)

    def streamed(self, frames: Tensor, seconds: Tensor, memory: VideoMemory) -> tuple[Tensor, VideoMemory]:
        """Query outputs (B, K, D) after frames (B, T, 3, H, W) at times (B, T), and the memory then."""
        tokens = self.seeing.tokens(frames)  # (B, T, N, C)
        out = self.seeing.qformer.stream(tokens, seconds[:, :, None].expand(tokens.shape[:3]), memory)
        assert out.queries is not None
        assert out.memory is not None
        return out.queries, out.memory

    def forward(self, images: Tensor, ids: Tensor, valid: Tensor, labels: Tensor | None = None) -> Any:
        """See `Speaking.forward`."""
        return self.speaking(self.queries(images), ids, valid, labels)

    def generate(self, images: Tensor, ids: Tensor, valid: Tensor, **how: Any) -> Tensor:
        """See `Speaking.generate`."""
        return self.speaking.generate(self.queries(images), ids, valid, **how)


PRESETS = {
    "base": Stage1Config(),
    "tiny": Stage1Config(
        TowerConfig((28, 28), 14, 32, 2, 4, 80), QFormerConfig(50, 24, 48, 4, 4, 80, 32, 6, 2), 20, begin_id=2
    ),
}

_TOWER = (
    ("patch_embed.proj.", "patches."),
    ("pos_embed", "positions"),
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "positions"),
    ("embeddings.patch_embedding.", "patches."),
    ("encoder.layers.", "blocks."),
    (".attn.qkv.", ".qkv."),
    (".attn.proj.", ".proj."),
    (".self_attn.qkv.", ".qkv."),
    (".self_attn.projection.", ".proj."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".mlp.", "."),
)
_HEADS = {
    "ln_vision.": "seeing.norm.",
    "vision_model.post_layernorm.": "seeing.norm.",
    "vision_proj.": "vision_proj.",
    "vision_projection.": "vision_proj.",
    "text_proj.": "text_proj.",
    "text_projection.": "text_proj.",
    "itm_head.": "match_head.",
    "Qformer.cls.predictions.transform.dense.": "write_fc.",
    "Qformer.cls.predictions.transform.LayerNorm.": "write_norm.",
    "llm_proj.": "speaking.proj.",
    "opt_proj.": "speaking.proj.",
    "t5_proj.": "speaking.proj.",
    "language_projection.": "speaking.proj.",
    "language_model.": "speaking.language.",
}
_WRITTEN_TWICE = ("Qformer.cls.predictions.decoder.",)  # tied to the words and to the bias


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict for one of LAVIS or transformers: BLIP-2 of either stage, or InstructBLIP.

    Raises:
        WeightsError: a name that none of them has.
    """
    ours: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    reader: dict[str, Tensor] = {}
    for name, value in state.items():
        prefix = next((p for p in _HEADS if name.startswith(p)), None)
        if name.startswith(_WRITTEN_TWICE):
            continue
        if name == "Qformer.cls.predictions.bias":
            ours["write_bias"] = value
        elif name in ("temp", "query_tokens"):
            ours[{"temp": "temperature", "query_tokens": "seeing.qformer.queries"}[name]] = value
        elif prefix is not None:
            ours[_HEADS[prefix] + name.removeprefix(prefix)] = value
        elif name.startswith(("visual_encoder.", "vision_model.")):
            tower[name.partition(".")[2]] = value
        elif name.startswith(("Qformer.", "qformer.")):
            reader[name.partition(".")[2]] = value
        elif name.startswith("embeddings."):  # of transformers' retrieval model
            reader[name] = value
        else:
            raise WeightsError(f"no BLIP-2 has a tensor {name}; is it a checkpoint of another family?")
    ours |= {f"seeing.qformer.{k}": v for k, v in qformer.convert_reference(reader).items()}
    return ours | {f"seeing.tower.{k}": v for k, v in _convert_tower(tower).items()}


def from_folder(folder: Path) -> Blip2:
    """A stage-2 checkpoint in transformers' layout, such as that of Salesforce/blip2-opt-2.7b, with its language model.

    Args:
        folder: holds config.json and safetensors.

    Raises:
        MissingExtraError: transformers is not installed.
        WeightsError: the folder holds another kind of model, or its tensors do not fit.
    """
    config, language = read_reference(folder, ("blip-2",))
    return filled(Blip2Config.from_reference(config).build(language), folder)


def read_reference(folder: Path, kinds: tuple[str, ...]) -> tuple[dict[str, Any], nn.Module]:
    """The config of a checkpoint, whose `model_type` must be among `kinds`, and its language model without weights."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "hf") from error
    config = read_json(Path(folder) / "config.json")
    if config.get("model_type") not in kinds:
        raise WeightsError(f"{folder} holds a {config.get('model_type')}, wanted {' or '.join(kinds)}")
    whole = transformers.AutoConfig.from_pretrained(folder)
    text = whole.text_config
    several = text.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if several else transformers.AutoModelForCausalLM
    values = whole.to_dict()
    return {
        **config,
        **{k: values[k] for k in ("vision_config", "qformer_config", "num_query_tokens")},
    }, auto.from_config(text)


Model = TypeVar("Model", bound=nn.Module)


def filled(model: Model, folder: Path) -> Model:
    """`model` with the tensors of all safetensors files of a checkpoint, in evaluation mode.

    Raises:
        WeightsError: there is no such file, or tensors are missing, unknown or misshapen.
    """
    from safetensors.torch import load_file

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder} holds no safetensors; convert its pickles with transformers' save_pretrained")
    stored = convert_reference({k: v for file in files for k, v in load_file(file).items()})
    own = model.state_dict(keep_vars=True)
    misshapen = [k for k in stored.keys() & own.keys() if stored[k].shape != own[k].shape]
    given = {own[k].data_ptr() for k in stored if k in own}
    missing = [k for k in own if k not in stored and own[k].data_ptr() not in given]  # tied ones are stored once
    unknown = sorted(stored.keys() - own.keys())
    if misshapen or missing or unknown:
        raise WeightsError(f"{folder} does not fit: missing {missing}, unknown {unknown}, misshapen {misshapen}")
    model.load_state_dict(stored, strict=False)
    return model.eval()


def _convert_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the image tower; LAVIS keeps biases of queries and values apart and has none of keys."""
    converted = {}
    for name, value in state.items():
        if name.endswith("v_bias"):
            continue
        if name.endswith("q_bias"):
            value = torch.cat([value, torch.zeros_like(value), state[name.replace("q_bias", "v_bias")]])  # (3C,)
            name = name.replace("q_bias", "qkv.bias")
        for old, new in _TOWER:
            name = new + name.removeprefix(old) if name.startswith(old) else name.replace(old, new)
        converted[name] = value
    return converted
