"""Moments cut into files of their own."""

from __future__ import annotations

import av
import numpy as np
import pytest

from elastivid.data.render import iterate_frames
from elastivid.data.synthetic import VideoFormat, sample_scene, write_video
from elastivid.search.cut import cut_moments
from elastivid.search.moments import Moment
from elastivid.search.records import LibraryError
from elastivid.video.errors import VideoError
from elastivid.video.reader import VideoReader


def frames_of(path):
    with VideoReader(path) as reader:
        clips = list(reader.iterate())
    return np.concatenate([c.times_seconds for c in clips]), [c.frames[0] for c in clips]


def moment(path, start, end):
    return Moment(str(path), start, end, 0.5, (start + end) / 2)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "scene.mp4"
    write_video(sample_scene(np.random.default_rng(0)), path, VideoFormat(96, 128, 24, "libx264", 1.0))
    return path


def test_a_copy_starts_at_a_keyframe_and_changes_no_pixel(video, tmp_path):
    (cut,) = cut_moments([moment(video, 1.5, 2.5)], tmp_path)
    assert cut.copied
    assert cut.start_seconds == pytest.approx(1.0, abs=1e-3)
    times, frames = frames_of(video)
    kept = np.flatnonzero((times >= cut.start_seconds - 1e-3) & (times < 2.5 - 1e-6))
    cut_times, cut_frames = frames_of(cut.path)
    assert len(kept) <= len(cut_frames) <= len(kept) + 4
    assert np.allclose(cut_times[: len(kept)], times[kept] - times[kept[0]], atol=2e-3)
    assert all(np.array_equal(frames[i], frame) for i, frame in zip(kept, cut_frames, strict=False))


def test_a_copy_from_an_open_group_holds_no_picture_that_needs_what_was_cut_off(tmp_path):
    path, settings = tmp_path / "open.mp4", "open-gop=1:bframes=3:b-adapt=0:keyint=24:min-keyint=24:scenecut=0"
    scene = sample_scene(np.random.default_rng(0))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=24, options={"x264-params": settings})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for picture in iterate_frames(scene, np.arange(96) / 24, 96, 128):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    with av.open(str(path)) as container:
        stamps = [(p.pts, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size]
    key = next(number for number, (_, whole) in enumerate(stamps) if whole and number)
    assert stamps[key + 1][0] < stamps[key][0]  # the group is open: a picture after the keyframe is shown before it
    (cut,) = cut_moments([moment(path, 1.5, 2.5)], tmp_path / "cuts")
    assert cut.copied
    with av.open(cut.path) as container:
        assert min(p.pts for p in container.demux(container.streams.video[0]) if p.size) == 0
    times, frames = frames_of(path)
    kept = np.flatnonzero((times >= cut.start_seconds - 1e-3) & (times < 2.5 - 1e-6))
    _, cut_frames = frames_of(cut.path)
    assert 24 < len(kept) <= len(cut_frames)
    assert all(np.array_equal(frames[i], frame) for i, frame in zip(kept, cut_frames, strict=False))


def test_without_slack_the_moment_is_encoded_exactly(video, tmp_path):
    (cut,) = cut_moments([moment(video, 1.5, 2.5)], tmp_path, slack_seconds=0.0)
    assert not cut.copied
    assert cut.start_seconds == pytest.approx(1.5)
    times, frames = frames_of(video)
    kept = np.flatnonzero((times >= 1.5 - 1e-6) & (times < 2.5 - 1e-6))
    _, cut_frames = frames_of(cut.path)
    assert len(cut_frames) == len(kept)
    apart = [np.abs(frames[i].astype(int) - f.astype(int)).mean() for i, f in zip(kept, cut_frames, strict=True)]
    assert max(apart) < 6.0


def test_one_bad_file_does_not_stop_the_others(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    cuts = cut_moments([moment(broken, 0, 1), moment(video, 9.0, 11.0), moment(video, 1.0, 2.0)], tmp_path / "cuts")
    assert "broken.mp4" in cuts[0].problem
    assert "no frame at 9.0 s" in cuts[1].problem
    assert cuts[2].problem == ""
    assert [p.name for p in (tmp_path / "cuts").iterdir()] == ["003_scene_1.0-2.0s.mp4"]


def test_bad_wishes_are_explained(video, tmp_path):
    with pytest.raises(LibraryError, match="cuts go into a folder"):
        cut_moments([moment(video, 0, 1)], video)
    with pytest.raises(ValueError, match="slack_seconds must be >= 0, got -1"):
        cut_moments([moment(video, 0, 1)], tmp_path, slack_seconds=-1)


@pytest.mark.slow
def test_every_real_clip_can_be_cut_and_copies_are_exact(shared_data, tmp_path):
    copied = 0
    for path in sorted((shared_data / "clips").iterdir()):
        try:
            with VideoReader(path) as reader:
                duration = reader.metadata.duration_seconds or 0.0
        except VideoError:
            continue
        if not 0 < duration < 5:
            continue
        (cut,) = cut_moments([moment(path, 0.4 * duration, 0.7 * duration)], tmp_path)
        assert cut.problem == "", path.name
        times, frames = frames_of(path)
        _, cut_frames = frames_of(cut.path)
        assert cut_frames, path.name
        if cut.copied:
            kept = np.flatnonzero((times >= cut.start_seconds - 1e-3) & (times < 0.7 * duration - 1e-6))
            same = [np.array_equal(frames[i], f) for i, f in zip(kept, cut_frames, strict=False)]
            assert len(same) == len(kept), path.name
            assert all(same), path.name
            copied += 1
    assert copied >= 10
