"""AdaVid: one video encoder for many widths, its text tower, and an aggregator for long videos.

Paper: AdaVid, arXiv 2504.12513, on top of EgoVLP (arXiv 2206.01670), whose encoder is Frozen in Time's
(`models.timesformer`, attention "frozen"; arXiv 2104.00650) and whose text tower is DistilBERT (`models.distilbert`).

    clip(video) = W cls(frozen(video))            every block at a width of its own; W takes the channels there are
    text(words) = W' relu([CLS] of distilbert(words)) + b'
    long(video) = W'' cls(blocks(features of up to 16 segments + places))

At full width the clip encoder is EgoVLP's, so its checkpoints convert. Training draws a width per block and step
(`layers.elastic.sample_widths`; `decreasing=True` is the paper's *-dec* model) under EgoNCE (`losses.contrastive`); the
aggregator trains under InfoNCE against summaries while the clip encoder stays as it is.

Where we depart, or fill in what the paper leaves open: a wider block after a narrower one gets zeros appended; the
aggregator takes unit vectors of the shared space, so what an index holds can be aggregated later; it has a class token
and learned places, the first of them when there are fewer segments; its projection ends in the shared space.

Cost: that of `models.timesformer` and D E; the aggregator 12 (S+1) D^2 + 2 (S+1)^2 D per block.

Letters: B batch, T frames, H W pixels, S segments, D channels at hand, E channels of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elastivid.core.cost import Cost, block_macs, linear_macs
from elastivid.core.errors import require_known_keys
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.layers.block import initialise_linears
from elastivid.layers.elastic import ElasticSizes, first, fit_width, layer_norm, linear
from elastivid.models import distilbert, timesformer
from elastivid.models.base import DualEncoder, VideoEncoder, cut
from elastivid.models.distilbert import MINILM_VOCAB_SIZE, DistilBert, DistilBertConfig, shipped_tokenizer
from elastivid.models.timesformer import EPS, JointBlock, TimeSformer, TimeSformerConfig
from elastivid.models.towers import TwoTowers
from elastivid.video.transforms import Transform

Width = int | Sequence[int] | None


@dataclass(frozen=True)
class AdaVidConfig(TimeSformerConfig):
    """Sizes of the clip encoder: a TimeSformer, by default Frozen's for 4 frames, and channels E of the space."""

    num_frames: int = 4
    attention: str = "frozen"
    output_dim: int = 256

    def build(self) -> AdaVid:  # type: ignore[override]
        """An untrained clip encoder of these sizes."""
        return AdaVid(self)

    def cost(self, *, frames: int, size: int, tokens: int | None = None, width: Width = None) -> Cost:
        """Closed-form cost of one clip; arguments and errors as `TimeSformerConfig.cost`."""
        cost = super().cost(frames=frames, size=size, tokens=tokens, width=width)
        last, held = self.widths_at(width)[-1], self.full_widths[-1]
        return cost + Cost(macs=linear_macs(1, last, self.output_dim), parameter_bytes=4 * (held + 1) * self.output_dim)


class AdaVid(VideoEncoder):
    """The clip encoder. Its embedding lies in the shared space, not normalised."""

    supported_axes: ClassVar[frozenset[str]] = TimeSformer.supported_axes

    def __init__(self, config: AdaVidConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = TimeSformer(config)
        self.proj = nn.Linear(config.full_widths[-1], config.output_dim)
        initialise_linears(self.proj)

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Encode clips (B, T, 3, H, W); see `TimeSformer.forward`.

        Returns:
            `embedding` (B, E), not normalised; the encoder's tokens; tap "class" (B, D), what was projected.

        Raises:
            PointError, ValueError: see `TimeSformer.forward`.
        """
        out = self.encoder(video, point=point, state=state)
        return replace(out, embedding=linear(out.embedding, self.proj), taps={"class": out.embedding})


@dataclass(frozen=True)
class AdaVidDualConfig:
    """Sizes of both towers; they must end in the same number of channels.

    Args:
        video, text: the towers.
        temperature: what training divided cosines by; 0.05 in Frozen and EgoVLP, where it is not learned.

    Raises:
        ValueError: the towers end in different numbers of channels, or the temperature is not positive.
    """

    video: AdaVidConfig = field(default_factory=AdaVidConfig)
    text: DistilBertConfig = field(default_factory=DistilBertConfig)
    temperature: float = 0.05

    def __post_init__(self) -> None:
        if self.video.output_dim != self.text.output_dim:
            raise ValueError(
                f"both towers must end in the same number of channels, got video.output_dim={self.video.output_dim} "
                f"and text.output_dim={self.text.output_dim}"
            )
        if self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def dim(self) -> int:
        """Channels of the space."""
        return self.video.output_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdaVidDualConfig:
        """Config from what `dataclasses.asdict` made of one; `TypeError` or `ValueError` where it is none."""
        towers = {"video": AdaVidConfig(**values["video"]), "text": DistilBertConfig(**values["text"])}
        return cls(**{**values, **towers})

    def build(self) -> AdaVidDual:
        """Untrained towers. A text tower with BERT's vocabulary gets the tokenizer that the package ships."""
        if self.text.tokenizer_bytes or self.text.vocab_size != MINILM_VOCAB_SIZE:
            return AdaVidDual(self)
        tokenizer = shipped_tokenizer()
        model = AdaVidDual(replace(self, text=replace(self.text, tokenizer_bytes=len(tokenizer))))
        model.text.tokenizer_json.copy_(tokenizer)
        return model

    @classmethod
    def from_reference(cls, config: Mapping[str, Any]) -> AdaVidDualConfig:
        """Our config for the arguments of EgoVLP's or Frozen's model: `video`, `text` and `projection_dim`.

        Raises:
            WeightsError: a key this does not know.
        """
        known = {
            "img_size": "image_size",
            "patch_size": "patch_size",
            "embed_dim": "embed_dim",
            "depth": "depth",
            "num_heads": "num_heads",
            "num_frames": "num_frames",
            "mlp_ratio": "mlp_ratio",
        }
        require_known_keys("Frozen's reference config", config["video"], known)
        dim = config["projection_dim"]
        video = AdaVidConfig(output_dim=dim, **{known[key]: value for key, value in config["video"].items()})
        return cls(video, DistilBertConfig.from_reference(config["text"], dim))


class AdaVidDual(TwoTowers):
    """AdaVid for clips and images, DistilBERT for texts: AdaVid-EgoVLP.

    Args:
        config: sizes of both towers.
        transform: what turns frames into input; by default the middle square, as EgoVLP tests (its detour over 256
            pixels left out).
        name: address the model goes by.
    """

    supported_axes: ClassVar[frozenset[str]] = AdaVid.supported_axes
    config_class = AdaVidDualConfig
    config: AdaVidDualConfig
    video: AdaVid
    text: DistilBert

    def __init__(
        self, config: AdaVidDualConfig, transform: Transform | None = None, name: str = "adavid/egovlp"
    ) -> None:
        side = config.video.image_sides[0]
        super().__init__(config, transform or Transform(size=side, shortest_edge=side), name)
        self.video = config.video.build()
        self.text = config.text.build()

    @property
    def logit_scale(self) -> float:
        """Factor that training put on cosines."""
        return 1 / self.config.temperature


@dataclass(frozen=True)
class AdaVidAggConfig(ElasticSizes):
    """Sizes of the aggregator.

    Args:
        embed_dim, depth, num_heads: width D, number of blocks, attention heads.
        feature_dim: channels E of a segment's vector and of the result.
        num_segments: rows of the table of places: most segments of a video.
        mlp_ratio: hidden channels of an MLP over D.
        widths: channels of each block for one that holds only the first ones; empty for all.

    Raises:
        ValueError: D is not a multiple of `num_heads`, or (PointError) `widths` are not whole heads within D, or not
            one per block.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    feature_dim: int = 256
    num_segments: int = 16
    mlp_ratio: float = 4.0
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.check_widths()

    def build(self) -> AdaVidAgg:
        """An untrained aggregator of these sizes."""
        return AdaVidAgg(self)

    def cost(self, *, segments: int, width: Width = None) -> Cost:
        """Closed-form cost of one video of `segments` segments, their own encoding not counted."""
        widths = self.widths_at(width)
        macs = linear_macs(segments, self.feature_dim, widths[0])
        macs += sum(block_macs(1 + segments, dim, self.mlp_ratio) for dim in widths)
        macs += linear_macs(1, widths[-1], self.feature_dim)
        widest = (1 + segments) * max(widths) * (2 + max(self.mlp_ratio, 3.0))  # residual, input, hidden layer
        return Cost(macs=macs, parameter_bytes=4 * _agg_parameters(self), activation_bytes=int(4 * widest))


@lru_cache(maxsize=64)
def _agg_parameters(config: AdaVidAggConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AdaVidAgg(config).parameters())


class AdaVidAgg(nn.Module):
    """Many segments to one vector of their space; see the module's text."""

    supported_axes: ClassVar[frozenset[str]] = frozenset({"width"})

    def __init__(self, config: AdaVidAggConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.full_widths
        self.embed = nn.Linear(config.feature_dim, widths[0])
        self.cls_token = nn.Parameter(torch.zeros(widths[0]))
        self.positions = nn.Parameter(torch.zeros(config.num_segments, widths[0]))
        self.blocks = nn.ModuleList(JointBlock(width, config.head_dim, config.mlp_ratio) for width in widths)
        self.norm = nn.LayerNorm(widths[-1], eps=EPS)
        self.proj = nn.Linear(widths[-1], config.feature_dim)
        initialise_linears(self)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, features: Tensor, *, point: OperatingPoint | None = None) -> Output:
        """Aggregate segments.

        Args:
            features: (B, S, E) vectors of consecutive segments, S from 1 to `num_segments`.
            point: `width`, active channels of every block; `None` is all of them.

        Returns:
            `embedding` (B, E), not normalised; tap "class" (B, D), what was projected.

        Raises:
            PointError: the point names an axis other than width, or a width that cannot be.
            ValueError: `features` has the wrong shape or too many segments.
        """
        point = point or OperatingPoint()
        point.require_axes(self.supported_axes, "AdaVidAgg")
        config = self.config
        most, wanted = config.num_segments, config.feature_dim
        if features.ndim != 3 or not 1 <= features.shape[1] <= most or features.shape[2] != wanted:
            raise ValueError(
                f"features must be (B, S, {wanted}) with S from 1 to {most} segments, got "
                f"{tuple(features.shape)}; of a longer video take that many segments, evenly spaced"
            )
        widths = config.widths_at(point.width)
        d = widths[0]
        x = (
            linear(features.to(self.cls_token.dtype), self.embed, d) + self.positions[: features.shape[1], :d]
        )  # (B, S, D)
        x = torch.cat([first(self.cls_token, d).expand(len(x), 1, -1), x], dim=1)  # (B, 1+S, D)
        for block, width in zip(self.blocks, widths, strict=True):
            x = block(fit_width(x, width))
        cls = layer_norm(x[:, 0], self.norm)
        return Output(embedding=linear(cls, self.proj), taps={"class": cls})

    def at(self, point: OperatingPoint) -> AdaVidAgg:
        """An aggregator of its own that holds only what `point`'s width uses; see `VideoEncoder.at`."""
        small: AdaVidAgg = cut(self, point)
        return small


@torch.no_grad()
def segment_features(
    encoder: DualEncoder, segments: Tensor, *, point: OperatingPoint | None = None, at_once: int = 4
) -> Tensor:
    """Unit vectors (B, S, E) of segments (B, S, T, 3, H, W), without gradient: the clip encoder stays as it is.

    Args:
        encoder: any dual encoder; its `embed_clips` is used.
        segments: clips of B videos, S of each.
        point: operating point of the clip encoder.
        at_once: clips encoded together, which bounds memory and changes nothing else.

    Raises:
        ValueError: `segments` has not six dimensions, or `at_once` is below 1.
    """
    if segments.ndim != 6 or at_once < 1:
        raise ValueError(
            f"segments must be (B, S, T, 3, H, W) and at_once >= 1, got {tuple(segments.shape)}, {at_once}"
        )
    clips = segments.flatten(0, 1)  # (B*S, T, 3, H, W)
    features = torch.cat([encoder.embed_clips(part, point=point) for part in clips.split(at_once)])
    return features.unflatten(0, segments.shape[:2])  # (B*S, E) -> (B, S, E)


_TINY = AdaVidConfig(embed_dim=48, depth=3, num_heads=6, patch_size=14, image_size=70, output_dim=32)
_TINY_TEXT = DistilBertConfig(embed_dim=32, depth=2, num_heads=4, hidden_dim=64, context_length=32, output_dim=32)

PRESETS = {
    "tiny": _TINY,
    "base": AdaVidConfig(),
    "egovlp": AdaVidDualConfig(),
    "egovlp-tiny": AdaVidDualConfig(_TINY, _TINY_TEXT),
    "agg": AdaVidAggConfig(),
    "agg-tiny": AdaVidAggConfig(embed_dim=48, depth=3, num_heads=6, feature_dim=32),
}


def convert_reference(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`AdaVidDual`'s state dict for one of EgoVLP or Frozen in Time, `state_dict` of their checkpoints.

    Loading it strictly reports whatever does not fit. Those checkpoints hold no tokenizer; a table of BERT's size gets
    the one that `AdaVidDualConfig.build` gives.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        prefix, _, rest = name.removeprefix("module.").partition(".")
        parts.setdefault(prefix, {})[rest] = value
    converted = {
        f"video.encoder.{k}": v for k, v in timesformer.convert_reference(parts.pop("video_model", {})).items()
    }
    converted |= {f"text.{k}": v for k, v in distilbert.convert_reference(parts.pop("text_model", {})).items()}
    own_words = len(converted.get("text.words", ())) == MINILM_VOCAB_SIZE
    converted["text.tokenizer_json"] = shipped_tokenizer() if own_words else torch.zeros(0, dtype=torch.uint8)
    converted |= {f"video.proj.{k.partition('.')[2]}": v for k, v in parts.pop("vid_proj", {}).items()}
    converted |= {f"text.projection.{k.partition('.')[2]}": v for k, v in parts.pop("txt_proj", {}).items()}
    return converted | {f"{prefix}.{k}".rstrip("."): v for prefix, left in parts.items() for k, v in left.items()}
