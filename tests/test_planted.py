"""Long videos with planted events: what the truth says is what the files show."""

import json

import numpy as np
import pytest

from elastivid.data.planted import BORDER_SECONDS, PlantedFormat, iterate_pictures, plan_planted, planted_library
from elastivid.video import VideoReader

FORM = PlantedFormat(height=48, width=64, fps=4, seconds_per_event=20)


def test_every_content_occurs_once_and_absent_ones_never():
    library = plan_planted((5, 10, 20), seed=3)
    events = [event for video in library.videos for event in video.events]
    captions = [event.caption for event in events]
    assert len(captions) == round(300 / 64) + round(600 / 64) + round(1200 / 64)
    assert len(set(captions)) == len(captions)
    pairs = {(e.phrase.colour, e.phrase.shape) for e in events}
    assert len(library.absent) == len(set(library.absent)) == 100
    assert not any(f"{colour} {shape} " in caption for caption in library.absent for colour, shape in pairs)
    assert not set(library.absent_motions) & set(captions)
    assert all(any(f"{c} {s} " in caption for c, s in pairs) for caption in library.absent_motions)
    assert plan_planted((5, 10, 20), seed=3) == library != plan_planted((5, 10, 20), seed=4)


def test_events_keep_their_distance():
    for video in plan_planted((5, 10), seed=1).videos:
        times = [t for e in video.events for t in (e.start_seconds, e.end_seconds)]
        gaps = np.diff([0.0, *times, video.duration_seconds])
        assert (gaps[::2] >= BORDER_SECONDS - 0.2).all()
        assert (gaps[1::2] >= 1.8).all()


def test_pictures_change_exactly_where_events_are():
    (video,) = plan_planted((1,), 5, FORM).videos
    pictures = [picture for _, picture in iterate_pictures(video, FORM)]
    numbers = [number for number, _ in iterate_pictures(video, FORM)]
    assert numbers == list(range(60 * FORM.fps))
    for number, picture in enumerate(pictures):
        inside = any(e.start_seconds <= number / FORM.fps < e.end_seconds for e in video.events)
        if not inside:
            assert (picture == pictures[0]).all()
        elif all(e.phrase.motion != "blink" for e in video.events):
            assert (picture != pictures[0]).any()


def test_files_are_written_once(tmp_path):
    library = planted_library(tmp_path, (0.5, 0.4), 2, planted_format=FORM, processes=1)
    for video in library.videos:
        with VideoReader(tmp_path / video.file) as reader:
            assert reader.metadata.duration_seconds == pytest.approx(video.duration_seconds, abs=0.01)
            assert (reader.metadata.width, reader.metadata.height) == (64, 48)
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert truth["videos"][1]["events"][0]["start_seconds"] == library.videos[1].events[0].start_seconds
    stamp = (tmp_path / "long_00.mp4").stat().st_mtime_ns
    assert planted_library(tmp_path, (0.5, 0.4), 2, planted_format=FORM, processes=1) == library
    assert (tmp_path / "long_00.mp4").stat().st_mtime_ns == stamp


def test_too_much_is_refused():
    with pytest.raises(ValueError, match="contents to plant"):
        plan_planted((1000,), 1)
    with pytest.raises(ValueError, match="do not fit"):
        plan_planted((1,), 1, PlantedFormat(shortest_seconds=20, seconds_per_event=20))
