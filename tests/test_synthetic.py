"""The synthetic world: repeatable, truthful, held-out compositions kept out, files that decode to what was drawn."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from elastivid.core.errors import UnknownNameError
from elastivid.data.captions import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS
from elastivid.data.demo import (
    DEMO_QUERIES,
    demo_library,
    distractor_contents,
    ground_truth,
    plan_demo,
)
from elastivid.data.synthetic import (
    Phrase,
    VideoFormat,
    canonical_caption,
    captions,
    compose_parts,
    compose_scene,
    hard_negatives,
    is_held_out,
    negative_contents,
    render_frames,
    sample_content,
    sample_scene,
    swapped,
    write_video,
)
from elastivid.data.world import COLOURS, MOTIONS, ROUND_SHAPES, SHAPES, Camera, is_possible

WINDOW_TIMES = np.arange(8) * 0.5 + 0.25
RED_CIRCLE_LEFT = (Phrase("red", "circle", "left", "fast"),)

FINGERPRINT_SCRIPT = """
import hashlib, numpy as np
from elastivid.data.synthetic import captions, hard_negatives, render_frames, sample_scene
rng, digest = np.random.default_rng({seed}), hashlib.sha256()
for kind in ("single", "sequence", "pair"):
    scene = sample_scene(rng, kind=kind)
    digest.update(render_frames(scene, [0.25, 2.0, 3.9], 56).tobytes())
    digest.update(repr((scene, captions(scene, rng), hard_negatives(scene, rng, 3))).encode())
print(digest.hexdigest())
"""


def _fingerprint(seed: int) -> str:
    command = [sys.executable, "-c", FINGERPRINT_SCRIPT.format(seed=seed)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _scenes(count: int, *, split: str = "train", seed: int = 0, kind: str | None = None):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, split, kind) for _ in range(count)]


def _pixels_of_things(scene, seconds: float, size: int) -> np.ndarray:
    """Where the captioned things change the picture: bool (H, W)."""
    empty = replace(scene, things=(), events=())
    return np.any(render_frames(scene, [seconds], size)[0] != render_frames(empty, [seconds], size)[0], axis=-1)


# ---- repeatable


def test_same_seed_gives_same_frames_and_words_in_another_process():
    assert _fingerprint(5) == _fingerprint(5)
    assert _fingerprint(5) != _fingerprint(6)


def test_frame_depends_on_its_own_time_alone():
    for scene in _scenes(6, seed=1):
        together = render_frames(scene, WINDOW_TIMES, 64)
        alone = np.concatenate([render_frames(scene, [t], 64) for t in WINDOW_TIMES[::-1]])[::-1]
        assert together.shape == (8, 64, 64, 3)
        np.testing.assert_array_equal(together, alone)


# ---- truthful


@pytest.mark.parametrize("kind", ["single", "sequence", "pair", "long"])
def test_boxes_bound_the_pixels_of_things(kind):
    size, seen = 96, 0
    for scene in _scenes(8, kind=kind, seed=2):
        for seconds in (0.3, 1.6, 2.9, 3.8):
            mask = _pixels_of_things(scene, seconds, size)
            inside = np.zeros_like(mask)
            for box in scene.boxes_at(seconds):
                rows = slice(int(box.top * size), int(np.ceil(box.bottom * size)) + 1)
                columns = slice(int(box.left * size), int(np.ceil(box.right * size)) + 1)
                inside[rows, columns] = True
                assert mask[rows, columns].any()
            assert not np.any(mask & ~inside)
            seen += int(mask.any())
    assert seen > 20


@pytest.mark.parametrize(("motion", "dx", "dy"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)])
def test_things_move_where_the_caption_says(motion, dx, dy):
    scene = compose_scene((Phrase("white", "star", motion, "fast"),), np.random.default_rng(3))
    scene = replace(scene, camera=Camera("still"))
    centres = [np.argwhere(_pixels_of_things(scene, t, 96)).mean(axis=0) for t in (0.0, 3.99)]
    moved_down, moved_right = centres[1] - centres[0]
    along, across = (moved_right * dx, moved_down) if dx else (moved_down * dy, moved_right)
    assert along > 0.3 * 96
    assert abs(across) < 2


def test_size_and_visibility_follow_the_motion():
    rng = np.random.default_rng(4)

    def areas(motion, times):
        scene = compose_scene((Phrase("blue", "heart", motion),), rng, aspect=1.0)
        return [int(_pixels_of_things(scene, t, 96).sum()) for t in times]

    first, last = areas("grow", (0.0, 3.99))
    assert last > 1.8 * first
    first, last = areas("shrink", (0.0, 3.99))
    assert first > 1.8 * last
    first, last = areas("appear", (0.0, 3.99))
    assert first == 0
    assert last > 100
    first, last = areas("disappear", (0.0, 3.99))
    assert first > 100
    assert last == 0
    blinking = areas("blink", WINDOW_TIMES)
    assert min(blinking) == 0
    assert max(blinking) > 100
    assert np.ptp(areas("still", WINDOW_TIMES)) < 0.25 * max(areas("still", [2.0]))


def test_things_have_their_colour_and_stay_in_the_frame():
    for scene in _scenes(40, seed=5):
        for index, thing in enumerate(scene.things):
            assert np.abs(np.array(thing.rgb) - COLOURS[thing.colour]).max() <= 10
            for seconds in WINDOW_TIMES:
                pose = scene.pose_at(index, seconds)
                assert pose.radius <= pose.x <= scene.aspect - pose.radius
                assert pose.radius <= pose.y <= 1 - pose.radius


def test_rendered_shapes_differ_from_each_other():
    masks = {}
    for shape in SHAPES:
        scene = compose_scene((Phrase("red", shape, "still"),), np.random.default_rng(6), aspect=1.0)
        thing = replace(scene.things[0], angle=0.0, radius=0.3, x=0.5, y=0.5)
        masks[shape] = _pixels_of_things(replace(scene, things=(thing,), camera=Camera("still")), 1.0, 80)
    for one in SHAPES:
        for other in SHAPES:
            union = (masks[one] | masks[other]).sum()
            assert (one == other) == ((masks[one] & masks[other]).sum() > 0.88 * union), (one, other)


def test_events_of_a_short_scene_follow_each_other_inside_the_window():
    for scene in _scenes(60, seed=7):
        ends = [0.0]
        for event in scene.events:
            assert event.start_seconds >= ends[-1] - 1e-9
            assert 1.5 <= event.end_seconds - event.start_seconds <= 4.0
            ends.append(event.end_seconds)
        assert ends[-1] <= scene.duration_seconds == 4.0


def test_long_scenes_tell_what_happens_when():
    contents = (RED_CIRCLE_LEFT, (), (Phrase("blue", "star", "spin"), Phrase("green", "ring", "bounce")))
    scene = compose_parts(contents, np.random.default_rng(8))
    assert scene.duration_seconds == 12.0
    assert scene.parts == ((0.0, 4.0), (4.0, 8.0), (8.0, 12.0))
    assert canonical_caption(scene.content_for(0, 4)) == "a red circle moves left"
    assert canonical_caption(scene.content_for(4, 8)) == "nothing happens"
    assert canonical_caption(scene.content_for(8, 12)) == "a blue star spins, then a green ring bounces"
    assert scene.boxes_at(6.0) == []
    assert [box.thing for box in scene.boxes_at(11.0)] == [1, 2]
    assert not _pixels_of_things(scene, 6.0, 64).any()


def test_squashing_keeps_places_as_fractions_of_the_frame():
    scene = compose_scene(RED_CIRCLE_LEFT, np.random.default_rng(9), aspect=4 / 3)
    wide, square = render_frames(scene, [2.0], 120, 160)[0], render_frames(scene, [2.0], 120, 120)[0]
    red = [np.argwhere((p[..., 0] > 180) & (p[..., 1] < 80)).mean(axis=0) / p.shape[:2] for p in (wide, square)]
    np.testing.assert_allclose(red[0], red[1], atol=0.01)


# ---- held out


def test_training_never_shows_a_held_out_composition():
    shown = {"colour": set(), "shape": set(), "motion": set()}
    for scene in _scenes(2000, seed=10):
        for phrase in scene.content:
            assert not is_held_out(phrase.colour, phrase.shape, phrase.motion)
            for name, values in shown.items():
                values.add(getattr(phrase, name))
        for thing in scene.distractors:
            assert thing.colour == "grey" or not is_held_out(thing.colour, thing.shape, "still")
    assert shown == {"colour": set(COLOURS), "shape": set(SHAPES), "motion": set(MOTIONS)}


def test_a_seventh_of_the_pairs_is_held_out():
    colour_shape = [all(is_held_out(c, s, m) for m in MOTIONS) for c in COLOURS for s in SHAPES]
    shape_motion = [all(is_held_out(c, s, m) for c in COLOURS) for s in SHAPES for m in MOTIONS]
    assert 0.12 < np.mean(colour_shape) < 0.18
    assert 0.12 < np.mean(shape_motion) < 0.18


def test_held_out_split_always_shows_one():
    for kind in ("single", "sequence", "pair", "long"):
        for scene in _scenes(30, split="held_out", seed=11, kind=kind):
            assert any(is_held_out(p.colour, p.shape, p.motion) for p in scene.content)


# ---- words


def _differences(one, other) -> set[str]:
    names = set()
    for a, b in zip(one, other, strict=True):
        names |= {name for name in ("colour", "shape", "motion") if getattr(a, name) != getattr(b, name)}
        if a.speed and b.speed and a.speed != b.speed:
            names.add("speed")
    return names


@pytest.mark.parametrize("kind", ["single", "sequence", "pair"])
def test_negatives_differ_in_exactly_one_attribute(kind):
    rng = np.random.default_rng(12)
    seen = set()
    for _ in range(150):
        content = sample_content(rng, "train", kind)
        for attribute, negative in negative_contents(content, rng, 5):
            seen.add(attribute)
            assert is_possible(negative)
            assert not any(is_held_out(p.colour, p.shape, p.motion) for p in negative)
            if attribute == "order":
                assert negative == content[::-1] == swapped(content)
            else:
                assert _differences(content, negative) == {attribute}
                assert sum(a.motion != b.motion for a, b in zip(content, negative, strict=True)) <= 1
    assert seen == {"colour", "shape", "motion", "speed"} | ({"order"} if kind != "single" else set())


def test_captions_name_every_attribute_in_the_right_order():
    rng = np.random.default_rng(13)

    def find(text, words):
        places = [(text.find(word), -len(word)) for word in words if word in text]
        return min(places)[0] if places else -1

    for kind in ("single", "sequence", "pair"):
        for _ in range(200):
            content = sample_content(rng, "all", kind)
            for text in (canonical_caption(content), captions(content, rng)):
                assert "{" not in text
                assert not any(f" a {vowel}" in f" {text}" for vowel in "aeiou"), text
                for phrase in content:
                    assert find(text, COLOUR_WORDS[phrase.colour]) >= 0
                    assert find(text, SHAPE_WORDS[phrase.shape]) >= 0
                    forms = [form for pair in MOTION_WORDS[phrase.motion] for form in pair]
                    assert find(text, forms) >= 0, (text, phrase)


def test_order_is_said_in_different_ways_and_always_truly():
    rng = np.random.default_rng(14)
    content = (Phrase("red", "square", "spin"), Phrase("red", "square", "grow"))
    texts = {captions(content, rng) for _ in range(200)}
    assert len(texts) > 60
    spin, grow = ([f for pair in MOTION_WORDS[name] for f in pair] for name in ("spin", "grow"))
    for text in texts:
        spin_first = min(text.find(f) for f in spin if f in text) < min(text.find(f) for f in grow if f in text)
        reverses = (" after " in text and not text.startswith("after")) or text.startswith("before ")
        assert spin_first != reverses, text
    reversed_words = sum(" after " in text or text.startswith("before ") for text in texts)
    assert reversed_words > 5


def test_speeds_are_said_only_on_demand():
    rng = np.random.default_rng(15)
    assert canonical_caption(RED_CIRCLE_LEFT) == "a red circle moves left"
    always = {captions(RED_CIRCLE_LEFT, rng, speed_probability=1.0) for _ in range(30)}
    never = {captions(RED_CIRCLE_LEFT, rng, speed_probability=0.0) for _ in range(30)}
    assert all(any(word in text for word in ("quickly", "fast", "rapidly")) for text in always)
    assert not any(word in text for text in never for word in ("quickly", "fast", "rapidly"))
    assert canonical_caption((Phrase("orange", "star", "spin"),)) == "an orange star spins"


def test_bad_requests_say_what_is_allowed():
    rng = np.random.default_rng(16)
    with pytest.raises(UnknownNameError, match="unknown colour 'teal'; known: blue, cyan"):
        Phrase("teal", "star", "spin")
    with pytest.raises(UnknownNameError, match="Did you mean 'bounce'"):
        is_held_out("red", "star", "bounces")
    with pytest.raises(ValueError, match="split must be one of"):
        sample_scene(rng, "test")
    with pytest.raises(ValueError, match="kind must be one of"):
        sample_scene(rng, kind="triple")
    with pytest.raises(ValueError, match="one or two phrases"):
        compose_scene((), rng)
    with pytest.raises(ValueError, match="one or two phrases"):
        compose_scene((Phrase("red", next(iter(ROUND_SHAPES)), "spin"),), rng)
    with pytest.raises(ValueError, match="duration_seconds must be >= 4"):
        compose_scene(RED_CIRCLE_LEFT, rng, duration_seconds=2.0)
    with pytest.raises(ValueError, match="aspect"):
        compose_scene(RED_CIRCLE_LEFT, rng, aspect=0.2)
    with pytest.raises(ValueError, match="at least 8 pixels"):
        render_frames(sample_scene(rng), [0.0], 4)
    with pytest.raises(ValueError, match="one of its parts"):
        hard_negatives((), rng, 2)
    with pytest.raises(ValueError, match="codec must be one of"):
        VideoFormat(codec="h263")
    with pytest.raises(ValueError, match="even sizes"):
        VideoFormat(height=241)
    with pytest.raises(ValueError, match="count must be >= 100"):
        plan_demo(20)


# ---- files


def decoded_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time and RGB picture of every frame."""
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize(
    ("suffix", "video_format"),
    [
        (".mp4", VideoFormat(120, 160, 24)),
        (".avi", VideoFormat(121, 161, 25, "mpeg4")),
        (".webm", VideoFormat(91, 121, 30, "libvpx-vp9")),
        (".mov", VideoFormat(91, 121, 15, "mjpeg")),
    ],
)
def test_files_decode_to_what_was_drawn(tmp_path, suffix, video_format):
    scene = sample_scene(np.random.default_rng(17), kind="pair", aspect=4 / 3)
    path = tmp_path / f"scene{suffix}"
    write_video(scene, path, video_format)
    decoded = decoded_frames(path)
    again = tmp_path / f"again{suffix}"
    write_video(scene, again, video_format)
    if video_format.codec == "libx264":  # about once in a hundred files of one process it chooses otherwise
        repeated = decoded_frames(again)
        assert [time for time, _ in repeated] == [time for time, _ in decoded]
        apart = [np.abs(a.astype(int) - b).mean() for (_, a), (_, b) in zip(decoded, repeated, strict=True)]
        assert max(apart) < 1.0
    else:
        assert again.read_bytes() == path.read_bytes()
    assert len(decoded) == round(4 * video_format.fps)
    times = np.array([time for time, _ in decoded])
    np.testing.assert_allclose(times, np.arange(len(decoded)) / video_format.fps, atol=2e-3)
    for k in (0, len(decoded) // 2, len(decoded) - 1):
        drawn = render_frames(scene, [k / video_format.fps], video_format.height, video_format.width)[0]
        error = np.abs(decoded[k][1].astype(int) - drawn).mean()
        assert error < 9, f"frame {k} differs by {error:.1f} levels"


def test_variable_rate_keeps_the_given_times(tmp_path):
    times = np.cumsum(np.random.default_rng(18).uniform(0.02, 0.1, 30))
    write_video(sample_scene(np.random.default_rng(18)), tmp_path / "scene.mp4", times_seconds=times)
    with av.open(str(tmp_path / "scene.mp4")) as container:
        decoded = np.array([frame.time for frame in container.decode(video=0)])
    np.testing.assert_allclose(np.diff(decoded), np.diff(times), atol=2e-4)
    with pytest.raises(ValueError, match="ascending"):
        write_video(sample_scene(np.random.default_rng(18)), tmp_path / "x.mp4", times_seconds=[1.0, 0.5])


# ---- demo library


def test_demo_queries_are_frozen():
    """Queries were fixed before the first training; changing one invalidates every published hit rate."""
    told = json.dumps([(q.text, q.attribute, repr(q.content), q.instead) for q in DEMO_QUERIES])
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "79dc67e1f1737ed0"


def test_each_demo_query_has_one_target_and_three_distractors():
    videos = plan_demo()
    assert len(videos) >= 100
    assert len({video.file for video in videos}) == len(videos)
    assert [q.attribute for q in DEMO_QUERIES] == sorted(
        (q.attribute for q in DEMO_QUERIES), key=["colour", "shape", "motion", "order"].index
    )
    assert sum(query.is_held_out for query in DEMO_QUERIES) >= 6
    for number, query in enumerate(DEMO_QUERIES):
        answers = [v for v in videos if v.scene is not None and query.is_answered_by(v.scene)]
        assert [v.target_of for v in answers] == [number], query.text
        target = answers[0].scene
        distractors = [v.scene for v in videos if v.distractor_of == number]
        assert len(distractors) >= 3
        for scene, content in zip(distractors, distractor_contents(query), strict=False):
            assert len(content) == len(query.content)
            if query.attribute == "order":
                told = [[(p.colour, p.shape, p.motion) for p in s.content] for s in (target, scene)]
                assert told[0] == told[1][::-1]
            else:
                assert _differences(target.content, scene.content) == {query.attribute}
                assert (scene.background, scene.camera) == (target.background, target.camera)


def test_small_part_of_the_library_renders_with_its_ground_truth(tmp_path, monkeypatch):
    videos = plan_demo()
    bad = [v for v in videos if v.problem]
    chosen = [*bad, next(v for v in videos if v.target_of == 0)]
    monkeypatch.setattr("elastivid.data.demo.plan_demo", lambda count, seed: chosen)
    monkeypatch.setattr("elastivid.data.demo.ground_truth", lambda videos: {"videos": [v.file for v in videos]})
    demo_library(tmp_path, processes=1)
    assert json.loads((tmp_path / "ground_truth.json").read_text())["videos"] == [v.file for v in chosen]
    with av.open(str(tmp_path / chosen[-1].file)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6 * 24
    readable = 0
    for video in bad:
        try:
            with av.open(str(tmp_path / video.file)) as container:
                readable += len(container.streams.video)
        except av.error.InvalidDataError:
            assert video.problem.startswith("truncated")
    assert len(bad) == 2
    assert readable == 0


def test_ground_truth_is_json_with_times_and_boxes():
    videos = plan_demo()
    truth = json.loads(json.dumps(ground_truth(videos)))
    assert len(truth["queries"]) == 20
    assert all(len(query["distractors"]) >= 3 for query in truth["queries"])
    described = {video["file"]: video for video in truth["videos"]}
    for query in truth["queries"]:
        assert described[query["target"]]["boxes"]
    many_parts = [video for video in truth["videos"] if len(video.get("parts", [])) >= 3]
    assert len(many_parts) >= 10
    for video in many_parts:
        assert video["parts"][-1]["end_seconds"] == video["duration_seconds"]
        assert "nothing happens" in [part["caption"] for part in video["parts"]]
