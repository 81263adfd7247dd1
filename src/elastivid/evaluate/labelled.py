"""Protocols on lists of clips: accuracy where they have labels, retrieval both ways where they have captions.

Letters: N clips, C captions, K classes, D channels of a vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from elastivid.core.cost import hardware_key
from elastivid.core.point import Runtime
from elastivid.data.listing import Entry
from elastivid.data.sampling import FrameSampling
from elastivid.evaluate.classifiers import Classifier, Encodes
from elastivid.evaluate.metrics import mean_class_accuracy, top_k_hits
from elastivid.evaluate.protocol import EvaluationError
from elastivid.evaluate.retrieval import Retrieval, both_ways
from elastivid.evaluate.statistics import bootstrap
from elastivid.evaluate.views import Batches, Setting, stream_views
from elastivid.losses.contrastive import dual_softmax
from elastivid.models.base import DualEncoder
from elastivid.train.recipe import Row

KEPT_CLASSES = 5
Progress = Callable[[int, int], None]


@dataclass
class Vectors:
    """What a model made of clips.

    Args:
        of: per setting, per clip that could be read, vectors (V, D) of its views.
        left_out: reasons, by place in the list.
        seconds: per setting, that the model worked.
    """

    of: list[dict[int, Tensor]]
    left_out: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    @property
    def used(self) -> list[int]:
        """Places of the clips that could be read, ascending."""
        return sorted(self.of[0])


@dataclass(frozen=True)
class How:
    """How clips are run.

    Args:
        settings: one row each.
        sampling: which frames a view shows; `None` takes one of each of equal segments.
        batch: views that run together.
        device: torch's name of it.
        allowed_failures: share of clips that may be unreadable.
        seed: of resampling for intervals.
    """

    settings: tuple[Setting, ...]
    sampling: FrameSampling | None = None
    batch: int = 8
    device: str = "cpu"
    allowed_failures: float = 0.05
    seed: int = 0


def embed(encoder: Encodes, entries: Sequence[Entry], how: How, progress: Progress | None = None) -> Vectors:
    """Vectors of all clips at all settings.

    Raises:
        EvaluationError: too many clips cannot be read.
    """
    running = [Batches(encoder, setting, how.batch, how.device) for setting in how.settings]
    found = Vectors([{} for _ in running], seconds=[0.0] * len(running))
    for viewed in stream_views(entries, how.settings, how.sampling):
        if viewed.problem:
            found.left_out[viewed.index] = viewed.problem
        for number, views in enumerate(viewed.views):
            started = time.perf_counter()
            found.of[number].update(running[number].add(viewed.index, views))
            found.seconds[number] += time.perf_counter() - started
        if progress is not None:
            progress(viewed.index + 1, len(entries))
    for number, batches in enumerate(running):
        started = time.perf_counter()
        found.of[number].update(batches.rest())
        found.seconds[number] += time.perf_counter() - started
    failed = len(found.left_out)
    if failed > how.allowed_failures * len(entries) or failed == len(entries):
        raise EvaluationError(
            f"{failed} of {len(entries)} clips cannot be read, more than the allowed {100 * how.allowed_failures:g} %; "
            f"the first: {next(iter(found.left_out.values()))}"
        )
    return found


def accuracy_rows(
    classifier: Classifier, entries: Sequence[Entry], labels: Sequence[int], how: How, progress: Progress | None = None
) -> tuple[list[Row], list[dict[str, np.ndarray]], Vectors]:
    """A row per setting: top-1 with its interval by source, top-5, mean over classes, cost of a clip.

    Args:
        classifier: says how probable each class is in each view; views are averaged.
        entries: the clips.
        labels: (N,) class numbers in the order of the classifier's names.
        how: settings and limits.
        progress: called after every clip.

    Returns:
        rows; per row the numbers and probabilities of the likeliest classes of each clip that could be read; vectors.
    """
    vectors = embed(classifier.encoder, entries, how, progress)
    used = vectors.used
    wanted, sources = np.array([labels[i] for i in used]), [entries[i].origin for i in used]
    rows, predictions = [], []
    for number, setting in enumerate(how.settings):
        stacked = torch.stack([vectors.of[number][i] for i in used])  # (N, V, D)
        scores = (
            classifier.probabilities(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2]).mean(1).numpy()
        )  # (N, K)
        hits = top_k_hits(scores, wanted, 1)
        sure = bootstrap(hits, sources, seed=how.seed)
        first = {
            "accuracy": sure.value, "low": sure.low, "high": sure.high,
            "top5": float(top_k_hits(scores, wanted, 5).mean()), "mean_class": mean_class_accuracy(hits, wanted),
        }  # fmt: skip
        rows.append(_row(classifier.encoder, setting, vectors, number, first))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :KEPT_CLASSES]
        kept = {"clips": np.array(used), "labels": wanted, "classes": order}
        probabilities = np.take_along_axis(scores, order, axis=1).astype(np.float32)
        predictions.append({**{k: v.astype(np.int32) for k, v in kept.items()}, "probabilities": probabilities})
    return rows, predictions, vectors


def retrieval_rows(
    model: DualEncoder,
    entries: Sequence[Entry],
    captions: Sequence[tuple[str, int]],
    how: How,
    *,
    dual: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Row], list[dict[str, np.ndarray]], Vectors]:
    """A row per setting: R@1, R@5, R@10 and median rank of captions looking for clips and of clips for captions.

    Args:
        model: clips and texts to one space; vectors of the views of a clip are averaged.
        entries: the clips.
        captions: (C,) each a text and the place of the clip it describes.
        how: settings and limits.
        dual: weigh scores by a softmax over all queries first (`dual_softmax`): a result that saw all queries at once.
        progress: called after every clip.
    """
    vectors = embed(model, entries, how, progress)
    used = vectors.used
    place = {index: number for number, index in enumerate(used)}
    kept = [(text, place[index]) for text, index in captions if index in place]
    owner = np.array([number for _, number in kept])
    with torch.inference_mode():
        texts = torch.cat(
            [model.embed_texts([text for text, _ in kept[i : i + 256]]) for i in range(0, len(kept), 256)]
        )
    rows, predictions = [], []
    for number, setting in enumerate(how.settings):
        clips = torch.stack([vectors.of[number][i] for i in used]).mean(dim=1)  # (N, V, D) -> (N, D)
        cosines = texts.float() @ torch.nn.functional.normalize(clips, dim=-1).T  # (C, N)
        of_captions, of_clips = both_ways(cosines.numpy(), owner)
        if dual:
            of_captions, _ = both_ways(dual_softmax(cosines, model.logit_scale).numpy(), owner)
            _, of_clips = both_ways(dual_softmax(cosines.T, model.logit_scale).T.numpy(), owner)
        text, video = Retrieval.of(of_captions, len(used)), Retrieval.of(of_clips, len(kept))
        sure = bootstrap(of_captions == 1, [entries[used[i]].origin for i in owner], seed=how.seed)
        first = {
            "accuracy": sure.value, "low": sure.low, "high": sure.high,
            "text_r5": text.r5, "text_r10": text.r10, "text_median": text.median_rank,
            "video_r1": video.r1, "video_r5": video.r5, "video_r10": video.r10, "video_median": video.median_rank,
        }  # fmt: skip
        rows.append(_row(model, setting, vectors, number, first))
        ranks = {"clips": np.array(used), "text_ranks": of_captions, "video_ranks": of_clips}
        predictions.append({name: array.astype(np.int32) for name, array in ranks.items()})
    return rows, predictions, vectors


def _row(encoder: Encodes, setting: Setting, vectors: Vectors, number: int, first: Row) -> Row:
    cost = encoder.cost(frames=setting.frames, size=setting.size, point=setting.point)
    clips = len(vectors.used)
    return {
        "point": str(setting),
        **first,
        "gmacs": cost.gmacs * setting.views,
        "milliseconds": 1e3 * vectors.seconds[number] / clips,
        "frames": setting.frames,
        "tokens": setting.point.tokens,
        "views": setting.views,
        "clips": clips,
    }


def hardware(how: How) -> str:
    """What the milliseconds of rows were measured on."""
    return hardware_key(Runtime(device=how.device, batch=how.batch))
