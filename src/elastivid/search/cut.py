"""Moments to video files of their own: packets are copied where a keyframe lies near the start, else re-encoded.

Copying touches no pixel and takes about as long as reading the packets. It can only begin at a keyframe, so a copied
cut may begin up to `SLACK_SECONDS` early, and it ends a few frames late: packets stay in decoding order, so that the
last pictures find those they refer to. The moment is decoded and encoded with H.264 instead where the nearest keyframe
lies further back, where the file has not earned random access (its packets do not prove which frame they hold, see
`elastivid.video.index`), or where players do not expect the codec in a container of ours. Sound is copied in both cases
where the container can hold it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from elastivid.search.moments import Moment
from elastivid.search.printing import printable
from elastivid.search.records import LibraryError
from elastivid.video.errors import VideoError
from elastivid.video.reader import VideoReader
from elastivid.video.source import Limits, open_container

SLACK_SECONDS = 2.0
MP4_CODECS = frozenset({"h264", "hevc", "av1", "mpeg4"})  # what players read from an .mp4
WEBM_CODECS = frozenset({"vp8", "vp9", "av1"})
COPIED_CODECS = MP4_CODECS | WEBM_CODECS | {"mpeg1video", "mpeg2video", "mjpeg", "prores"}
_TICKS = 90_000  # units per second of re-encoded files


@dataclass(frozen=True)
class Cut:
    """One file that was written, or why it was not.

    Args:
        path: the file; "" when there is none.
        source: the video it comes from.
        start_seconds: where it really starts in the source; for a copy that of its first keyframe.
        end_seconds: where the moment ends in the source.
        copied: whether packets were copied; False means re-encoded.
        problem: why there is no file; empty otherwise.
    """

    path: str
    source: str
    start_seconds: float
    end_seconds: float
    copied: bool
    problem: str = ""


def cut_moments(moments: Sequence[Moment], folder: str | Path, *, slack_seconds: float = SLACK_SECONDS) -> list[Cut]:
    """Write one file per moment into `folder`, named by rank, source and time; existing ones are replaced.

    A moment that cannot be cut is reported and the others are written.

    Args:
        moments: best first.
        folder: where to write; made when it does not exist.
        slack_seconds: how much earlier than asked a copy may begin; 0 re-encodes unless a keyframe fits exactly.

    Raises:
        LibraryError: `folder` is a file.
        ValueError: `slack_seconds` is negative.
    """
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise LibraryError(f"cuts go into a folder, but {printable(target)} is a file; choose another path")
    if not slack_seconds >= 0:
        raise ValueError(f"slack_seconds must be >= 0, got {slack_seconds}")
    target.mkdir(parents=True, exist_ok=True)
    return [_cut(moment, target, rank, slack_seconds) for rank, moment in enumerate(moments, start=1)]


def _cut(moment: Moment, folder: Path, rank: int, slack_seconds: float) -> Cut:
    start, end = moment.start_seconds, moment.end_seconds
    stem = re.sub(r"[^\w.-]+", "_", printable(Path(moment.path).stem))[:80]
    name = folder / f"{rank:03d}_{stem}_{start:.1f}-{end:.1f}s"
    try:
        copy = _plan_copy(moment, slack_seconds)
        if copy is None:
            return _encode(moment, name.with_name(name.name + ".mp4"))
        return _copy(moment, copy, name)
    except (VideoError, OSError, ValueError, av.error.FFmpegError) as error:
        return Cut("", moment.path, start, end, False, printable(str(error)))


# copying


@dataclass(frozen=True)
class _Copy:
    """Where copying begins: seconds since the first frame, which has `origin_seconds` on the file's clock."""

    keyframe_seconds: float
    origin_seconds: float


def _plan_copy(moment: Moment, slack_seconds: float) -> _Copy | None:
    """The last keyframe at or before the moment's start, None when copying cannot start near enough."""
    with VideoReader(moment.path) as reader:
        if not reader.earns_random_access or reader.metadata.codec not in COPIED_CODECS:
            return None
        origin = reader.metadata.start_seconds
    container, stream = open_container(moment.path, Limits())
    best = None
    with container:
        _seek(container, stream, moment.start_seconds + origin)
        for packet in container.demux(stream):
            seconds = _seconds(packet, packet.pts, origin)
            if packet.size and (seconds is None or packet.dts is None):
                return None
            if seconds is not None and packet.is_keyframe and seconds <= moment.start_seconds + 1e-3:
                best = seconds
            elif seconds is not None and packet.is_keyframe and seconds > moment.start_seconds:
                break
    if best is None or best < moment.start_seconds - slack_seconds:
        return None
    return _Copy(best, origin)


def _copy(moment: Moment, copy: _Copy, name: Path) -> Cut:
    container, video = open_container(moment.path, Limits())
    with container:
        suffix = _suffix(video, Path(moment.path).suffix.lower())
        path = name.with_name(name.name + suffix)
        audio = _audio_of(container)
        with _writing(path) as (partial, output):
            streams: dict[int, Any] = {video.index: output.add_stream_from_template(video)}
            if audio is not None and _can_hold(output, audio):
                streams[audio.index] = output.add_stream_from_template(audio)
            _seek(container, video, copy.keyframe_seconds + copy.origin_seconds)
            for packet in _packets(container, video, audio if len(streams) > 1 else None, moment, copy):
                _shift(packet, copy.keyframe_seconds + copy.origin_seconds)
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
        partial.replace(path)
    return Cut(str(path), moment.path, copy.keyframe_seconds, moment.end_seconds, True)


def _packets(
    container: InputContainer, video: VideoStream, audio: AudioStream | None, moment: Moment, copy: _Copy
) -> Iterator[Packet]:
    """Video packets from the keyframe on, in decoding order, until decoding passes the end; sound of the same span.

    Pictures that are decoded after the keyframe but shown before it (open groups) need what came before: left out.
    """
    started = False
    for packet in container.demux([video, audio] if audio is not None else [video]):
        if packet.dts is None or not packet.size:
            continue
        shown = _seconds(packet, packet.pts if packet.pts is not None else packet.dts, copy.origin_seconds)
        decoded = _seconds(packet, packet.dts, copy.origin_seconds)
        assert shown is not None
        assert decoded is not None
        if packet.stream.index != video.index:
            if copy.keyframe_seconds <= shown < moment.end_seconds:
                yield packet
            continue
        started = started or (packet.is_keyframe and abs(shown - copy.keyframe_seconds) < 1e-3)
        if started and decoded >= moment.end_seconds:
            return
        if started and shown >= copy.keyframe_seconds - 1e-3:
            yield packet


# re-encoding


def _encode(moment: Moment, path: Path) -> Cut:
    """Decode the moment exactly and encode it anew, with the sound copied where .mp4 can hold it."""
    with VideoReader(moment.path) as reader:
        origin = reader.metadata.start_seconds
        rate = Fraction(reader.metadata.average_fps or 25).limit_denominator(1001)
        shown = _shown(reader, moment.start_seconds, moment.end_seconds, float(rate))
        first = next(shown, None)
        if first is None:
            raise VideoError(f"{moment.path}: no frame at {moment.start_seconds:.1f} s; the video ends earlier")
        height, width = (side - side % 2 for side in first[1].shape[:2])
        container, _ = open_container(moment.path, Limits())
        with container, _writing(path) as (partial, output):
            video: Any = output.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.codec_context.time_base = Fraction(1, _TICKS)
            audio = _audio_of(container)
            sound = output.add_stream_from_template(audio) if audio is not None and _can_hold(output, audio) else None
            stamp = -1
            for seconds, picture in itertools.chain([first], shown):
                frame = av.VideoFrame.from_ndarray(picture[:height, :width], format="rgb24")
                stamp = max(round((seconds - moment.start_seconds) * _TICKS), stamp + 1)  # some files repeat times
                frame.pts, frame.time_base = stamp, Fraction(1, _TICKS)
                output.mux(video.encode(frame))
            output.mux(video.encode())
            if sound is not None and audio is not None:
                for packet in container.demux(audio):
                    heard = _seconds(packet, packet.pts, origin)
                    if heard is not None and moment.start_seconds <= heard < moment.end_seconds:
                        _shift(packet, moment.start_seconds + origin)
                        packet.stream = sound
                        output.mux(packet)
        partial.replace(path)
    return Cut(str(path), moment.path, first[0], moment.end_seconds, False)


def _shown(reader: VideoReader, start: float, end: float, fps: float) -> Iterator[tuple[float, np.ndarray]]:
    """Times and pictures (H, W, 3) on display in [start, end), the one that began before `start` included.

    Looked for twice per average frame, so that frames of uneven length are found too.
    """
    last = None
    for clip in reader.iterate_played_at(np.arange(start, end, 0.5 / fps)):
        if clip is not last:
            yield max(float(clip.times_seconds[0]), start), clip.frames[0]
        last = clip


# small things


class _writing:
    """Opens an output beside its final name; what is unfinished is removed when the block fails."""

    def __init__(self, path: Path) -> None:
        self._partial = path.with_name(f".{path.stem}.partial{path.suffix}")

    def __enter__(self) -> tuple[Path, OutputContainer]:
        self._output = av.open(os.fspath(self._partial), "w")
        return self._partial, self._output

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._output.close()
        finally:
            if kind is not None:
                self._partial.unlink(missing_ok=True)


def _seek(container: InputContainer, stream: VideoStream, seconds: float) -> None:
    """Go to the last keyframe at or before `seconds` on the file's clock."""
    base = stream.time_base or Fraction(1, 1)
    container.seek(int(seconds / base), stream=stream, backward=True)


def _seconds(packet: Packet, stamp: int | None, origin_seconds: float) -> float | None:
    """A stamp of a packet in seconds since the first frame."""
    return None if stamp is None else float(stamp * packet.time_base) - origin_seconds


def _shift(packet: Packet, seconds: float) -> None:
    """Move a packet's times so that `seconds` becomes zero."""
    ticks = round(seconds / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts - ticks
    packet.dts = None if packet.dts is None else packet.dts - ticks


def _audio_of(container: InputContainer) -> AudioStream | None:
    return container.streams.audio[0] if container.streams.audio else None


def _suffix(video: VideoStream, suffix: str) -> str:
    """Container of a copy: that of the source if its players expect the codec there, else .mp4 or .mkv."""
    codec = video.codec_context.name
    fits = {".mp4": MP4_CODECS, ".mov": COPIED_CODECS, ".m4v": MP4_CODECS, ".webm": WEBM_CODECS, ".mkv": COPIED_CODECS}
    if codec in fits.get(suffix, frozenset()):
        return suffix
    return ".mp4" if codec in MP4_CODECS else ".mkv"


def _can_hold(output: OutputContainer, stream: AudioStream) -> bool:
    return stream.codec_context is not None and stream.codec_context.name in output.supported_codecs
