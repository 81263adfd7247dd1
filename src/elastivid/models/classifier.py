"""`ClipClassifier`: a video encoder and a linear head that names what a clip shows, at any of the encoder's points.

    features = [ embedding | mean of final tokens | for some blocks: mean, spread and change of their tokens ]
    logits   = W standardised(features) + b
    change   = mean over neighbouring frames of |token - token of the same place one frame before|

With `motion_words`, a second linear layer reads what moves where in the same frames: the Fisher vector of their
histograms of gradients and flow (`elastivid.layers.histograms`, `elastivid.layers.fisher`). The logits are the sum of
the two readers' log-probabilities. Few labelled clips are not enough to learn motion from: what it is worth beside the
encoder, and the encoder beside it, stands in docs/benchmarks/actions.md. That layer is not trained with the rest but
solved for (`MotionReader.solve`): hundreds of clips are far too few for a descent on its thousands of weights a class.

Early blocks know more about real pictures than the last ones of an encoder that was trained for something else, and
change says what moves: of a frozen encoder it is worth more than all the rest. Which blocks are read is part of the
config. Features are standardised with the statistics of the training batches, so that one rate fits all of them.

Costs what the encoder costs, and one product of features and classes; a second reader some millions of products, and
time that is none of products: flow.

Letters: B clips, T frames, H W pixels, N tokens, d channels of a block, F features, G of a Fisher vector, K classes.
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
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.core.state import State
from elastivid.core.tokens import Tokens
from elastivid.layers.fisher import FisherVectors
from elastivid.layers.histograms import CUBE, CUBE_SIZE, FLOATS_PER_PIXEL, KINDS, cubes, num_cubes
from elastivid.models.base import VideoEncoder
from elastivid.models.towers import hash_of_tensors
from elastivid.video.transforms import Transform

RIDGE = 1.0
SHARPNESS = 20.0
SOLVED = 2048  # rows or columns at a time


@dataclass(frozen=True)
class ClassifierConfig:
    """What a classifier is made of.

    Args:
        encoder: config of the video encoder.
        classes: names of the K classes.
        blocks: blocks whose tokens are read by their mean, spread and change, counted from 0.
        transform: what turns decoded frames into input; it travels with the weights.
        frames: frames of a clip that the head was trained on.
        seconds: how long a typical clip of its training plays; windows of a video are as long. 0 where nobody knows.
        motion_words: Gaussians of the Fisher vectors that a second layer reads; 0 for none.

    Raises:
        ValueError: there are fewer than two classes, a name occurs twice, there is no such block, or `motion_words` is
            negative or reads clips of one frame.
    """

    encoder: Any
    classes: tuple[str, ...]
    blocks: tuple[int, ...] = ()
    transform: Transform = field(default_factory=Transform)
    frames: int = 8
    motion_words: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("classes", "blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"a classifier needs at least two classes with different names, got {self.classes}")
        depth = self.encoder.depth
        if not all(0 <= block < depth for block in self.blocks):
            raise ValueError(f"the encoder has blocks 0 to {depth - 1}, got {self.blocks}")
        if self.motion_words < 0 or (self.motion_words and self.frames < 2):
            raise ValueError(
                "motion_words must be 0 for none, or more for clips of 2 frames or more; got "
                f"{self.motion_words} for {self.frames} frames"
            )

    @property
    def sampling(self) -> Sampling:
        """Windows of a video as it was trained on: each as long as a clip, half of it shared with the one before."""
        plain = Sampling(frames=self.frames, size=self.transform.size)
        if not self.seconds:
            return plain
        return dataclasses.replace(plain, window_seconds=self.seconds, stride_seconds=self.seconds / 2)

    def build(self) -> ClipClassifier:
        """An untrained classifier."""
        return ClipClassifier(self)

    @property
    def point(self) -> OperatingPoint:
        """What is spent where nobody says otherwise: all there is."""
        return OperatingPoint()

    @property
    def sizes(self) -> list[int]:
        """Of what the head reads: the embedding, the final tokens' mean, and three of every block."""
        width = self.encoder.embed_dim
        return [self._embedding_dim(), width] + [width] * (3 * len(self.blocks))

    def _embedding_dim(self) -> int:
        for name in ("pool_dim", "output_dim", "embed_dim"):
            if hasattr(self.encoder, name):
                return int(getattr(self.encoder, name))
        raise TypeError(f"{type(self.encoder).__name__} names no size of its embedding")

    def cost(
        self, *, frames: int, size: int, tokens: int | None = None, width: int | tuple[int, ...] | None = None
    ) -> Cost:
        """Closed-form cost of one clip of `frames` squares of `size` pixels, float32. The second reader runs after the
        encoder, so of their activations the larger counts."""
        cost: Cost = self.encoder.cost(frames=frames, size=size, tokens=tokens, width=width)
        inputs, classes, macs, parameters, activation = sum(self.sizes), len(self.classes), 0, 0, 0
        if self.motion_words:
            vectors = FisherVectors(KINDS, CUBE_SIZE, self.motion_words)
            side = size // self.encoder.patch_size
            inputs, parameters = inputs + vectors.length, vectors.num_bytes + 4 * classes
            macs, activation = vectors.macs(num_cubes(frames, side, side)), self.reader_bytes(frames, size)
        return dataclasses.replace(
            cost,
            macs=cost.macs + macs + linear_macs(1, inputs, classes),
            parameter_bytes=cost.parameter_bytes + parameters + 4 * (inputs + 1) * classes,
            activation_bytes=max(cost.activation_bytes, activation),
        )

    @staticmethod
    def reader_bytes(frames: int, size: int) -> int:
        """Most bytes that the second reader holds for one clip."""
        return 4 * FLOATS_PER_PIXEL * frames * size**2

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; `from_dict` reverses it."""
        kind = type(self.encoder)
        return {**dataclasses.asdict(self), "kind": [kind.__module__.rpartition(".")[2], kind.__name__]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassifierConfig:
        """The config that `to_dict` described."""
        values = dict(values)
        if values.pop("histograms", ()):
            raise ValueError("it reads histograms as version 0.3.0 did; train it again with motion_words=32")
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
        total = sum(config.sizes)
        self.standard = nn.BatchNorm1d(total, affine=False)
        self.head = nn.Linear(total, len(config.classes))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.motion = MotionReader(config) if config.motion_words else None

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
            `logits` (B, K), and `embedding` (B, F), the features. With a second reader also taps "encoder" and
            "motion", the logits (B, K) of each, and `logits` are the sum of their log-probabilities.

        Raises:
            PointError: the encoder lacks an axis of the point, a state was given, or the second reader finds too few
                frames or pixels.
        """
        if self.motion is not None and (video.shape[1] < 2 or min(video.shape[-2:]) < CUBE * self.motion.patch_size):
            raise PointError(
                f"this classifier reads what moves: it needs 2 frames of {CUBE * self.motion.patch_size} pixels a side "
                f"or more, got {video.shape[1]} of {video.shape[-2]}x{video.shape[-1]}"
            )
        features = self.features(video, point=point, state=state)
        logits = self.classify(features)
        if self.motion is None:
            return Output(embedding=features, logits=logits)
        taps = {"encoder": logits, "motion": self.motion(video)}
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
        fitted = [
            F.pad(part.float(), (0, size - part.shape[-1])) for part, size in zip(parts, self.config.sizes, strict=True)
        ]
        return torch.cat(fitted, dim=-1)  # (B, F)

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of one clip of `frames` squares of `size` pixels."""
        point = point or OperatingPoint()
        return self.config.cost(frames=frames, size=size, tokens=point.tokens, width=point.width)

    def _blocks(self) -> nn.ModuleList:
        """The encoder's blocks, wherever it holds them."""
        for name, module in self.encoder.named_modules():
            if name.rpartition(".")[2] == "blocks" and isinstance(module, nn.ModuleList):
                return module
        raise TypeError(f"{type(self.encoder).__name__} holds no blocks to read")


class MotionReader(nn.Module):
    """A linear layer on the Fisher vector of what moves in a clip. Answers 0 until `vectors.fit` and `solve`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.patch_size, transform = config.encoder.patch_size, config.transform
        self.register_buffer("mean", torch.tensor(transform.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(transform.std).view(3, 1, 1), persistent=False)
        self.vectors = FisherVectors(KINDS, CUBE_SIZE, config.motion_words)
        self.layer = nn.Linear(self.vectors.length, len(config.classes))
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, K) of clips (B, T, 3, H, W) that passed the transform; T >= 2."""
        logits: Tensor = self.layer(self.read(video))
        return logits

    def read(self, video: Tensor) -> Tensor:
        """What the layer reads, (B, G)."""
        with torch.autocast(video.device.type, enabled=False):
            vectors: Tensor = self.vectors(*self.cubes(video))
        return vectors

    def cubes(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors and places of what moves, see `elastivid.layers.histograms.cubes`."""
        return cubes(video.float() * self.std + self.mean, self.patch_size)

    @torch.no_grad()
    def solve(
        self, vectors: Tensor, labels: Tensor, *, views: int = 1, ridge: float = RIDGE, sharpness: float = SHARPNESS
    ) -> None:
        """Solve for the layer: ridge regression of the classes, with their mean over clips taken out.

            W = sharpness X' (X X' + ridge views C)^-1 (Y - mean Y),   rows of X of squared length C = 4 kinds

        Of the two forms of the inverse the smaller is solved. A class that is as rare as others gets a logit of about
        0 for a clip that says nothing. Both constants were chosen on parts of the training side of one fold of
        docs/benchmarks/actions.md.

        Args:
            vectors: (N, G) of training clips.
            labels: (N,) numbers of classes.
            views: rows for each clip.
            ridge: how much large weights cost.
            sharpness: what regressed class memberships are multiplied with to be logits.
        """
        y = F.one_hot(labels.long(), self.layer.out_features).double()  # (N, K)
        y = y - y.mean(dim=0)
        few = vectors.shape[0] <= vectors.shape[1]
        penalty = ridge * views * KINDS * torch.eye(min(vectors.shape), dtype=y.dtype, device=y.device)
        for part in vectors.split(SOLVED, dim=1 if few else 0):  # so that only a part of them is held as float64
            part = part.double()
            penalty += part @ part.T if few else part.T @ part
        if few:
            found = torch.linalg.solve(penalty, y)  # (N, K)
            weight = torch.cat([part.double().T @ found for part in vectors.split(SOLVED, dim=1)])  # (G, K)
        else:
            products = zip(vectors.split(SOLVED), y.split(SOLVED), strict=True)
            weight = torch.linalg.solve(penalty, sum(part.double().T @ wanted for part, wanted in products))
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
