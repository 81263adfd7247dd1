"""What the recipes of classifiers share: labelled clips in two parts, an encoder by its address, rows of an evaluation.

Letters: N clips, V views, T frames, S side in pixels, K classes.
"""

from __future__ import annotations

import contextlib
import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from elastivid.core.errors import ElastividError
from elastivid.core.point import OperatingPoint
from elastivid.data.augment import Augmentation
from elastivid.data.cache import ClipCache
from elastivid.data.clips import ClipReading, Clips
from elastivid.data.decoding import DecodingError
from elastivid.data.listing import Entry, classes_of, read_entries
from elastivid.data.quarantine import Quarantine
from elastivid.data.sampling import Dense, FrameSampling, Segments, Uniform
from elastivid.data.splits import leakage_report, split_by_source
from elastivid.data.synthetic import VideoFormat, sample_scene, write_video
from elastivid.data.world import Scene
from elastivid.evaluate.metrics import mean_class_accuracy, top_k_hits
from elastivid.models.base import VideoEncoder
from elastivid.models.classifier import ClassifierConfig, ClipClassifier, MotionReader
from elastivid.planning.profile import cache_folder
from elastivid.train.recipe import Recipe, RecipeConfig, Row
from elastivid.video.transforms import Transform
from elastivid.weights.convert import load_encoder
from elastivid.weights.load import ALIASES, DUALS, build, load, read_metadata, resolve

Settings = TypeVar("Settings", bound="LabelledConfig")
SAMPLINGS = ("segments", "uniform", "dense")
TIMED_CLIPS = 25
WORD_CLIPS, WORD_CUBES = 2000, 100  # clips that motion words are learned from, and cubes of each
MOST_BYTES = 1 << 29  # of Fisher vectors that a second reader is solved from


class DataError(ElastividError, ValueError):
    """A recipe has no data to train on, or the model is not one it can train."""


@dataclass(frozen=True)
class LabelledConfig(RecipeConfig):
    """Settings of recipes that train on labelled clips.

    Args:
        data: list or folder of clips, see docs/data.md.
        test: clips to score; without, one of `folds` parts of `data` is set apart, sources whole.
        folds, fold: how many parts, and which is set apart; `fold=-1` trains on everything and scores nothing.
        model: shipped name or file of a dual encoder, whose video tower is taken, or `family/preset`, untrained.
        blocks: blocks that the head reads beside the embedding, counted from 0 (see `elastivid.models.classifier`);
            without, the one in the middle, which is worth more than all else to an encoder that saw little real video
            (docs/benchmarks/actions.md). `blocks=()` reads the embedding and the final tokens alone.
        frames, size: of a sample; `size` is the side in pixels.
        tokens: budgets that are scored, and drawn from in training; 0 for all tokens of a clip.
        sampling: segments (TSN), uniform, or dense (every fourth frame).
        short_side: pixels of the shorter side of decoded frames, which samples are cut out of.
        kept_frames: most frames of a clip that the cache keeps; 0 keeps all, as dense sampling needs.
        cache: folder of decoded clips and of the quarantine; by default in the user's cache folder.
        cache_gigabytes: what it may take; 0 decodes every time.
        max_left_out: share of clips that may be unreadable before the run stops.
        test_views, test_crops: choices of frames and places (1 or 3) of a test clip, whose probabilities are averaged.
        motion_words: Gaussians of the Fisher vectors of gradients and flow that are read beside the encoder, such as
            32; 0 for none. Worth most where labelled clips are few, and from 16 frames more than from 8. Solved for
            before training.

    Raises:
        ValueError: a value is out of range.
    """

    data: Path | None = None
    test: Path | None = None
    folds: int = 5
    fold: int = 0
    model: str = "nano"
    blocks: tuple[int, ...] | None = None
    frames: int = 8
    size: int = 112
    tokens: tuple[int, ...] = (0,)
    sampling: str = "segments"
    short_side: int = 128
    kept_frames: int = 32
    cache: Path | None = None
    cache_gigabytes: float = 20.0
    max_left_out: float = 0.05
    test_views: int = 2
    test_crops: int = 1
    motion_words: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")
        if not -1 <= self.fold < self.folds:
            raise ValueError(f"fold must be -1 to {self.folds - 1}, got {self.fold}")
        if self.size > self.short_side:
            raise ValueError(f"short_side must be at least size {self.size}, got {self.short_side}")
        if self.motion_words < 0 or (self.motion_words and self.frames < 2):
            raise ValueError(
                "motion_words must be 0 for none, or more for clips of 2 frames or more; got "
                f"{self.motion_words} for {self.frames} frames"
            )
        needed = self.frames * self.test_views
        if self.motion_words and 0 < self.kept_frames < needed:
            raise ValueError(
                f"motion between frames that occur twice is none: {self.test_views} views of {self.frames} frames need "
                f"kept_frames of {needed} or more, or 0 for all, got {self.kept_frames}"
            )

    @property
    def folder(self) -> Path:
        """Where decoded clips and the quarantine lie."""
        return self.cache or cache_folder() / "clips"

    @property
    def points(self) -> tuple[OperatingPoint, ...]:
        """An operating point for each of `tokens`."""
        return tuple(OperatingPoint(tokens=count or None) for count in self.tokens)

    @property
    def shape(self) -> tuple[int, int]:
        """Frames and side of a sample."""
        return self.frames, self.size


@dataclass(frozen=True)
class Parts:
    """Clips to train on and clips to score; `test` is `None` where nothing is scored."""

    train: Clips
    test: Clips | None


def parts_of(config: LabelledConfig, augmentation: Augmentation) -> Parts:
    """Read the lists, part them, and say on stderr what leaks from one part to the other.

    Raises:
        DataError: a clip has no label, or `data` is not set.
        ListError, QuarantineError, ValueError: see `elastivid.data`.
    """
    train, test = labelled_entries(config.data), labelled_entries(config.test) if config.test else []
    classes = classes_of(train)
    if not test and config.fold >= 0:
        folds = split_by_source(train, config.folds)
        test = [entry for entry, fold in zip(train, folds, strict=True) if fold == config.fold]
        train = [entry for entry, fold in zip(train, folds, strict=True) if fold != config.fold]
    if test:
        print("\n".join(leakage_report(train, test)), file=sys.stderr)
    scored = clips_of(config, test, classes, augmentation) if test else None
    return Parts(clips_of(config, train, classes, augmentation), scored)


def labelled_entries(path: Path | None) -> list[Entry]:
    """Entries of a list or folder that all have a label.

    Raises:
        DataError: there is no path, or a clip has no label.
    """
    if path is None:
        raise DataError("there is nothing to train on; name a list or a folder of classes: --set data=FOLDER")
    entries = read_entries(path)
    bare = [entry.name for entry in entries if not entry.label]
    if bare:
        raise DataError(
            f"{path}: {len(bare)} clips have no label, the first {bare[0]}; a classifier needs one for each"
        )
    return entries


def clips_of(
    config: LabelledConfig, entries: Sequence[Entry], classes: Sequence[str], augmentation: Augmentation
) -> Clips:
    """Entries as a data set, with the cache and the quarantine of the settings."""
    samplings: dict[str, FrameSampling] = {"segments": Segments(), "uniform": Uniform(), "dense": Dense()}
    reading = ClipReading(samplings[config.sampling], augmentation, config.short_side, config.kept_frames or None)
    config.folder.mkdir(parents=True, exist_ok=True)
    cache = ClipCache(config.folder, int(config.cache_gigabytes * 2**30)) if config.cache_gigabytes else None
    quarantine = Quarantine(config.folder / "quarantine.jsonl", len(entries), config.max_left_out)
    return Clips(entries, reading, quarantine, classes=classes, cache=cache)


def encoder_of(address: str) -> tuple[VideoEncoder, Transform]:
    """A video encoder with the transform it wants.

    Args:
        address: shipped name or file of a dual encoder, whose video tower is taken; file of an encoder that
            `elastivid convert` or a training run wrote; `family/preset` builds an untrained model, or the video tower
            of one.

    Raises:
        DataError: it has no video tower of ours.
        UnknownNameError, WeightsError: see `elastivid.weights.load`.
    """
    model: Any
    if address in ALIASES or address.endswith(".safetensors"):
        path = resolve(address)
        model = load(address) if read_metadata(path).get("family", "dual") in DUALS else load_encoder(path)
    else:
        model = build(address)
    tower = getattr(model, "video", model)
    if not isinstance(tower, VideoEncoder):
        raise DataError(f"{address} is a {type(model).__name__}, which has no video encoder of ours to train")
    config: Any = tower.config
    return tower, getattr(model, "transform", None) or Transform(size=config.image_size)


def classifier_of(
    config: LabelledConfig, classes: Sequence[str], *, drop_path: float = 0.0, seconds: float = 0.0
) -> ClipClassifier:
    """An encoder with a new head; a second reader is there, but not yet solved for.

    Args:
        config: names the encoder, the blocks and the motion words to read.
        classes: names of the classes.
        drop_path: of the encoder, where its family has it.
        seconds: how long a clip is, see `typical_seconds`.
    """
    encoder, transform = encoder_of(config.model)
    inner: Any = encoder.config
    if hasattr(inner, "drop_path"):
        inner = replace(inner, drop_path=drop_path)
    transform = replace(transform, size=config.size, shortest_edge=config.size, patch_size=None, max_patches=None)
    blocks = (inner.depth // 2,) if config.blocks is None else config.blocks
    made = ClassifierConfig(
        inner, tuple(classes), blocks, transform, config.frames, config.motion_words, round(seconds, 2)
    ).build()
    made.encoder.load_state_dict(encoder.state_dict())
    return made


def typical_seconds(clips: Clips) -> float:
    """Median length of a few clips, spread evenly over the list; 0 where none can be read."""
    found = []
    for index in evenly(len(clips), TIMED_CLIPS):
        with contextlib.suppress(DecodingError):  # whoever trains on it puts it on the list of those left out
            found.append(clips.decoder.seconds(clips.entries[index]))
    return float(np.median(found)) if found else 0.0


def computing_in(config: LabelledConfig, device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where the settings ask for it by name; "auto" leaves evaluation in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


def probabilities(
    model: ClipClassifier, clips: Clips, config: LabelledConfig, batch: int = 8
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Class probabilities of test clips, the mean over their views, at each operating point of the settings.

    Clips that cannot be read are left to the quarantine.

    Yields:
        indices of the clips of a batch, and float32 (points, clips, K).
    """
    device, indices = model.head.weight.device, list(clips.usable())
    for start in range(0, len(indices), batch):
        part = indices[start : start + batch]
        views = [clips.views(i, config.shape, views=config.test_views, crops=config.test_crops) for i in part]
        frames = torch.from_numpy(np.concatenate(views)).to(device)  # (B*V, T, S, S, 3)
        video = model.config.transform.normalised(frames)
        found = []
        for point in config.points:
            with torch.no_grad(), computing_in(config, device):
                logits = model(video, point=point).logits  # (B*V, K)
            shares = logits.float().softmax(dim=-1).unflatten(0, (len(part), -1)).mean(dim=1)  # (B, K)
            found.append(shares.cpu().numpy())
        yield part, np.stack(found)


def rows_of(model: ClipClassifier, clips: Clips | None, config: LabelledConfig) -> list[Row]:
    """Accuracy of test clips at each operating point, cost beside it; the quarantine is summed up on stderr."""
    if clips is None:
        return []
    found = list(probabilities(model, clips, config))
    print("\n".join(clips.quarantine.summary()), file=sys.stderr)
    indices = [index for part, _ in found for index in part]
    if not indices:
        raise DataError(f"none of the {len(clips)} test clips can be read; see {clips.quarantine.file}")
    scores, labels = np.concatenate([s for _, s in found], axis=1), np.array([clips.label_of(i) for i in indices])
    views = config.test_views * config.test_crops
    rows: list[Row] = []
    for point, score in zip(config.points, scores, strict=True):
        right = top_k_hits(score, labels)  # (N,)
        rows.append(
            {
                "point": f"{config.frames} x {config.size} px, {point.tokens or 'all'} tokens, {views} views",
                "gmacs": views * model.cost(frames=config.frames, size=config.size, point=point).gmacs,
                "accuracy": float(right.mean()),
                "top5": float(top_k_hits(score, labels, 5).mean()),
                "mean_class": mean_class_accuracy(right, labels),
                "clips": len(labels),
            }
        )
    return rows


def evenly(count: int, most: int) -> list[int]:
    """All of 0 to `count` - 1, or `most` of them, evenly spread."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


class LabelledRecipe(Recipe):
    """A recipe that trains a `ClipClassifier` on some labelled clips and scores it on others."""

    config: LabelledConfig

    @cached_property
    @abstractmethod
    def parts(self) -> Parts:
        """The clips."""

    @cached_property
    def seconds(self) -> float:
        """How long a training clip is; 0 where samples are cut out of clips."""
        return 0.0 if self.config.sampling == "dense" else typical_seconds(self.parts.train)

    @torch.no_grad()
    def solve(self, model: ClipClassifier, reader: MotionReader, augmentation: Augmentation) -> None:
        """Solve for the second reader of a model: words from the cubes of some clips, its layer from the test views and
        as many augmented samples, mirrored ones too, of all clips, or of as many as fit into `MOST_BYTES`."""
        clips, config, views = self.parts.train, self.config, self.config.test_views
        clips = Clips(
            clips.entries, replace(clips.reading, augmentation=augmentation), clips.quarantine,
            classes=clips.classes, cache=clips.cache, decoder=clips.decoder,
        )  # fmt: skip
        most = max(1, MOST_BYTES // (4 * reader.vectors.length * 2 * views))
        print(f"motion words: learned and read in {min(len(clips), most)} clips", file=sys.stderr, flush=True)
        try:
            self._learn_words(model, reader, clips)
        except ValueError as error:
            raise DataError(f"motion_words={config.motion_words}: {error}") from error
        rows, labels = [], []
        for number, index in enumerate(clips.usable(evenly(len(clips), most))):
            drawn = [clips.draw(number * views + view, config.seed, config.shape) for view in range(views)]
            both = [*clips.views(index, config.shape, views=views), *(sample.frames for sample in drawn)]
            rows.append(reader.read(model.config.transform.normalised(torch.from_numpy(np.stack(both)))))  # (2V, G)
            labels += [clips.label_of(index)] * views + [sample.label for sample in drawn]
        reader.solve(torch.cat(rows), torch.tensor(labels), views=2 * views)

    def _learn_words(self, model: ClipClassifier, reader: MotionReader, clips: Clips) -> None:
        config, found = self.config, list[tuple[Tensor, Tensor]]()
        draws = torch.Generator().manual_seed(config.seed)
        for index in clips.usable(evenly(len(clips), WORD_CLIPS)):
            frames = torch.from_numpy(clips.views(index, config.shape, views=config.test_views))
            kinds, places = (part.flatten(0, 1) for part in reader.cubes(model.config.transform.normalised(frames)))
            chosen = torch.randperm(len(kinds), generator=draws)[:WORD_CUBES]
            found.append((kinds[chosen], places[chosen]))
        if not found:
            raise ValueError(f"none of the {len(clips)} clips can be read; see {clips.quarantine.file}")
        reader.vectors.fit(torch.cat([k for k, _ in found]), torch.cat([p for _, p in found]), seed=config.seed)

    def evaluate(self, module: nn.Module) -> list[Row]:
        """A row per budget on the clips that were set apart."""
        assert isinstance(module, ClipClassifier)
        return rows_of(module, self.parts.test, self.config)

    def score(self, rows: Sequence[Row]) -> float:
        """Mean accuracy; nothing is scored where no clips were set apart."""
        return super().score(rows) if rows else 0.0


def smoke_settings(config: Settings) -> Settings:
    """`config` on twelve rendered clips of 64 pixels."""
    folder = cache_folder() / "smoke"
    data, cache = smoke_data(folder / "actions"), folder / "clips"
    return replace(config, data=data, cache=cache, folds=4, frames=4, size=56, short_side=64)


def smoke_data(folder: Path) -> Path:
    """A small folder of classes to try a recipe on: three motions, four rendered clips each. Written once."""
    for motion in ("left", "grow", "blink"):
        for number in range(4):
            path = folder / motion / f"{number}.mp4"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}")
                write_video(_scene(motion, number), partial, VideoFormat(64, 64, 12))
                partial.replace(path)
    return folder


def _scene(motion: str, number: int) -> Scene:
    rng = np.random.default_rng(number)
    while True:
        scene = sample_scene(rng, kind="single", aspect=1.0)
        if scene.content[0].motion == motion:
            return scene
