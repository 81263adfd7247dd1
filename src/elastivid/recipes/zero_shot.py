"""Evaluate a model without training it: classes by their names, or captions and clips looking for each other.

    elastivid eval zero_shot --set data=clips.csv --set model=nano --out result.json
    elastivid eval zero_shot --set data=actions --set views=5 --set crops=3 --set points=8,168,512,192
    elastivid replay result.json [--data moved/actions]

`data` is a list or a folder as everywhere (docs/evaluating.md). Clips with labels are classified: a dual encoder gets
the labels as words, put into several sentences that are averaged (arXiv 2103.00020); the file of a trained classifier
uses its own head. Clips with texts instead are retrieved both ways. Without `data` a few scenes are rendered. Points
are frames, size, tokens and width; 0 leaves tokens or width at all there are. Nothing here is random but the
resampling of intervals, which is by source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elastivid.core.point import OperatingPoint
from elastivid.data.listing import Entry, classes_of, read_entries
from elastivid.data.sampling import Dense, FrameSampling, Segments
from elastivid.data.staging import sample_scene
from elastivid.data.synthetic import VideoFormat, write_video
from elastivid.evaluate.classifiers import Classifier, WithHead, ZeroShot
from elastivid.evaluate.labelled import How, accuracy_rows, hardware, retrieval_rows
from elastivid.evaluate.names import PROMPTS, Names, labels_as_names
from elastivid.evaluate.protocol import Evaluation, EvaluationError
from elastivid.evaluate.result import Data, Result, hash_of_files, versions
from elastivid.evaluate.views import Setting
from elastivid.train.recipe import RecipeConfig
from elastivid.train.settings import to_values
from elastivid.weights.classifier import is_classifier, load_classifier
from elastivid.weights.load import load
from elastivid.weights.usual import usual

RENDERED = "rendered scenes"


@dataclass(frozen=True)
class ZeroShotConfig(RecipeConfig):
    """Settings of `zero_shot`.

    Args:
        data: list, folder with labels.csv, or folder of class folders; `None` renders `scenes`.
        model: shipped name, weights file, `hf:` address, or the file of a trained classifier.
        points: frames, size, tokens, width of each row; none takes what the model is meant for.
        views: choices of frames of each clip.
        crops: 1, or 3 along the longer side.
        step_frames: frames lie so far apart; 0 spreads them over the whole clip.
        prompts: sentences with `{}` for the name of a class.
        dual_softmax: weigh scores of retrieval by a softmax over all queries at once.
        scenes: how many are rendered without `data`.
        allowed_failures: share of clips that may be unreadable.

    Raises:
        ValueError: a value is out of range.
    """

    batch_size: int = 8
    data: Path | None = None
    model: str = "nano"
    points: tuple[tuple[int, int, int, int], ...] = ()
    views: int = 1
    crops: int = 1
    step_frames: int = 0
    prompts: tuple[str, ...] = PROMPTS
    dual_softmax: bool = False
    scenes: int = 40
    allowed_failures: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views < 1 or self.crops not in (1, 3) or self.step_frames < 0 or self.scenes < 1:
            raise ValueError("views and scenes must be >= 1, step_frames >= 0 and crops 1 or 3")
        if not 0 <= self.allowed_failures <= 1:
            raise ValueError(f"allowed_failures must be a share in [0, 1], got {self.allowed_failures}")


class ZeroShotEvaluation(Evaluation):
    """See the module's text."""

    config_class = ZeroShotConfig
    config: ZeroShotConfig

    @classmethod
    def smoke(cls, config: ZeroShotConfig) -> ZeroShotConfig:
        """Six rendered scenes, two points."""
        return replace(config, data=None, scenes=6, points=((4, 112, 64, 128), (8, 112, 128, 192)))

    def run(self, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None) -> Result:
        """Evaluate; see `Evaluation.run`."""
        with self._entries() as entries:
            if all(entry.label for entry in entries):
                return self._classify(entries, device, progress)
            if all(entry.text for entry in entries):
                return self._retrieve(entries, device, progress)
        unnamed = sum(not entry.label for entry in entries)
        raise EvaluationError(
            f"{unnamed} of {len(entries)} clips have no label and not all have a text: zero_shot needs a label for "
            "every clip, or a text for every clip"
        )

    @contextmanager
    def _entries(self) -> Iterator[list[Entry]]:
        if self.config.data is not None:
            yield read_entries(self.config.data.expanduser())
            return
        with tempfile.TemporaryDirectory(prefix="elastivid-") as folder:
            yield list(_rendered(Path(folder), self.config.scenes, self.config.seed))

    def _classify(self, entries: list[Entry], device: str, progress: Callable[[int, int], None] | None) -> Result:
        config = self.config
        classifier: Classifier
        if is_classifier(config.model):
            classifier = WithHead(load_classifier(config.model), config.model)
            labels = _known(entries, classifier.names, config.model)
        else:
            found = classes_of(entries)
            model = load(config.model)
            classifier = ZeroShot(model, Names(labels_as_names(found), config.prompts))
            labels = [found.index(entry.label) for entry in entries]
        classifier.encoder.to(device)
        how = self._how(self._settings(classifier.encoder, classifier.sampling.frames, classifier.sampling.size,
                                       classifier.point), device)  # fmt: skip
        rows, predictions, vectors = accuracy_rows(classifier, entries, labels, how, progress)
        data = self._data(entries, classifier.names)
        return self._result(classifier.weights_id, data, rows, predictions, vectors.left_out, entries, how)

    def _retrieve(self, entries: list[Entry], device: str, progress: Callable[[int, int], None] | None) -> Result:
        if is_classifier(self.config.model):
            raise EvaluationError(f"{self.config.model} has a head and no text tower: captions need a dual encoder")
        model = load(self.config.model).to(device)
        numbers: dict[tuple[Path, float | None, float | None], int] = {}
        clips: list[Entry] = []
        captions = []
        for entry in entries:
            key = (entry.path, entry.start_seconds, entry.end_seconds)
            if key not in numbers:
                numbers[key] = len(clips)
                clips.append(entry)
            captions.append((entry.text, numbers[key]))
        sampling, point = usual(model)
        how = self._how(self._settings(model, sampling.frames, sampling.size, point), device)
        dual = self.config.dual_softmax
        rows, predictions, vectors = retrieval_rows(model, clips, captions, how, dual=dual, progress=progress)
        weights = getattr(model, "weights_id", model.space_id)
        return self._result(weights, self._data(entries, ()), rows, predictions, vectors.left_out, clips, how)

    def _settings(self, encoder: object, frames: int, size: int, point: OperatingPoint) -> tuple[Setting, ...]:
        views, crops = self.config.views, self.config.crops
        if not self.config.points:
            return (Setting(frames, size, point, views, crops),)
        return tuple(
            Setting(t, s, OperatingPoint(tokens=tokens or None, width=width or None), views, crops)
            for t, s, tokens, width in self.config.points
        )

    def _how(self, settings: tuple[Setting, ...], device: str) -> How:
        config = self.config
        sampling: FrameSampling = Dense(config.step_frames) if config.step_frames else Segments()
        return How(settings, sampling, config.batch_size, device, config.allowed_failures, config.seed)

    def _data(self, entries: Sequence[Entry], classes: Sequence[str]) -> Data:
        said = [(e.path, f"{e.label}\0{e.text}\0{e.start_seconds}\0{e.end_seconds}") for e in entries]
        path = RENDERED if self.config.data is None else str(self.config.data)
        return Data(path, hash_of_files(said), len(entries), tuple(classes))

    def _result(
        self,
        weights_id: str,
        data: Data,
        rows: list[dict],
        predictions: list[dict[str, np.ndarray]],
        left_out: dict[int, str],
        entries: Sequence[Entry],
        how: How,
    ) -> Result:
        return Result(
            protocol=self.name,
            settings=to_values(self.config),
            model=self.config.model,
            weights_id=weights_id,
            data=data,
            rows=tuple(rows),
            predictions=tuple(predictions),
            left_out=tuple({"path": str(entries[i].path), "reason": reason} for i, reason in left_out.items()),
            seeds={"intervals": self.config.seed},
            versions={**versions(), "hardware": hardware(how)},
        )


def _known(entries: Sequence[Entry], names: Sequence[str], model: str) -> list[int]:
    """Numbers of the labels among the classes of a model."""
    number = {name: i for i, name in enumerate(names)}
    strange = sorted({entry.label for entry in entries} - set(number))
    if strange:
        raise EvaluationError(
            f"{len(strange)} labels of the data are no class of {model}, such as {', '.join(strange[:3])}; it knows "
            f"{', '.join(names[:5])}{' and others' if len(names) > 5 else ''}"
        )
    return [number[entry.label] for entry in entries]


def _rendered(folder: Path, count: int, seed: int) -> Iterator[Entry]:
    """Scenes of one thing each, of compositions that training never draws, as files; labels say colour and shape."""
    rng = np.random.default_rng((seed, 5))
    kind = VideoFormat(codec="mjpeg")  # the only one here that writes the same bytes everywhere
    for number in range(count):
        scene = sample_scene(rng, "held_out", "single")
        (phrase,) = scene.content
        path = folder / f"{number:04d}.avi"
        write_video(scene, path, kind)
        yield Entry(path, f"a {phrase.colour} {phrase.shape}", source=str(number))


RECIPE = ZeroShotEvaluation
