"""Data sets of clips: samples depend on seed and position alone, broken clips are replaced and reported."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Subset

from elastivid.data.augment import Augmentation, Flip, MultiScaleCrop
from elastivid.data.cache import ClipCache
from elastivid.data.clips import ClipReading, Clips, ClipStream, NoClipError, Weighted, collate, place_in_epoch
from elastivid.data.decoding import ClipDecoder, DecodingError
from elastivid.data.listing import Entry
from elastivid.data.quarantine import Quarantine, QuarantineError
from elastivid.data.sampling import Dense, Shapes, Uniform
from elastivid.data.synthetic import VideoFormat, sample_scene, write_video

READING = ClipReading(short_side=32, kept_frames=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five videos of 100 frames, and two that are none."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        write_video(sample_scene(np.random.default_rng(i)), folder / f"{i}.mp4", VideoFormat(48, 64, 25))
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "0.mp4").read_bytes()[:2000])
    return folder


def entries(folder: Path, *names: str) -> list[Entry]:
    return [Entry(folder / f"{name}.mp4", "ab"[i % 2], f"text {i}") for i, name in enumerate(names)]


def good(folder: Path, tmp_path: Path, reading: ClipReading = READING, cached: bool = False) -> Clips:
    cache = ClipCache(tmp_path / "cache", 1 << 24) if cached else None
    return Clips(entries(folder, *"01234"), reading, Quarantine(tmp_path / "q.jsonl", 5), cache=cache)


def same(one, two) -> bool:
    return np.array_equal(one.frames, two.frames) and (one.label, one.index) == (two.label, two.index)


def test_samples_depend_on_seed_and_position_alone(folder, tmp_path):
    clips = good(folder, tmp_path)
    copy = pickle.loads(pickle.dumps(clips))
    samples = [clips.draw(p, 7, (4, 28)) for p in range(6)]
    assert all(same(copy.draw(p, 7, (4, 28)), samples[p]) for p in reversed(range(6)))
    assert {s.index for s in samples[:5]} == set(range(5))  # an epoch
    assert samples[0].frames.shape == (4, 28, 28, 3)
    assert [(s.label, s.text) for s in samples] == [(s.index % 2, f"text {s.index}") for s in samples]
    assert not all(same(clips.draw(p, 8, (4, 28)), samples[p]) for p in range(6))
    again = clips.draw(5, 7, (4, 28))  # the next epoch draws other frames and crops of the same clip
    assert not np.array_equal(again.frames, next(s for s in samples[:5] if s.index == again.index).frames)


def test_a_cache_decodes_once_and_changes_nothing(folder, tmp_path, monkeypatch):
    plain = ClipReading(Uniform(), Augmentation(MultiScaleCrop((1.0,)), Flip(0.0)), short_side=32, kept_frames=12)
    cached = good(folder, tmp_path, plain, cached=True)
    assert list(cached.usable()) == list(range(5))
    monkeypatch.setattr(ClipDecoder, "read", lambda *a: pytest.fail("decoded again"))
    samples = [cached.draw(p, 7, (12, 28)) for p in range(5)]
    monkeypatch.undo()
    direct = good(folder, tmp_path, plain)
    assert all(same(direct.draw(p, 7, (12, 28)), samples[p]) for p in range(5))


def test_batches_have_one_shape_whatever_the_workers(folder, tmp_path):
    shapes = Shapes(((2, 14), (4, 28)))
    stream = ClipStream(good(folder, tmp_path, cached=True), shapes, batch_size=3, seed=1)
    batches = {}
    for workers in (0, 2):
        loader = DataLoader(Subset(stream, range(12)), 3, collate_fn=collate, num_workers=workers)
        batches[workers] = list(loader)
    for step, (one, two) in enumerate(zip(batches[0], batches[2], strict=True)):
        frames, size = shapes.at(1, step)
        assert one["frames"].shape == (3, frames, size, size, 3)
        assert (one["frames"] == two["frames"]).all()
        assert one["indices"].tolist() == two["indices"].tolist()


def test_broken_clips_are_replaced_and_reported(folder, tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 8, limit=0.5)
    clips = Clips(entries(folder, "0", "cut", "empty", "1", "missing", "2"), READING, quarantine)
    assert [Path(row["path"]).stem for row in quarantine.rows()] == ["missing"]  # before anything is read
    first = [clips.draw(p, 0, (2, 28)) for p in range(12)]
    for position, sample in enumerate(first):
        wanted = place_in_epoch(position, 0, 6)
        assert sample.index == {1: 3, 2: 3, 4: 5}.get(wanted, wanted)
    rows = {Path(row["path"]).stem: row for row in quarantine.rows()}
    assert set(rows) == {"missing", "cut", "empty"}
    assert "the file is empty" in rows["empty"]["reason"]
    assert Path(rows["cut"]["replaced_by"]).stem in ("1", "empty")
    # whoever knows the quarantine already draws the same
    later = Clips(entries(folder, "0", "cut", "empty", "1", "missing", "2"), READING, quarantine)
    assert all(same(later.draw(p, 0, (2, 28)), first[p]) for p in range(12))
    assert list(later.usable()) == [0, 3, 5]


def test_too_many_or_all_broken_stop(folder, tmp_path):
    strict = Clips(entries(folder, "0", "cut", "empty"), READING, Quarantine(tmp_path / "a", 3, limit=0.4))
    with pytest.raises(QuarantineError, match="2 of 3 clips cannot be used, more than the allowed 40 %"):
        list(strict.usable())
    hopeless = Clips(entries(folder, "cut", "empty"), READING, Quarantine(tmp_path / "b", 2, limit=1.0))
    with pytest.raises(NoClipError, match=r"none of the 2 clips can be used; the reasons are in .*b"):
        hopeless.draw(0, 0, (2, 28))
    with pytest.raises(DecodingError, match="the file is empty"):
        hopeless.views(1, (2, 28))


def test_views_spread_over_time_and_width(folder, tmp_path):
    clips = good(folder, tmp_path)
    assert clips.views(0, (4, 28), views=3, crops=3).shape == (9, 4, 28, 28, 3)
    dense = good(folder, tmp_path, ClipReading(Dense(2), short_side=32, kept_frames=None))
    views = dense.views(0, (4, 32), views=2)
    decoder = ClipDecoder()
    expected = decoder.read(clips.entries[0], lambda count: np.array([0, 2, 4, 6]), 32)
    assert np.array_equal(views[0], expected[:, :, 5:37])
    part = Entry(folder / "0.mp4", "a", start_seconds=2.0, end_seconds=3.0)
    assert part.name.endswith("0.mp4#t=2,3")
    clip = Clips([part], ClipReading(Uniform(), short_side=32), Quarantine(tmp_path / "q", 1))
    assert np.array_equal(clip.frames(0, lambda n: np.array([n - 1])), decoder.read(part, lambda n: np.array([24]), 32))


def test_labels_must_be_known(folder, tmp_path):
    quarantine = Quarantine(tmp_path / "q.jsonl", 2)
    with pytest.raises(ValueError, match=r"1 labels are not among the 1 classes, such as \['b'\]"):
        Clips(entries(folder, "0", "1"), READING, quarantine, classes=["a"])
    with pytest.raises(ValueError, match="at least one clip"):
        Clips([], READING, quarantine)


class Numbers:
    """A source that tells what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    def draw(self, position: int, seed: int, shape: tuple[int, int]) -> tuple[str, int]:
        return self.name, position


def test_mixtures_keep_their_shares_and_skip_nothing():
    mixture = Weighted([(Numbers("a"), 3), (Numbers("b"), 1), (Numbers("c"), 0.5)], block=90)
    drawn = [mixture.draw(position, 5, (1, 1)) for position in range(270)]
    assert Counter(name for name, _ in drawn[:90]) == {"a": 60, "b": 20, "c": 10}
    for name in "abc":
        places = [place for other, place in drawn if other == name]
        assert places == list(range(len(places)))
    assert drawn[123] == mixture.draw(123, 5, (1, 1))
    assert [name for name, _ in drawn] != [mixture.draw(p, 6, (1, 1))[0] for p in range(270)]
    nested = Weighted([(mixture, 1), (Numbers("d"), 1)], block=10)
    assert Counter(nested.draw(p, 5, (1, 1))[0] for p in range(1800)) == {"a": 600, "b": 200, "c": 100, "d": 900}


def test_impossible_mixtures_are_refused():
    with pytest.raises(ValueError, match="sources with weights > 0, got weights"):
        Weighted([(Numbers("a"), 0)])
    with pytest.raises(ValueError, match="the smallest weight gets no sample of a block of 10; raise block"):
        Weighted([(Numbers("a"), 1000), (Numbers("b"), 1)], block=10)
