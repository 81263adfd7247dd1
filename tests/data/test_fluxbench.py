"""flux-bench: frozen, balanced, splits apart, and the evidence is where the tasks say."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from elastivid.core.errors import UnknownNameError
from elastivid.data.fluxbench import (
    BEATS,
    FIRST_CLASS,
    NUM_CLASSES,
    SPLITS,
    TASKS,
    TEST_CLIPS,
    draw_clip,
    fingerprint,
    frozen_clips,
    load_clips,
    pair_split,
    render_clip,
)
from elastivid.data.world import DIRECTIONS

FROZEN = "8634f009b7d444d4"
NUMBER = {task.name: number for number, task in enumerate(TASKS)}
LEVELS = [
    [32.78, 39.19, 27.53, 48.64, 32.9, 39.06, 27.64, 48.66],
    [60.53, 63.53, 60.57, 60.44, 61.41, 62.54, 60.52, 60.67],
    [60.39, 72.08, 69.61, 70.4, 60.36, 71.96, 70.33, 70.29],
    [67.85, 67.72, 67.69, 67.55, 67.67, 67.49, 67.65, 67.52],
    [95.08, 79.27, 72.94, 79.88, 95.15, 79.41, 72.98, 79.88],
    [9.87, 14.77, 14.2, 32.93, 9.97, 14.8, 14.09, 32.92],
    [71.99, 95.72, 86.9, 101.98, 71.9, 95.6, 86.99, 101.94],
    [70.77, 71.21, 93.83, 94.22, 70.67, 71.27, 93.94, 94.02],
    [37.05, 36.98, 40.22, 36.95, 36.96, 36.98, 39.76, 37.36],
    [47.34, 47.36, 47.43, 47.26, 47.39, 54.58, 47.33, 47.28],
    [80.05, 79.86, 79.98, 79.89, 79.91, 80.0, 80.03, 79.84],
    [83.97, 83.92, 84.05, 82.41, 83.8, 83.69, 83.18, 83.23],
    [90.36, 76.49, 78.55, 64.21, 90.33, 76.59, 78.58, 64.16],
    [42.47, 44.5, 49.81, 42.71, 42.58, 44.44, 49.81, 42.49],
]  # mean grey of the quarters of the first and the middle frame


def some(task, count=40, split="test"):
    return [draw_clip(split, NUMBER[task] + len(TASKS) * i) for i in range(count)]


def seen_runs(clip, frames=BEATS):
    """In how many separate spans of `frames` evenly spread frames a thing is seen."""
    times = (np.arange(frames) + 0.5) * clip.scene.duration_seconds / frames
    seen = np.array([bool(clip.scene.boxes_at(t)) for t in times])
    return int(seen[0]) + int((seen[1:] & ~seen[:-1]).sum())


def test_what_test_clips_show_is_frozen():
    """A change of the draws needs a new VERSION: results of before would be of other clips."""
    assert TEST_CLIPS >= 5000
    assert fingerprint(frozen_clips()) == FROZEN


def test_pixels_of_test_clips_are_frozen():
    """Within a grey level, which processors may differ by. A change of the renderer needs a new VERSION."""
    found = [quarter_means(draw_clip("test", index)) for index in range(len(LEVELS))]
    assert np.abs(np.array(found) - np.array(LEVELS)).max() <= 0.5


def quarter_means(clip):
    frames = render_clip(clip)[[0, 8]].astype(float)
    return [round(float(f[r : r + 32, c : c + 32].mean()), 2) for f in frames for r in (0, 32) for c in (0, 32)]


def test_clips_are_functions_of_split_and_index():
    assert draw_clip("test", 5) == draw_clip("test", 5)
    assert len({draw_clip(split, 5).scene for split in SPLITS}) == 3
    clip = draw_clip("train", 11)
    assert np.array_equal(render_clip(clip, 4, 32), render_clip(clip, 4, 32))
    assert render_clip(clip, 4, 32).shape == (4, 32, 32, 3)


def test_every_class_comes_equally_often():
    classes = Counter((i % len(TASKS), i // len(TASKS) % len(TASKS[i % len(TASKS)].classes)) for i in range(TEST_CLIPS))
    assert len(classes) == NUM_CLASSES
    for (task, _), count in classes.items():
        assert count == TEST_CLIPS / len(TASKS) / len(TASKS[task].classes)
    assert FIRST_CLASS[-1] + len(TASKS[-1].classes) == NUM_CLASSES


@pytest.mark.parametrize("split", SPLITS)
def test_splits_hold_pairs_of_attributes_apart(split):
    pairs = {"static": "colour and place", "small object": "colour and place", "order": "shape and place"}
    for index in range(140):
        clip = draw_clip(split, index)
        name = TASKS[clip.task].name
        pair = pairs.get(name, "shape and place" if name == "long silence" else "colour and shape")
        assert all(pair_split(thing, pair) == split for thing in clip.scene.things)


def test_answers_are_not_told_by_what_is_held_out():
    """Every answer goes with every colour (or shape) that the split draws for the task."""
    for split in SPLITS:
        clips = some("static", 400, split)
        colours = {label: {c.scene.things[0].colour for c in clips if c.label == label} for label in range(4)}
        assert len(set(map(frozenset, colours.values()))) == 1


def test_counting_shows_a_thing_as_often_as_it_says():
    for clip in some("counting"):
        assert seen_runs(clip, 4 * BEATS) == clip.label + 1
        assert seen_runs(clip) <= clip.label + 1


def test_order_is_the_order_of_first_sight():
    for clip in some("order"):
        starts = sorted(clip.scene.things, key=lambda thing: thing.from_seconds)
        assert " ".join(thing.colour for thing in starts) == TASKS[clip.task].classes[clip.label]
        assert all(a.to_seconds <= b.from_seconds + 1e-9 for a, b in pairwise(starts))


def test_direction_is_where_the_thing_ends_up():
    for clip in some("direction"):
        before, after = clip.scene.pose_at(0, 0.0), clip.scene.pose_at(0, 4.0)
        across, down = DIRECTIONS[TASKS[clip.task].classes[clip.label]]
        assert (after.x - before.x) * across + (after.y - before.y) * down >= 0.35


def test_speed_is_not_told_by_the_way():
    """Ways of all speeds are drawn alike; how many frames show the thing on its way differs."""
    ways, moving = {}, {}
    for clip in some("speed", 300):
        poses = [clip.scene.pose_at(0, t) for t in np.linspace(0, 4, 49)]
        places = np.array([(p.x, p.y) for p in poses])
        ways.setdefault(clip.label, []).append(np.abs(places[-1] - places[0]).sum())
        moving.setdefault(clip.label, []).append((np.abs(np.diff(places, axis=0)).sum(1) > 1e-6).sum())
    assert np.ptp([np.mean(v) for v in ways.values()]) < 0.03
    assert max(moving[0]) < min(moving[1])
    assert max(moving[1]) < min(moving[2])


def test_long_silence_shows_its_thing_for_one_beat():
    for clip in some("long silence"):
        *always, shown = clip.scene.things
        assert shown.colour == TASKS[clip.task].classes[clip.label]
        assert shown.to_seconds - shown.from_seconds == pytest.approx(clip.scene.duration_seconds / BEATS)
        assert all(thing.colour not in TASKS[clip.task].classes for thing in always)


def test_things_stay_in_the_frame():
    for index in range(70):
        scene = draw_clip("test", index).scene
        for seconds in np.linspace(0, scene.duration_seconds, 9):
            for thing in range(len(scene.things)):
                pose = scene.pose_at(thing, float(seconds))
                assert pose.radius <= min(pose.x, pose.y, 1 - pose.x, 1 - pose.y) + 1e-9


def test_rendered_clips_are_kept_and_half_written_ones_are_not_used(tmp_path):
    name = "flux-bench-1-validation-15x4x32"
    (tmp_path / f"{name}.1.partial").write_bytes(b"half")
    clips = load_clips(tmp_path, "validation", 15, 4, 32)
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.1.partial", f"{name}.npy"}
    for index in range(15):
        clip = draw_clip("validation", index)
        assert (clip.task, clip.label) == (clips.tasks[index], clips.labels[index])
    assert np.array_equal(clips.frames[9], render_clip(draw_clip("validation", 9), 4, 32))
    again = load_clips(tmp_path, "validation", 15, 4, 32)
    assert isinstance(again.frames, np.memmap)
    assert np.array_equal(again.frames, clips.frames)


def test_errors_say_what_is_allowed():
    with pytest.raises(UnknownNameError, match="test"):
        draw_clip("tests", 0)
    with pytest.raises(ValueError, match=">= 0, got -1"):
        draw_clip("test", -1)
    with pytest.raises(ValueError, match="frames must be >= 1, got 0"):
        render_clip(draw_clip("test", 0), 0)
