"""Clips are read in a process of their own: right frames, and a reason whatever happens to the process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from elastivid.data import decoding
from elastivid.data.decoding import ClipDecoder, DecoderError, DecodingError
from elastivid.data.listing import Entry
from elastivid.data.synthetic import VideoFormat, sample_scene, write_video
from elastivid.video.reader import VideoReader
from elastivid.video.samplers import uniform
from elastivid.video.source import Limits

LIMITS = Limits(seconds=2.0, stall_seconds=60.0, memory_megabytes=600, clip_bytes=64 << 20)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "scene.mp4"
    write_video(sample_scene(np.random.default_rng(5)), path, VideoFormat(96, 128, 25))
    return path


def test_frames_are_those_of_the_reader(video):
    decoder = ClipDecoder()
    wanted = np.array([7, 0, 7, 99])
    with VideoReader(video) as reader:
        expected = reader.frames_at(wanted).frames
        times = reader.frame_times()
    assert np.array_equal(decoder.read(Entry(video), lambda count: wanted), expected)
    small = decoder.read(Entry(video), lambda count: uniform(count, 3), short_side=48)
    assert small.shape == (3, 48, 64, 3)
    counts = []
    part = decoder.read(Entry(video, start_seconds=1.0, end_seconds=2.0), lambda n: counts.append(n) or np.array([0]))
    assert counts == [25]
    assert times[25] == pytest.approx(1.0)
    with VideoReader(video) as reader:
        assert np.array_equal(part, reader.frames_at([25]).frames)
    assert decoder.seconds(Entry(video)) == pytest.approx(4.0)
    assert decoder.seconds(Entry(video, start_seconds=1.0, end_seconds=2.0)) == pytest.approx(1.0)
    decoder.close()
    assert len(decoder.read(Entry(video), lambda count: np.array([1]))) == 1


def test_what_cannot_be_read_is_said(video, tmp_path):
    decoder = ClipDecoder(LIMITS)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:3000])
    for entry, message in (
        (Entry(tmp_path / "none.mp4"), r"none.mp4': no such file"),
        (Entry(broken), r"broken.mp4: cannot be opened as a video"),
        (Entry(video, start_seconds=9.0), r"scene.mp4: no frames between 9.0 s and its end"),
    ):
        with pytest.raises(DecodingError, match=message):
            decoder.read(entry, lambda count: np.arange(1))
    with pytest.raises(DecodingError, match=r"2000 frames take \d+ bytes, more than Limits.clip_bytes=67108864"):
        decoder.read(Entry(video), lambda count: np.zeros(2000, dtype=int))
    with pytest.raises(DecodingError, match=r"frame 500 was asked for, but the stream ends before it"):
        decoder.read(Entry(video), lambda count: np.array([500]))
    assert decoder.read(Entry(video), lambda count: np.array([3])).shape == (1, 96, 128, 3)


def test_a_file_that_hangs_or_kills_its_reader_costs_one_clip(video, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MODULE", "clip_readers")
    decoder = ClipDecoder(LIMITS)
    for name, message in (
        ("hangs.mp4", "gave nothing for 2 s; its reader was stopped"),
        ("dies.mp4", "died of SIGSEGV"),
    ):
        path = shutil.copy(video, tmp_path / name)
        with pytest.raises(DecodingError, match=f"{name}: .*{message}"):
            decoder.read(Entry(Path(path)), lambda count: np.arange(1))
        assert decoder.read(Entry(video), lambda count: np.arange(2)).shape == (2, 96, 128, 3)
    assert decoder._child is not None
    os.kill(decoder._child.pid, signal.SIGKILL)
    with pytest.raises(DecodingError, match="died of SIGKILL"):
        decoder.read(Entry(video), lambda count: np.arange(1))
    assert len(decoder.read(Entry(video), lambda count: np.arange(1))) == 1


def test_a_process_that_does_not_start_is_no_files_fault(video, monkeypatch):
    monkeypatch.setattr(decoding, "MODULE", "no_such_module")
    with pytest.raises(DecoderError, match=r"cannot be started: (.|\n)*No module named 'no_such_module'"):
        ClipDecoder(LIMITS).read(Entry(video), lambda count: np.arange(1))


def _read_in_fork(decoder: ClipDecoder, video: Path, answers: multiprocessing.Queue) -> None:
    answers.put(decoder.read(Entry(video), lambda count: np.array([5])).sum())


def test_copies_read_through_processes_of_their_own(video):
    decoder = ClipDecoder()
    own = decoder.read(Entry(video), lambda count: np.array([5]))
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    running = fork.Process(target=_read_in_fork, args=(decoder, video, answers))
    running.start()
    assert answers.get(timeout=60) == own.sum()
    running.join()
    copy = pickle.loads(pickle.dumps(decoder))
    assert np.array_equal(copy.read(Entry(video), lambda count: np.array([5])), own)
    assert np.array_equal(decoder.read(Entry(video), lambda count: np.array([5])), own)
