"""Fingerprints of the files of an index: read by worker processes, kept beside the index, one small file per content.

Layout: `<index>/prints/<content>.npz` with `times_seconds` and `pictures` (see `duplicates.Fingerprint`). They are made
when somebody asks for duplicates, and only for contents that have none yet.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastivid.core.point import Sampling
from elastivid.search.duplicates import SIDE, Fingerprint, Match, find_matches, frame_times, group
from elastivid.search.reading import Ending, Job, Put, Reading, read_file
from elastivid.search.records import FileRecord
from elastivid.search.workers import Workers
from elastivid.video.errors import TruncatedVideoError
from elastivid.video.reader import VideoReader
from elastivid.video.source import Limits

KEYFRAMES_FROM_SECONDS = 2.0  # frames further apart than this may as well be keyframes, which are cheap to reach
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue (BT.601)


@dataclass(frozen=True)
class Prints:
    """Fingerprints of contents, and why some have none.

    Args:
        by_content: fingerprint of each content.
        problems: per content that could not be read, why.
        read: how many contents were read now; the others were known.
    """

    by_content: dict[str, Fingerprint]
    problems: dict[str, str]
    read: int


def load_or_read(
    records: Iterable[FileRecord],
    folder: Path,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prints:
    """Fingerprints of the contents of `records`, read where `folder` has none.

    Args:
        records: files of an index; those that are gone everywhere or could not be indexed are left out.
        folder: where fingerprints are kept; made when it does not exist.
        limits: what reading a file may cost.
        progress: called with contents done and contents to read.

    Raises:
        OSError: `folder` cannot be written.
    """
    by_content: dict[str, Fingerprint] = {}
    wanted: dict[str, FileRecord] = {}
    for record in records:
        if not record.is_searchable or not record.content:
            continue
        kept = _load(folder / f"{record.content}.npz")
        if kept is None:
            wanted[record.content] = record
        else:
            by_content[record.content] = kept
    problems: dict[str, str] = {}
    if not wanted:
        return Prints(by_content, problems, 0)
    folder.mkdir(parents=True, exist_ok=True)
    reading = Reading(Sampling(frames=1, size=SIDE), limits or Limits())
    jobs = [_job(number, record) for number, record in enumerate(wanted.values())]
    for content, fingerprint, problem in _read(jobs, reading):
        if problem:
            problems[content] = problem
        if len(fingerprint.times_seconds):
            by_content[content] = fingerprint
            if not problem:
                _save(folder / f"{content}.npz", fingerprint)
        if progress is not None:
            progress(len(by_content) + len(problems), len(wanted))
    return Prints(by_content, problems, len(jobs))


def read_print(job: Job, reading: Reading, put: Put) -> Ending:
    """What a worker does with a file: one window per frame of its fingerprint."""
    return read_file(job, reading, put, print_frames)


def print_frames(
    reader: VideoReader, sampling: Sampling, limits: Limits
) -> Iterator[tuple[float, float, list[np.ndarray], str]]:
    """Frames of the fingerprint of an open video, each as (time, time, [frame], trouble).

    Raises:
        TruncatedVideoError: the video ends long before its header says; what there is was yielded before.
    """
    duration = reader.metadata.duration_seconds
    if duration is None or duration <= 0:
        duration = reader.measure_seconds()
    times = frame_times(duration)
    sparse = len(times) > 1 and times[1] - times[0] > KEYFRAMES_FROM_SECONDS and reader.earns_random_access
    shown, last = 0, None
    for clip in reader.iterate_played_at(times, decode="keyframes" if sparse else "exact"):
        shown += 1
        if clip is not last:  # the same frame again says nothing new
            seconds = float(clip.times_seconds[0])
            yield seconds, seconds, [clip.frames[0]], clip.problem
        last = clip
    if shown < 0.9 * len(times):
        raise TruncatedVideoError(f"{reader.metadata.path}: frames end at about {shown / len(times):.0%} of the video")


def _read(jobs: list[Job], reading: Reading) -> Iterator[tuple[str, Fingerprint, str]]:
    """Content, fingerprint and trouble of each job, as they are done."""
    times: dict[int, list[float]] = {job.id: [] for job in jobs}
    pictures: dict[int, list[np.ndarray]] = {job.id: [] for job in jobs}
    frame = np.empty(reading.window_shape, dtype=np.uint8)  # (1, S, S, 3)
    with Workers(jobs, reading, read=read_print) as workers:
        left = len(jobs)
        while left:
            arrival = workers.get()
            if isinstance(arrival.what, Ending):
                left -= 1
                yield arrival.job.content, _fingerprint(times, pictures, arrival.job.id), arrival.what.reason
            else:
                arrival.take_frames(frame)
                times[arrival.job.id].append(arrival.what.start_seconds)
                pictures[arrival.job.id].append((frame[0] @ GREY).astype(np.uint8))  # (S, S, 3) -> (S, S)


def _fingerprint(times: dict[int, list[float]], pictures: dict[int, list[np.ndarray]], number: int) -> Fingerprint:
    seconds, grey = np.array(times.pop(number)), pictures.pop(number)
    stacked = np.stack(grey) if grey else np.zeros((0, SIDE, SIDE), dtype=np.uint8)  # (N, S, S)
    order = np.unique(seconds, return_index=True)[1]
    return Fingerprint(seconds[order], stacked[order])


def _job(number: int, record: FileRecord) -> Job:
    place = record.place(record.path)
    assert place is not None
    return Job(number, record.path, record.size_bytes, place.modified_ns, record.content)


def _load(path: Path) -> Fingerprint | None:
    """A kept fingerprint, None when there is none or the file is damaged."""
    try:
        with np.load(path) as stored:
            return Fingerprint(stored["times_seconds"], stored["pictures"])
    except (FileNotFoundError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def _save(path: Path, fingerprint: Fingerprint) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    with temporary.open("wb") as file:
        np.savez_compressed(file, times_seconds=fingerprint.times_seconds, pictures=fingerprint.pictures)
    temporary.replace(path)


# duplicates


@dataclass(frozen=True)
class Member:
    """A content within a group of videos that show the same.

    Args:
        paths: where it is; several where the bytes are the same.
        width, height, duration_seconds: as indexed.
        score: mean correlation with the frames of the group's first member (of its best partner in the group where
            the two do not match directly), at most 1.
        shift_seconds: what the first member shows at t, this one shows at t + shift.
        share: part of the shorter of the two that meets the longer one.
    """

    paths: tuple[str, ...]
    width: int
    height: int
    duration_seconds: float
    score: float = 1.0
    shift_seconds: float = 0.0
    share: float = 1.0


@dataclass(frozen=True)
class Duplicates:
    """Groups of videos that show the same.

    Args:
        groups: each with its largest and longest member first.
        problems: path and reason of files that could not be (wholly) read; what could be read was compared.
        files: contents that were compared.
        read: how many of them were read for it now.
    """

    groups: list[list[Member]]
    problems: dict[str, str]
    files: int
    read: int


def find_duplicates(
    records: Iterable[FileRecord],
    folder: Path,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Duplicates:
    """Groups of files that show the same; arguments and errors as `load_or_read`."""
    known = {record.content: record for record in records if record.is_searchable and record.content}
    prints = load_or_read(known.values(), folder, limits=limits, progress=progress)
    matches = find_matches(prints.by_content)
    members = group(sorted(prints.by_content, key=lambda content: known[content].path), matches)
    copied = [[c] for c in known if len(known[c].paths) > 1 and not any(c in found for found in members)]
    groups = [_members(found, known, matches) for found in members + copied]
    problems = {known[content].path: reason for content, reason in prints.problems.items()}
    return Duplicates(sorted(groups, key=lambda found: found[0].paths), problems, len(prints.by_content), prints.read)


def _members(contents: list[str], known: dict[str, FileRecord], matches: list[Match]) -> list[Member]:
    """Members of a group, the largest and longest first, each with how it matches."""
    ordered = sorted(
        contents,
        key=lambda c: (-known[c].width * known[c].height, -known[c].duration_seconds, known[c].path),
    )
    members = []
    for content in ordered:
        record = known[content]
        about = (record.paths, record.width, record.height, record.duration_seconds)
        own = [m for m in matches if content in (m.first, m.second)]
        match = next((m for m in own if ordered[0] in (m.first, m.second)), own[0] if own else None)
        if content == ordered[0] or match is None:
            members.append(Member(*about))
        else:
            shift = match.shift_seconds if match.second == content else -match.shift_seconds
            members.append(Member(*about, match.score, shift, match.share))
    return members
