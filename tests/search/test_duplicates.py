"""Videos that show the same are found whatever was done to them, and others are not."""

from __future__ import annotations

import shutil

import av
import numpy as np
import pytest

from elastivid.data.synthetic import render_frames, sample_scene
from elastivid.search.duplicates import (
    CROPS,
    SIDE,
    Fingerprint,
    describe,
    find_matches,
    frame_times,
    group,
)
from elastivid.search.index import Index
from elastivid.search.prints import load_or_read

FPS = 12


def scene_frames(seed, seconds=4.0, height=96, width=128):
    times = np.arange(round(seconds * FPS)) / FPS
    return render_frames(sample_scene(np.random.default_rng(seed)), times, height, width)


def write(path, frames, crf=20):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def noise_print(seed, count=20, start=0.0, step=0.5):
    pictures = np.random.default_rng(seed).integers(0, 255, (count, SIDE, SIDE), dtype=np.uint8)
    return Fingerprint(start + np.arange(count) * step, pictures)


def test_descriptors_ignore_brightness_and_contrast():
    picture = np.random.default_rng(0).integers(40, 120, (1, SIDE, SIDE), dtype=np.uint8)
    other = (picture.astype(int) * 2 - 30).astype(np.uint8)
    assert (describe(picture, 0.0) * describe(other, 0.0)).sum() == pytest.approx(1.0, abs=1e-3)
    assert np.linalg.norm(describe(picture, CROPS[-1]), axis=1) == pytest.approx(1.0, abs=1e-5)


def test_a_crop_is_found_by_cropping_the_other_one():
    whole = np.random.default_rng(1).integers(0, 255, (1, 2 * SIDE, 2 * SIDE)).astype(np.float32)
    smooth = whole.reshape(1, 6, 8, 6, 8).mean((2, 4)).repeat(8, 1).repeat(8, 2)  # blocks of 8 pixels
    small = smooth.reshape(1, SIDE, 2, SIDE, 2).mean((2, 4)).astype(np.uint8)
    edge = round(0.08 * 2 * SIDE)
    inner = smooth[:, edge : 2 * SIDE - edge, edge : 2 * SIDE - edge]
    rows = (np.arange(SIDE) + 0.5) * inner.shape[1] / SIDE
    cropped = inner[:, rows.astype(int)][:, :, rows.astype(int)].astype(np.uint8)
    scores = [float((describe(small, crop) * describe(cropped, 0.0)).sum()) for crop in CROPS]
    assert CROPS[int(np.argmax(scores))] == 0.08
    assert max(scores) > scores[0] + 0.05


def test_a_shift_in_time_is_measured_and_strangers_do_not_match():
    long = noise_print(0, 40)
    part = Fingerprint(long.times_seconds[10:22] - 5.0, long.pictures[10:22])
    matches = find_matches({"long": long, "part": part, "other": noise_print(1)})
    assert [(m.first, m.second) for m in matches] == [("long", "part")]
    assert matches[0].shift_seconds == pytest.approx(-5.0)
    assert matches[0].score == pytest.approx(1.0, abs=1e-3)
    assert matches[0].share == pytest.approx(1.0)


def test_a_scene_that_is_only_quoted_is_no_duplicate():
    a, b = noise_print(0, 40), noise_print(1, 40)
    b.pictures[:10] = a.pictures[:10]  # a quarter of it
    assert find_matches({"a": a, "b": b}) == []


def test_videos_without_contrast_match_nothing():
    black = Fingerprint(np.arange(20) * 0.5, np.zeros((20, SIDE, SIDE), dtype=np.uint8))
    assert find_matches({"a": black, "b": black}) == []
    assert find_matches({}) == []


def test_groups_join_whatever_is_connected():
    matches = find_matches({name: noise_print(0) for name in "abc"} | {"z": noise_print(9)})
    assert group(["z", "c", "a", "b"], matches) == [["c", "a", "b"]]


def test_times_are_two_a_second_within_bounds():
    assert len(frame_times(2.0)) == 32
    assert np.allclose(np.diff(frame_times(30.0)), 0.5)
    assert len(frame_times(7200.0)) == 256
    assert 0 < frame_times(1.0)[0] < frame_times(1.0)[-1] < 1.0


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, seed in (("one", 3), ("two", 4)):
        frames = scene_frames(seed)
        write(folder / f"{name}.mp4", frames)
        write(folder / f"{name}_small.mp4", frames[:, ::2, ::2], crf=32)
        write(folder / f"{name}_crop.mp4", frames[:, 6:-6, 8:-8])
        write(folder / f"{name}_trim.mp4", frames[8:40])
        write(folder / f"{name}_lead.mp4", np.concatenate([np.zeros_like(frames[:18]), frames]))
    write(folder / "alone.mp4", scene_frames(5))
    shutil.copy(folder / "alone.mp4", folder / "alone_copy.mp4")
    return folder


def test_an_index_names_its_duplicates_and_remembers_what_it_saw(library, tmp_path):
    (library / "broken.mp4").write_bytes((library / "one.mp4").read_bytes()[:900])
    with Index.open(tmp_path / "l.ev") as index:
        index.add(library)
        found = index.duplicates()
        again = index.duplicates()
    names = [sorted(path.rpartition("/")[2] for m in members for path in m.paths) for members in found.groups]
    assert sorted(names) == [
        ["alone.mp4", "alone_copy.mp4"],
        *([f"{n}{end}.mp4" for end in ("", "_crop", "_lead", "_small", "_trim")] for n in ("one", "two")),
    ]
    assert found.read == found.files == 11
    assert again.read == 0
    assert again.groups == found.groups
    best = next(members for members in found.groups if len(members) == 5)
    assert best[0].paths[0].endswith("_lead.mp4")
    trimmed = next(m for m in best if m.paths[0].endswith("_trim.mp4"))
    assert trimmed.shift_seconds == pytest.approx(-(18 + 8) / FPS, abs=0.15)


def test_damaged_fingerprints_are_made_again_and_lost_files_reported(library, tmp_path):
    with Index.open(tmp_path / "l.ev") as index:
        index.add(library)
        index.duplicates()
        kept = sorted((index.path / "prints").iterdir())
        kept[0].write_bytes(b"damaged")
        assert index.duplicates().read == 1
        records = [r for r in index.files() if r.path.endswith("two.mp4")]
    (library / "two.mp4").write_bytes(b"no video any more")
    prints = load_or_read(records, tmp_path / "fresh")
    assert prints.by_content == {}
    assert list(prints.problems) == [records[0].content]
