"""One face for two kinds of classifier: names given in words to a dual encoder, and a head that was trained.

    zero-shot    softmax over names of (logit_scale cosine(clip, mean over prompts of text(prompt, name)))
    head         softmax of the logits of a trained classifier, over the names in its file

Clips become vectors first (`encoder.embed_clips`, the costly part, which an `Executor` may run) and probabilities then.

Letters: B clips, T frames, H W pixels, D channels of a vector, K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elastivid.core.cost import Cost
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.evaluate.names import ClassesError, Names
from elastivid.models.base import DualEncoder
from elastivid.models.classifier import ClipClassifier
from elastivid.models.flux_classifier import FluxClassifier
from elastivid.models.towers import TwoTowers
from elastivid.video.transforms import Transform
from elastivid.weights.classifier import is_classifier, load_classifier
from elastivid.weights.load import load
from elastivid.weights.usual import usual


class Encodes(Protocol):
    """What turns clips into vectors: a dual encoder, or `Logits`."""

    dim: int
    transform: Transform

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor: ...
    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost: ...


class Classifier(ABC):
    """Clips to probabilities of named classes.

    Attributes:
        names: of the classes, K of them.
        address: what the model was loaded from.
        weights_id: hash of its weights.
        encoder: has `embed_clips(video, point=)`, `dim`, `transform`, `cost` and `supported_axes`.
        sampling, point: frames, size and windows that the model is meant for, and what it spends on them.
    """

    names: tuple[str, ...]
    address: str
    weights_id: str
    encoder: Any
    sampling: Sampling
    point: OperatingPoint

    @abstractmethod
    def probabilities(self, vectors: Tensor) -> Tensor:
        """(B, D) what `encoder.embed_clips` returned to (B, K), each row summing to 1."""

    @property
    def transform(self) -> Transform:
        """What the model does to pictures."""
        found: Transform = self.encoder.transform
        return found

    def cost(self, sampling: Sampling, point: OperatingPoint | None = None) -> Cost:
        """Predicted cost of one clip."""
        found: Cost = self.encoder.cost(frames=sampling.frames, size=sampling.size, point=point)
        return found


class ZeroShot(Classifier):
    """A dual encoder with names; see the module's text (arXiv 2103.00020, prompts averaged as there).

    Args:
        model: the dual encoder.
        names: of the classes, at least two, in words that its text tower reads.

    Raises:
        ClassesError: there are no names.
    """

    def __init__(self, model: DualEncoder, names: Names) -> None:
        if not names.classes:
            raise ClassesError(
                f'{model.name} needs names of classes: --classes "a dog, a cat", or --labels FILE with one a line'
            )
        self.names = names.classes
        self.encoder, self.address, self.weights_id = model, model.name, _weights_id(model)
        self.sampling, self.point = usual(model)
        with torch.inference_mode():
            self.vectors = class_vectors(model, names)  # (K, D)

    def probabilities(self, vectors: Tensor) -> Tensor:
        """Softmax of scaled cosines."""
        return (self.encoder.logit_scale * vectors.float() @ self.vectors.T).softmax(dim=-1)


class WithHead(Classifier):
    """A trained classifier with the names its file holds.

    Args:
        model: what `load_classifier` returned.
        address: where from.
    """

    def __init__(self, model: ClipClassifier | FluxClassifier, address: str) -> None:
        self.names, self.address, self.weights_id = model.config.classes, address, model.weights_id
        self.encoder, self.point = Logits(model, address), model.config.point
        self.sampling = model.config.sampling

    def probabilities(self, vectors: Tensor) -> Tensor:
        """Softmax of the logits."""
        return vectors.float().softmax(dim=-1)


class Logits(torch.nn.Module):
    """A classifier as something that embeds: its vectors are the logits (B, K).

    Args:
        model: the classifier.
        name: its address.
    """

    def __init__(self, model: ClipClassifier | FluxClassifier, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.transform, self.dim = model.config.transform, len(model.config.classes)

    @property
    def supported_axes(self) -> frozenset[str]:
        """Axes of an operating point that the encoder honours."""
        return self.model.supported_axes

    def embed_clips(self, video: Tensor, *, point: OperatingPoint | None = None) -> Tensor:
        """Logits (B, K) of clips (B, T, 3, H, W)."""
        logits = self.model(video, point=point).logits
        assert logits is not None
        return logits

    def cast(self, precision: str) -> Logits:
        """Hold the encoder's weights in `precision`, in place; a head outside of it stays in float32."""
        self.model.encoder.cast(precision)
        return self

    def cost(self, *, frames: int, size: int, point: OperatingPoint | None = None) -> Cost:
        """Closed-form cost of one clip.

        Raises:
            PointError: the point has an axis the encoder lacks.
        """
        point = point or OperatingPoint()
        point.require_axes(self.supported_axes, type(self.model.encoder).__name__)
        return self.model.cost(frames=frames, size=size, point=point)


def open_classifier(address: str, names: Names, *, allow_download: bool = False) -> Classifier:
    """The classifier of an address: zero-shot for a dual encoder, else with the head in the file.

    Args:
        address: as `elastivid.load` takes it, or a file that `finetune`, `linear_probe` or `flux_tune` exported.
        names: of the classes, for dual encoders.
        allow_download: see `elastivid.load`.

    Raises:
        ClassesError: a dual encoder got no names, or a trained classifier got some.
        UnknownNameError, WeightsError: see `elastivid.load` and `load_classifier`.
    """
    if is_classifier(address):
        if names.classes:
            raise ClassesError(
                f"{address} was trained for classes of its own, so no names can be given; leave them out, or take a "
                "dual encoder such as nano"
            )
        return WithHead(load_classifier(address), address)
    return ZeroShot(load(address, allow_download=allow_download), names)


def class_vectors(model: DualEncoder, names: Names) -> Tensor:
    """Unit vectors (K, D): the mean over prompts of unit vectors of texts, brought to unit length again."""
    texts = names.sentences
    each = model.embed_texts(texts).unflatten(0, (len(names.classes), -1))  # (K * P, D) -> (K, P, D)
    return F.normalize(each.mean(dim=1), dim=-1)


def model_input(transform: Transform, clips: np.ndarray, size: int) -> Tensor:
    """Clips uint8 (B, T, H, W, 3) as input float32 (B, T, 3, size, size), by the transform's rule of size and crop."""
    b, t = clips.shape[:2]
    fitted = transform if size == transform.size else transform.squared(size)
    flat = fitted(clips.reshape(b * t, *clips.shape[2:]))  # (B * T, 3, S, S)
    return flat.reshape(b, t, *flat.shape[1:])  # (B, T, 3, S, S)


def _weights_id(model: DualEncoder) -> str:
    return model.weights_id if isinstance(model, TwoTowers) else model.space_id
