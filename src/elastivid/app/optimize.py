"""What `elastivid optimize` does, prints and draws."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import MissingExtraError, PlanError

if TYPE_CHECKING:
    from elastivid.planning.optimize import Optimum, Scorer, Space

WORLD = "world"  # the name of rendered scenes, where a list or folder is expected
SHOWN = 8


def numbers_of(text: str, name: str) -> tuple[int, ...]:
    """Whole numbers "4,8,12" or ranges "4:24:2" (first, last, step).

    Raises:
        PlanError: it is neither.
    """
    try:
        parts = [int(part) for part in text.replace(":", ",").split(",")]
        if ":" not in text:
            return tuple(parts)
        first, last, step = parts
        return tuple(range(first, last + 1, step))
    except ValueError as error:
        raise PlanError(f"{name} must be numbers such as 4,8,12 or a range such as 4:24:2, got {text!r}") from error


def scorer_of(model: str, data: str, space: Space, *, scenes: int, limit: int | None) -> Scorer:
    """A model on a validation set.

    Args:
        model: shipped name, weights file, or file of a classifier.
        data: "world", or a list or folder of labelled clips.
        space: what may be chosen; clips are decoded for its largest size.
        scenes: per attribute, for "world".
        limit: most clips, evenly taken from the list; `None` for all.
    """
    from elastivid.evaluate.scoring import LabelledChoices, WorldChoices
    from elastivid.models.towers import TwoTowers
    from elastivid.weights.load import load

    if data == WORLD:
        dual = load(model)
        if not isinstance(dual, TwoTowers):
            raise PlanError(f"{model} cannot be asked about rendered scenes; take a dual encoder of ours, such as nano")
        return WorldChoices(dual, scenes)
    from elastivid.data.augment import Augmentation
    from elastivid.data.cache import ClipCache
    from elastivid.data.clips import ClipReading, Clips
    from elastivid.data.listing import read_entries
    from elastivid.data.quarantine import Quarantine
    from elastivid.data.sampling import Segments
    from elastivid.evaluate.classifiers import open_classifier
    from elastivid.evaluate.names import Names, spoken
    from elastivid.planning.profile import cache_folder
    from elastivid.weights.classifier import is_classifier

    entries = [entry for entry in read_entries(Path(data)) if entry.label]
    if not entries:
        raise PlanError(f"no clip of {data} has a label; accuracy needs them")
    entries = entries[:: max(1, len(entries) // limit)][:limit] if limit else entries
    folder = cache_folder() / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    reading = ClipReading(Segments(), Augmentation(), max(space.sizes), max(32, max(space.frames)))
    quarantine = Quarantine(folder / "quarantine.jsonl", len(entries), 0.05)
    clips = Clips(entries, reading, quarantine, cache=ClipCache(folder, 20 << 30))
    names = Names() if is_classifier(model) else Names(tuple(spoken(label) for label in clips.classes))
    key = "|".join(f"{entry.path}:{entry.path.stat().st_size}" for entry in entries if entry.path.is_file())
    classifier = open_classifier(model, names)
    called = None if is_classifier(model) else spoken
    return LabelledChoices(classifier, clips, hashlib.sha256(key.encode()).hexdigest()[:16], called=called)


def lines_of_optimum(found: Optimum, measured: int) -> list[str]:
    """Best point, base, gain on clips that did not choose, and the best rows."""
    lines = [
        f"best      {found.best}: {found.accuracy}",
        f"unmasked  {found.base}: {found.base_accuracy}",
        f"gain      {found.gain} on {found.reported_on} clips; {found.chosen_on} others chose",
        f"points    {len(found.rows)} looked at, {measured} measured now",
        "",
        "frames  size  width  accuracy  GMACs",
    ]
    for row in found.rows[:SHOWN]:
        point = row.point
        width = str(point.width or "full")
        lines.append(f"{point.frames:6d}  {point.size:4d}  {width:>5}  {100 * row.accuracy:7.1f}%  {row.gmacs:5.2f}")
    return lines


def values_of_optimum(found: Optimum) -> dict[str, Any]:
    """The same as JSON values."""
    return asdict(found)


def draw_surface(found: Optimum, path: Path) -> None:
    """Accuracy over frames and size as a picture, a panel for each width.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    import numpy as np

    widths = sorted({row.point.width for row in found.rows}, reverse=True)
    frames = sorted({row.point.frames for row in found.rows})
    sizes = sorted({row.point.size for row in found.rows})
    figure = Figure(figsize=(1.2 + 4.2 * len(widths), 1.4 + 0.5 * len(frames)), layout="constrained")
    low, high = min(row.accuracy for row in found.rows), max(row.accuracy for row in found.rows)
    for panel, width in enumerate(widths, start=1):
        axes = figure.add_subplot(1, len(widths), panel)
        table = np.full((len(frames), len(sizes)), np.nan)
        for row in found.rows:
            if row.point.width == width:
                table[frames.index(row.point.frames), sizes.index(row.point.size)] = 100 * row.accuracy
        image = axes.imshow(table, origin="lower", aspect="auto", vmin=100 * low, vmax=100 * high)
        for (y, x), value in np.ndenumerate(table):
            if not np.isnan(value):
                shade = "white" if value < 100 * (low + high) / 2 else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=shade, fontsize=8)
        for point, colour in ((found.base, "white"), (found.best, "red")):
            if point.width == width:
                place = (sizes.index(point.size) - 0.5, frames.index(point.frames) - 0.5)
                axes.add_patch(_frame(place, colour))
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_yticks(range(len(frames)), [str(count) for count in frames])
        axes.set_xlabel("side in pixels")
        axes.set_ylabel("frames")
        what = f"{found.best.tokens} tokens" + (f", width {width}" if width else "")
        axes.set_title(f"{what}\nbest in red, unmasked in white", fontsize=10)
    figure.colorbar(image, ax=figure.axes, label="accuracy in %")
    figure.savefig(path, dpi=120)


def _frame(corner: tuple[float, float], colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=2)


def say_point(done: int, what: str) -> None:
    """Say on stderr which point is measured."""
    print(f"measuring {done + 1}: {what}", file=sys.stderr, flush=True)
