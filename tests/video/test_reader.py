"""The reader on files encoded here: frames and times equal sequential decoding, however they are asked for."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from media import encode, picture, planes, sequential

from elastivid.core.errors import PointError
from elastivid.video import (
    Limits,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    VideoNotFoundError,
    VideoReader,
    VideoTimeoutError,
    VideoTooLargeError,
)

X264 = {"g": "12", "bf": "2", "preset": "fast", "sc_threshold": "0"}
FORMATS = {
    "closed.mp4": {"options": X264},
    "recovery.mp4": {"options": {**X264, "x264-params": "open-gop=1"}},
    "intra_refresh.mp4": {"options": {**X264, "x264-params": "intra-refresh=1"}},
    "ten_bit.mkv": {"options": X264, "pixel_format": "yuv420p10le"},
    "transport.ts": {"options": X264},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12"}},
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "10"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}},
    "motion.mov": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
    "odd.mp4": {"codec": "libx264", "pixel_format": "yuv444p", "size": (37, 51), "options": X264},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def closed(folder):
    return encode(folder / "plain.mp4", options=X264)


@pytest.mark.parametrize("name", FORMATS)
def test_every_way_of_asking_equals_sequential_decoding(folder, name):
    path = encode(folder / name, **FORMATS[name])
    expected = [planes(f) for f in sequential(path)]
    rng = np.random.default_rng(0)
    with VideoReader(path) as reader:
        assert reader.count_frames() == len(expected)
        asked = [np.arange(len(expected)), np.array([len(expected) - 1]), np.array([0])]
        asked += [np.sort(rng.choice(len(expected), n, replace=False)) for n in (1, 2, 5, 16)]
        for indices in asked:
            got = list(reader.decoded_frames_at(indices))
            assert [g.index for g in got] == indices.tolist()
            assert [planes(g.frame) for g in got] == [expected[i] for i in indices]


def test_random_access_is_earned_by_the_bitstream_not_by_the_container(folder):
    earned = {name: VideoReader(encode(folder / name, **FORMATS[name])).earns_random_access for name in FORMATS}
    assert earned["closed.mp4"]
    assert earned["vp9.webm"]
    assert earned["motion.mov"]
    assert not earned["mpeg4.avi"]
    assert not earned["mpeg2.mpg"]


def test_marked_keyframes_that_are_no_idr_are_no_starts(folder):
    path = encode(folder / "open.mp4", options={**X264, "x264-params": "open-gop=1"})
    with VideoReader(path) as reader:
        index = reader._decoder.index()
    with av.open(str(path)) as container:
        marked = sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    assert index is not None
    assert len(index.starts) < marked


def test_order_and_repeats_are_as_asked(closed):
    with VideoReader(closed) as reader:
        clip = reader.frames_at([30, 2, 30, 59])
        assert clip.indices.tolist() == [30, 2, 30, 59]
        np.testing.assert_allclose(clip.times_seconds, [1.2, 0.08, 1.2, 2.36])
        np.testing.assert_array_equal(clip.frames[0], clip.frames[2])
        for index, frame in zip(clip.indices, clip.frames, strict=True):
            assert abs(frame.astype(int) - picture(int(index))).mean() < 12
        assert len(reader.frames_at([])) == 0


def test_iterate_gives_all_frames_one_by_one(closed):
    with VideoReader(closed) as reader:
        clips = list(reader.iterate())
        assert [len(c) for c in clips] == [1] * 60
        together = reader.frames_at(np.arange(60))
        np.testing.assert_array_equal(np.concatenate([c.frames for c in clips]), together.frames)
        np.testing.assert_array_equal([c.times_seconds[0] for c in clips], together.times_seconds)


@pytest.mark.parametrize("name", ["variable.mp4", "variable.avi"])
def test_variable_rate_shows_the_frame_on_display(folder, name):
    codec = "libx264" if name.endswith("mp4") else "mpeg4"
    times = [0, 100, 140, 600, 640, 1500, 1520, 2000]
    path = encode(folder / name.replace("avi", "mkv"), 8, codec=codec, times=times, options={"bf": "0"})
    with VideoReader(path) as reader:
        clip = reader.frames_played_at([1.51, 0.0, 0.12, 0.59, 0.6, 1.9, 1.9, -1.0])
        assert (1000 * clip.times_seconds).round().astype(int).tolist() == [1500, 0, 100, 140, 600, 1520, 1520, 0]
        ascending = [0.0, 0.01, 0.2, 0.3, 1.99, 2.0, 2.01]
        clips = list(reader.iterate_played_at(ascending))
        assert [round(1000 * c.times_seconds[0]) for c in clips] == [0, 0, 140, 140, 1520, 2000, 2000]
        assert clips[0] is clips[1]


def test_keyframes_mode_gives_the_keyframe_at_or_before(closed, folder):
    for path in (closed, encode(folder / "keys.avi", codec="mpeg4", options={"g": "12", "bf": "0"})):
        with VideoReader(path) as reader:
            clip = reader.frames_played_at([0.3, 0.5, 1.0, 2.3], decode="keyframes")
            keys = np.flatnonzero([frame.key_frame for frame in sequential(path)])
            assert 5 <= len(keys) < 60
            expected = [keys[keys <= round(25 * t)][-1] for t in (0.29, 0.5, 1.0, 2.29)]
            np.testing.assert_allclose(clip.times_seconds, np.array(expected) / 25, atol=1e-6)
            np.testing.assert_array_equal(clip.frames, reader.frames_at(expected).frames)


@pytest.mark.parametrize("name", ["long.avi", "long.mkv", "long.mpg"])
def test_the_last_keyframe_stays_until_the_end_of_the_file(folder, name):
    codec = "mpeg2video" if name == "long.mpg" else "mpeg4"
    path = encode(folder / name, 100, codec=codec, options={"g": "200", "sc_threshold": "1000000000"})
    with VideoReader(path) as reader:
        assert not reader.earns_random_access
        clip = reader.frames_played_at([0.0, 2.0, 3.8, 4.9, 5.5], decode="keyframes")
        assert clip.times_seconds.tolist() == [0.0] * 4
        assert "the video ends" in clip.problem


def test_times_count_from_the_first_frame(folder):
    path = encode(folder / "late.mkv", 8, times=[5000 + 40 * i for i in range(8)], options=X264)
    with VideoReader(path) as reader:
        assert reader.metadata.start_seconds == pytest.approx(5.0)
        assert reader.frames_at([0, 2]).times_seconds.tolist() == pytest.approx([0.0, 0.08])


def test_times_after_the_end_are_left_out_and_reported(closed):
    with VideoReader(closed) as reader:
        held = reader.frames_played_at([2.5, 3.0])
        assert held.indices.tolist() == [59, 59]
        assert not held.is_partial
        late = reader.frames_played_at([1.0, 99.0])
        assert late.indices.tolist() == [25]
        assert "ends more than" in late.problem


def test_size_and_metadata(closed):
    with VideoReader(closed, size=(30, 20)) as reader:
        assert reader.frames_at([0, 5]).frames.shape == (2, 30, 20, 3)
        data = reader.metadata
    assert (data.width, data.height, data.codec, data.num_frames, data.has_audio) == (64, 48, "h264", 60, False)
    assert (data.duration_seconds, data.average_fps) == pytest.approx((2.4, 25.0))
    assert data.sample_aspect_ratio == Fraction(1)
    assert data.rotation_degrees == 0
    assert data.bit_depth == 8
    with VideoReader(closed, size=8) as reader:
        assert reader.frames_at([1]).frames.shape == (1, 8, 8, 3)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(folder, degrees):
    image = np.zeros((48, 64, 3), dtype=np.uint8)
    image[:8, :8] = 255  # a white corner, top left
    path = folder / f"turned_{degrees}.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(degrees)
        for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
            container.mux(packet)
        container.mux(stream.encode(None))
    with VideoReader(path) as reader:
        frame = reader.frames_at([0]).frames[0]
        data = reader.metadata
    assert data.rotation_degrees == degrees
    assert frame.shape[:2] == (data.height, data.width) == ((64, 48) if degrees % 180 else (48, 64))
    expected = np.rot90(image, degrees // 90)  # counter-clockwise
    assert abs(frame.astype(int) - expected).mean() < 6


def test_resolution_change_keeps_the_first_size(folder):
    first, second = (encode(folder / f"{n}.h264", 6, size=(n, n), options=X264) for n in (64, 128))
    joined = folder / "joined.h264"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(joined) as reader:
        sizes = {item.frame.height for item in reader.decoded_frames_at(np.arange(12))}
        assert sizes == {64, 128}
        assert reader.frames_at(np.arange(12)).frames.shape == (12, 64, 64, 3)
        assert reader.metadata.duration_seconds == pytest.approx(12 / 25, abs=0.05)
    with (
        VideoReader(joined, limits=Limits(pixels=64 * 64)) as reader,
        pytest.raises(VideoTooLargeError, match="a frame of 128x128 pixels exceeds"),
    ):
        reader.frames_at(np.arange(12))


def test_a_file_too_large_to_keep_is_read_again_through_verified_seeks(closed, monkeypatch):
    with VideoReader(closed) as reader:
        kept = reader.frames_at([50, 3, 20]).frames
    monkeypatch.setattr("elastivid.video.index.CACHED_PACKET_BYTES", 0)
    monkeypatch.setattr("elastivid.video.decoder.SEEK_AHEAD_PACKETS", 1)
    with VideoReader(closed) as reader:
        assert reader._decoder.index().packets is None
        np.testing.assert_array_equal(reader.frames_at([50, 3, 20]).frames, kept)
        np.testing.assert_array_equal(reader.frames_at([3]).frames, kept[1:2])


def test_a_wrong_index_is_noticed_and_read_around(closed):
    with VideoReader(closed) as reader:
        expected = reader.frames_at([5, 40]).frames
    with VideoReader(closed) as reader:
        index = reader._decoder.index()
        index.pts[index.packet_of_frame[40]] += 7
        np.testing.assert_array_equal(reader.frames_at([5, 40]).frames, expected)
        assert not reader.earns_random_access


def test_a_cut_file_is_partial(folder):
    whole = encode(folder / "whole.mp4", 100, options={**X264, "movflags": "faststart"})
    cut = folder / "cut.mp4"
    with av.open(str(whole)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    cut.write_bytes(whole.read_bytes()[: places[70] + 3])
    with VideoReader(cut) as reader:
        assert not reader.frames_at([0, 10]).is_partial
        clip = reader.frames_at([0, 10, 99])
        assert clip.indices.tolist() == [0, 10]
        assert clip.is_partial
        assert list(reader.iterate())[-1].is_partial


def test_what_is_no_video_is_said(folder, closed):
    text = folder / "notes.mp4"
    text.write_text("not a video" * 100)
    empty = folder / "empty.mp4"
    empty.touch()
    header = folder / "header.mp4"
    header.write_bytes(closed.read_bytes()[:200])
    sound = folder / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    for path, error, words in [
        (folder / "absent.mp4", VideoNotFoundError, "no such file"),
        ("http://example.org/a.mp4", VideoNotFoundError, "download it first"),
        (folder, NotAVideoError, "directory"),
        (text, NotAVideoError, "cannot be opened"),
        (empty, NotAVideoError, "empty"),
        (header, NotAVideoError, "cannot be opened"),
        (sound, NoVideoStreamError, "audio"),
    ]:
        with pytest.raises(error, match=words):
            VideoReader(path)


def test_lists_that_point_to_other_files_are_not_followed(folder, closed):
    for name, content in {
        "list.ffconcat": f"ffconcat version 1.0\nfile '{closed}'\n",
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{closed}\n#EXT-X-ENDLIST\n",
    }.items():
        (folder / name).write_text(content)
        with pytest.raises(NotAVideoError):
            VideoReader(folder / name)
    with pytest.raises(VideoNotFoundError):
        VideoReader(f"concat:{closed}|{closed}")


def test_limits(closed):
    with pytest.raises(VideoTooLargeError, match="pixels=1000"):
        VideoReader(closed, limits=Limits(pixels=1000))
    with VideoReader(closed, limits=Limits(frames=10)) as reader, pytest.raises(VideoTooLargeError, match="10"):
        list(reader.iterate())
    with (
        VideoReader(closed, limits=Limits(clip_bytes=20_000)) as reader,
        pytest.raises(VideoTooLargeError, match="iterate"),
    ):
        reader.frames_at([0, 1, 2])
    hurry = Limits(stall_seconds=1e-9)
    with pytest.raises(VideoTimeoutError, match="stall_seconds=1e-09"), VideoReader(closed, limits=hurry) as reader:
        reader.frames_at([0])
    with pytest.raises(ValueError, match="frames must be > 0"):
        Limits(frames=0)


def test_wrong_requests_are_refused(closed):
    with pytest.raises(ValueError, match="threads"):
        VideoReader(closed, threads=0)
    with pytest.raises(ValueError, match="size"):
        VideoReader(closed, size=0)
    with VideoReader(closed) as reader:
        with pytest.raises(IndexError, match=">= 0"):
            reader.frames_at([-1])
        with pytest.raises(IndexError, match="ends before"):
            reader.frames_at([60])
        with pytest.raises(PointError, match="decode must be"):
            list(reader.iterate_played_at([0.0], decode="fast"))
        with pytest.raises(PointError, match="ascending"):
            list(reader.iterate_played_at([1.0, 0.0]))


def test_a_file_without_frames_is_truncated(folder, closed):
    data = bytearray(closed.read_bytes())
    start = data.find(b"mdat") + 4
    data[start : start + 60_000] = bytes(min(60_000, len(data) - start)) if data.find(b"moov") < start else b""
    with av.open(str(closed)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(closed.read_bytes())
    for place, size in places:
        data[place : place + size] = os.urandom(size)
    path = folder / "noise.mp4"
    path.write_bytes(data)
    with VideoReader(path) as reader, pytest.raises(TruncatedVideoError, match="no frame"):
        reader.frames_at([0])
