"""Models on validation sets, sample by sample, at any grid: what Token Optimization asks.

    WorldChoices     a dual encoder on rendered scenes: is the own caption nearest among captions wrong in one respect
    LabelledChoices  a classifier, or a dual encoder with names of classes, on labelled clips

Letters: N samples, B batch, T frames, S side in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from elastivid.core.cost import Cost
from elastivid.core.errors import PointError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.data.clips import Clips
from elastivid.evaluate.choices import ATTRIBUTES, draw_choices, hits
from elastivid.models.towers import TwoTowers
from elastivid.video.transforms import Transform


class Asked(Protocol):
    """A point of a grid: frames, side, tokens, and width (0: the full one)."""

    @property
    def frames(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def width(self) -> int: ...


def point_of(point: Asked, available: int) -> OperatingPoint:
    """The operating point of a grid point: without selection where all tokens stay."""
    return OperatingPoint(tokens=point.tokens if point.tokens < available else None, width=point.width or None)


def tokens_of(config: Any, frames: int, size: int) -> int:
    """Tokens of a grid for a model's video config."""
    return int(frames // getattr(config, "tubelet_size", 1) * (size // config.patch_size) ** 2)


class WorldChoices:
    """See the module's text.

    Args:
        model: a dual encoder of ours.
        scenes: per attribute; of compositions that training never draws.
        seed: equal seeds give equal scenes.

    Raises:
        PointError: the model cannot select tokens.
    """

    def __init__(self, model: TwoTowers, scenes: int = 100, seed: int = 11) -> None:
        require_tokens(model, model.supported_axes)
        self.model = model
        self.choices = [c for name in ATTRIBUTES for c in draw_choices(name, "held_out", scenes, seed)]
        self.key = f"world choices@1, {scenes} scenes, seed {seed}, weights {model.weights_id}"
        self.sources: Sequence[Hashable] = [f"scene {number}" for number in range(len(self.choices))]

    def available(self, frames: int, size: int) -> int:
        """Tokens of a grid."""
        return tokens_of(self.model.config.video, frames, size)

    def gmacs(self, point: Asked) -> float:
        """Cost of one clip."""
        spent = point_of(point, self.available(point.frames, point.size))
        return self.model.cost(frames=point.frames, size=point.size, point=spent).gmacs

    def hits(self, point: Asked) -> np.ndarray:
        """(N,) whether the own caption is nearest."""
        spent = point_of(point, self.available(point.frames, point.size))
        sampling = Sampling(frames=point.frames, size=point.size)
        return hits(self.model, self.choices, sampling, [spent])[0]


class Classifier(Protocol):
    """Clips to probabilities of named classes."""

    names: tuple[str, ...]
    address: str
    weights_id: str
    encoder: Any
    """Has `embed_clips(video, point=)`, `supported_axes`, and a `config`, its own or that of its `model`."""

    @property
    def transform(self) -> Transform: ...
    def probabilities(self, vectors: Tensor) -> Tensor: ...
    def cost(self, sampling: Sampling, point: OperatingPoint | None = None) -> Cost: ...


class LabelledChoices:
    """See the module's text.

    Args:
        classifier: knows the classes of `clips` by name.
        clips: validation clips with labels, whose decoded short side is at least the largest size point.
        key: text that stands for the clips.
        called: what the classifier calls a label of the clips; `None` the same.
        batch: clips that are encoded together.

    Raises:
        PointError: the model cannot select tokens.
        ValueError: names of classifier and clips differ.
    """

    def __init__(
        self,
        classifier: Classifier,
        clips: Clips,
        key: str,
        *,
        called: Callable[[str], str] | None = None,
        batch: int = 8,
    ) -> None:
        require_tokens(classifier.encoder, classifier.encoder.supported_axes)
        called = called or (lambda label: label)
        missing = sorted({called(label) for label in clips.classes} - set(classifier.names))
        if missing:
            raise ValueError(f"{classifier.address} does not know {len(missing)} of the classes, such as {missing[:3]}")
        self.classifier, self.clips, self.batch = classifier, clips, batch
        self.indices = list(clips.usable())
        order = {name: number for number, name in enumerate(classifier.names)}
        self.labels = np.array([order[called(clips.entries[index].label)] for index in self.indices])
        self.key = f"labelled clips@1, {key}, {len(self.indices)} clips, weights {classifier.weights_id}"
        self.sources: Sequence[Hashable] = [clips.entries[index].origin for index in self.indices]

    @property
    def _config(self) -> Any:
        model = getattr(self.classifier.encoder, "model", self.classifier.encoder)
        return getattr(model.config, "video", None) or model.config.encoder

    def available(self, frames: int, size: int) -> int:
        """Tokens of a grid."""
        return tokens_of(self._config, frames, size)

    def gmacs(self, point: Asked) -> float:
        """Cost of one clip."""
        spent = point_of(point, self.available(point.frames, point.size))
        return self.classifier.cost(Sampling(frames=point.frames, size=point.size), spent).gmacs

    @torch.inference_mode()
    def hits(self, point: Asked) -> np.ndarray:
        """(N,) whether the class of each clip comes first."""
        spent, found = point_of(point, self.available(point.frames, point.size)), []
        for start in range(0, len(self.indices), self.batch):
            part = self.indices[start : start + self.batch]
            views = np.concatenate([self.clips.views(index, (point.frames, point.size)) for index in part])
            video = self.classifier.transform.normalised(torch.from_numpy(views))  # (B, T, 3, S, S)
            shares = self.classifier.probabilities(self.classifier.encoder.embed_clips(video, point=spent))
            found.append(shares.argmax(dim=1).numpy())
        return np.asarray(np.concatenate(found) == self.labels)


def require_tokens(model: Any, axes: frozenset[str]) -> None:
    """Refuse a model whose tokens cannot be selected."""
    if "tokens" not in axes:
        raise PointError(
            f"{getattr(model, 'name', type(model).__name__)} has no axis tokens (its axes: "
            f"{', '.join(sorted(axes)) or 'none'}), nothing to optimize; take one that selects, as nano does"
        )
