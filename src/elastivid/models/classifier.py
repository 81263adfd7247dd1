"""`ClipClassifier`: a video encoder and a linear head that names what a clip shows, at any of the encoder's points.

    features = [ embedding | mean of final tokens | for some blocks: mean, spread and change of their tokens ]
    logits   = W standardised(features) + b
    change   = mean over neighbouring frames of |token - token of the same place one frame before|

With `histograms`, a second linear layer reads histograms of gradients and flow on a coarse grid of the same clip, and
the logits are the sum of the two readers' log-probabilities: few labelled clips are not enough to learn what moves
where, so the two are wrong about different clips (docs/benchmarks/actions.md). That layer is not trained with the rest
but solved for (`MotionReader.fit`): hundreds of clips are far too few for a descent on its many weights.

Early blocks know more about real pictures than the last ones of an encoder that was trained for something else, and
change says what moves: of a frozen encoder it is worth more than all the rest. Which blocks are read is part of the
config. Features are standardised with the statistics of the training batches, so that one rate fits all of them.

Costs what the encoder costs, and one product of features and classes; histograms cost time, but no products.

Letters: B clips, T frames, H W pixels, N tokens, d channels of a block, F features, G of histograms, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastivid.core.cost import Cost, linear_macs
from elastivid.core.errors import PointError
from elastivid.core.output import Output
from elastivid.core.point import OperatingPoint
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.histograms import DIRECTIONS, KINDS, clip_histograms
from elastivid.models.base import VideoEncoder
from elastivid.models.towers import hash_of_tensors
from elastivid.video.transforms import Transform


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of.

    Args:
        encoder: config of the video encoder.
        classes: names of the K classes.
        blocks: blocks whose tokens are read by their mean, spread and change, counted from 0.
        transform: what turns decoded frames into input; it travels with the weights.
        frames: frames of a clip that the head was trained on.
        histograms: parts in time, height and width whose histograms a second layer reads; () for none.

    Raises:
        ValueError: there are fewer than two classes, a name occurs twice, there is no such block, or `histograms` are
            not three parts of one or more.
    """

    encoder: Any
    classes: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    transform: Transform = field(default_factory=Transform)
    frames: int = 8
    histograms: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("classes", "blocks", "histograms"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"a classifier needs at least two classes with different names, got {self.classes}")
        depth = self.encoder.depth
        if not all(0 <= block < depth for block in self.blocks):
            raise ValueError(f"the encoder has blocks 0 to {depth - 1}, got {self.blocks}")
        if self.histograms and (len(self.histograms) != 3 or min(self.histograms) < 1):
            raise ValueError(f"histograms must be () or parts in time, height and width, got {self.histograms}")

    def build(self) -> ClipClassifier:
        """An untrained classifier."""
        return ClipClassifier(self)

    @property
    def point(self) -> OperatingPoint:
        """What is spent where nobody says otherwise: all there is."""
        return OperatingPoint()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reverses it."""
        kind = type(self.encoder)
        return {**dataclasses.asdict(self), "kind": [kind.__module__.rpartition(".")[2], kind.__name__]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierConfig:
        """The config that `to_dict` described."""
        values = dict(values)
        family, name = values.pop("kind")
        encoder = getattr(import_module(f"elastivid.models.{family}"), name)(**values.pop("encoder"))
        return cls(encoder=encoder, transform=Transform.from_dict(values.pop("transform")), **values)


class ClipClassifier(nn.Module):
    """See the module's text. Honours the axes of its encoder; a narrower point's features are padded with zeros."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: VideoEncoder = config.encoder.build()
        for block in config.blocks:
            self._blocks()[block].register_forward_hook(_keep)
        width = config.encoder.embed_dim
        self.sizes = [self._embedding_dim(), width] + [width] * (3 * len(config.blocks))
        total = sum(self.sizes)
        self.standard = nn.BatchNorm1d(total, affine=False)
        self.head = nn.Linear(total, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.motion = MotionReader(config) if config.histograms else None

    @property
    def supported_axes(self) -> frozenset[str]:
        """Axes of an operating point that the encoder honours."""
        return self.encoder.supported_axes

    @property
    def weights_id(self) -> str:
        """Hash of the tensors."""
        return hash_of_tensors(self)

    @property
    def num_features(self) -> int:
        """F."""
        return self.head.in_features

    def forward(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Output:
        """Classify clips.

        Args:
            video: (B, T, 3, H, W) float, through `config.transform`.
            point: what the encoder spends; `None` everything.
            state: not used; must be `None`.

        Returns:
            `logits` (B, K), and `embedding` (B, F), the features. With histograms also taps "encoder" and "histograms",
            the logits (B, K) of each reader, and `logits` are the sum of their log-probabilities.

        Raises:
            PointError: the encoder lacks an axis of the point, or a state was given.
        """
        features = self.features(video, point=point, state=state)
        logits = self.classify(features)
        if self.motion is None:
            return Output(embedding=features, logits=logits)
        taps = {"encoder": logits, "histograms": self.motion(video)}
        both = torch.stack([part.float().log_softmax(dim=-1) for part in taps.values()])  # (2, B, K)
        return Output(embedding=features, logits=both.sum(dim=0), taps=taps)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (B, K) of features (B, F), by what the head makes of the encoder alone."""
        logits: Tensor = self.head(self.standard(features))
        return logits

    def features(self, video: Tensor, *, point: OperatingPoint | None = None, state: State | None = None) -> Tensor:
        """What the head reads, float32 (B, F); see `forward`."""
        if state is not None:
            raise PointError("a classifier has no streaming state; pass state=None")
        blocks = self._blocks()
        read: dict[nn.Module, list[Tensor]] = {blocks[block]: [] for block in self.config.blocks}
        reading = _READING.set(read)
        try:
            out = self.encoder(video, point=point)
        finally:
            _READING.reset(reading)
        assert out.tokens is not None
        prefix, earlier = out.tokens.num_prefix, _earlier(out.tokens)
        parts = [out.embedding, out.tokens.x[:, prefix:].mean(dim=1)]
        for pieces in read.values():  # a batch may have passed a block in several pieces
            tokens = torch.cat(pieces)[:, prefix:].float()  # (B, N, d)
            spread = tokens.var(dim=1, unbiased=False).add(1e-6).sqrt()  # (B, d)
            parts += [tokens.mean(dim=1), spread, _change(tokens, earlier)]
        fitted = [F.pad(part.float(), (0, size - part.shape[-1])) for part, size in zip(parts, self.sizes, strict=True)]
        return torch.cat(fitted, dim=-1)  # (B, F)

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of one clip of `frames` squares of `size` pixels."""
        point = point or OperatingPoint()
        cost: Cost = self.config.encoder.cost(frames=frames, size=size, tokens=point.tokens, width=point.width)
        classes = len(self.config.classes)
        readers = [self.num_features, *([self.motion.layer.in_features] if self.motion is not None else [])]
        head = sum(linear_macs(1, size, classes) for size in readers)
        parameters = 4 * sum((size + 1) * classes for size in readers)
        return dataclasses.replace(cost, macs=cost.macs + head, parameter_bytes=cost.parameter_bytes + parameters)

    def _blocks(self) -> nn.ModuleList:
        """The encoder's blocks, wherever it holds them."""
        for name, module in self.encoder.named_modules():
            if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList):
                return module
        raise TypeError(f"{type(self.encoder).__name__} holds no blocks to read")

    def _embedding_dim(self) -> int:
        config = self.config.encoder
        for name in ("pool_dim", "output_dim", "embed_dim"):
            if hasattr(config, name):
                return int(getattr(config, name))
        raise TypeError(f"{type(config).__name__} names no size of its embedding")


class MotionReader(nn.Module):
    """A linear layer on histograms of gradients and flow on a coarse grid of the clip, standardised; 0 until `fit`."""

    mean: Tensor
    std: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        time, rows, columns = config.histograms
        self.grid, self.patch_size, transform = (time, rows, columns), config.encoder.patch_size, config.transform
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1), persistent=False)
        size = KINDS * DIRECTIONS * time * rows * columns  # G
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.layer = nn.Linear(size, len(config.classes))
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, T, 3, H, W) that passed the transform; T >= 2."""
        logits: Tensor = self.layer((self.histograms(video) - self.centre) / self.spread)
        return logits

    def histograms(self, video: Tensor) -> Tensor:
        """What the layer reads before it is standardised, (B, G)."""
        return clip_histograms(video * self.std + self.mean, self.patch_size, self.grid)

    @torch.no_grad()
    def fit(
        self, histograms: Tensor, labels: Tensor, *, views: int = 1, ridge: float = 1.0, sharpness: float = 12.0
    ) -> None:
        """Solve for the layer: ridge regression of the classes, with the mean over clips taken out.

            W = sharpness (X'X + ridge views G I)^-1 X'(Y - mean Y),   X standardised

        Both constants were chosen on a part of the training side of one fold of docs/benchmarks/actions.md. A class
        that is as rare as others gets a logit of about 0 for a clip that says nothing.

        Args:
            histograms: (N, G) of training clips.
            labels: (N,) numbers of classes.
            views: rows for each clip.
            ridge: how much large weights cost.
            sharpness: what regressed class memberships are multiplied with to be logits.
        """
        rows, count = histograms.double(), self.layer.out_features
        self.centre.copy_(rows.mean(dim=0))
        self.spread.copy_(rows.std(dim=0, correction=0).clamp(min=1e-3))
        x = (rows - self.centre) / self.spread  # (N, G)
        y = F.one_hot(labels.long(), count).double()  # (N, K)
        penalty = ridge * views * x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weight = torch.linalg.solve(x.T @ x + penalty, x.T @ (y - y.mean(dim=0)))  # (G, K)
        self.layer.weight.copy_(sharpness * weight.T)
        self.layer.bias.zero_()


# what the forward pass under way in this thread reads: several threads may run one model
_READING: ContextVar[dict[nn.Module, list[Tensor]] | None] = ContextVar("reading", default=None)


def _keep(module: nn.Module, arguments: Any, output: Tensor) -> None:
    read = _READING.get()
    if read is not None and module in read:
        read[module].append(output)


def _earlier(tokens: Tokens) -> tuple[Tensor, Tensor]:
    """For every placed token the number of the token of the same place one frame before, (B, N), and whether there is
    one, (B, N, 1): selection may have left it out."""
    frames, rows, columns = tokens.grid
    cells = tokens.cells  # (B, N), -1 for padding
    batch, count = cells.shape
    total, step = frames * rows * columns, rows * columns
    number = cells.new_full((batch, step + total + 1), -1)  # of the token in a cell; a frame of none before the first
    places = torch.where(cells < 0, total, cells) + step
    number.scatter_(1, places, torch.arange(count, device=cells.device).expand(batch, -1))
    before = number.gather(1, cells.clamp(min=0))  # (B, N): the cell one frame before, because of the frame of none
    there = (before >= 0) & (cells >= 0)
    return before.clamp(min=0), there.unsqueeze(-1)


def _change(x: Tensor, earlier: tuple[Tensor, Tensor]) -> Tensor:
    """Mean of |x - x one frame before| over the tokens that have one, (B, d); zero where none has."""
    before, there = earlier
    moved = (x - x.gather(1, before.unsqueeze(-1).expand_as(x))).abs() * there  # (B, N, d)
    return moved.sum(dim=1) / there.sum(dim=1).clamp(min=1)
