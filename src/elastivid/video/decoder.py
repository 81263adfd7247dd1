"""`Decoder`: the frames of one open file, all in order or a few by index, before any conversion of colours.

Two ways, with the same result:

    sequential   every packet from the first one on; what every other way is compared with
    indexed      only the packets that the wanted frames need (`elastivid.video.index`), leaving out pictures that no
                 other picture refers to (H.264 non-reference pictures). Every frame that comes out is compared with
                 the index; at the first disagreement the caller gets `IndexMismatch` and reads sequentially
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.packet import Packet
from av.stream import Discard
from av.video.frame import VideoFrame

from elastivid.video.errors import VideoError, VideoMemoryError, VideoTimeoutError, VideoTooLargeError
from elastivid.video.index import PacketIndex, build_index, can_index
from elastivid.video.source import Limits, open_container, refuse_encryption

THREADED_PIXELS = 320 * 240  # sequential decoding gains from threads from this size on
SIMPLE_THREADED_PIXELS = 640 * 480  # the same for older codecs, whose small frames decode faster than threads hand over
DEMANDING_CODECS = frozenset({"h264", "hevc", "vvc", "vp9", "av1", "dirac"})
INDEXED_THREADED_PIXELS = 1280 * 720  # short runs of packets gain later: threads delay frames
PROBED_PACKETS = 12
MAX_FAILED_PACKETS = 1000
SEEK_AHEAD_PACKETS = 500


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A frame with its place: index in sequential order (-1 unknown), seconds since the first frame."""

    index: int
    seconds: float
    frame: VideoFrame


class IndexMismatch(VideoError):
    """Decoding through the index did not give the frames that the index promised."""


class Decoder:
    """Decodes the video stream of one file.

    Args:
        path: local file.
        limits: what reading may cost.
        allow_url: whether http and https addresses are read.
        threads: decoder threads; `None` takes all cores where that helps: sequential reading from 320x240 on
            (640x480 for codecs older than H.264), frames by index from 720p on.

    Raises:
        VideoError: the file cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], limits: Limits, threads: int | None, allow_url: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self.limits = limits
        self._allow_url = allow_url
        self.first: VideoFrame | None = None
        self.failed_packets = 0
        self._failure = ""
        self._early_end = ""
        self._threads = threads
        self._index: PacketIndex | None = None
        self._index_known = False
        self._next_packet = 0  # packet that demuxing gives next; -1 unknown
        self.read_seconds = 0.0  # end of the last picture of the packets that `sequential` has read
        self.start_clock()
        self._open()

    @property
    def problem(self) -> str:
        """Empty when everything decoded so far was sound."""
        failed = ""
        if self.failed_packets:
            plural = "s" if self.failed_packets > 1 else ""
            failed = f"{self.failed_packets} packet{plural} cannot be decoded ({self._failure})"
        return "; ".join(filter(None, (failed, self._early_end)))

    def _open(self) -> None:
        self.container, self.stream = open_container(self.path, self.limits, allow_url=self._allow_url)
        for other in self.container.streams:
            if other is not self.stream:
                other.discard = Discard.all
        self._next_packet = 0

    def _use_threads(self, pixels: int) -> None:
        """Choose threads for the decoder, which has not decoded anything yet; its own choice from `pixels` on."""
        codec = self.stream.codec_context
        threaded = codec.width * codec.height >= pixels if self._threads is None else self._threads > 1
        codec.thread_type = "AUTO" if threaded else "SLICE"
        codec.thread_count = (self._threads or 0) if threaded else 1

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._index, self._index_known = None, False
        self.container.close()

    def rewind(self) -> None:
        """Make the next packet the first one, with a decoder that has seen nothing."""
        if self._next_packet != 0:
            self.container.close()
            self._open()

    def start_clock(self) -> None:
        """Give the reader `Limits.stall_seconds` from now on."""
        self._deadline = time.monotonic() + self.limits.stall_seconds

    def check(self, frames: int) -> None:
        """Raise when time is up or there are more than the allowed number of frames."""
        if time.monotonic() > self._deadline:
            raise VideoTimeoutError(f"{self.path}: took longer than Limits.stall_seconds={self.limits.stall_seconds}")
        if frames > self.limits.frames:
            raise VideoTooLargeError(f"{self.path}: more than Limits.frames={self.limits.frames} frames")

    def index(self) -> PacketIndex | None:
        """The packet index of a file that earns random access, else `None`. Built once."""
        if not self._index_known and can_index(self.stream):
            self.rewind()
            self._use_threads(INDEXED_THREADED_PIXELS)
            self._next_packet = -1
            self._index, _ = build_index(self.container, self.stream, self.path, self.check)
        self._index_known = True
        return self._index

    def distrust(self) -> None:
        """Give the index up for good."""
        self._index = None
        self.rewind()

    @property
    def frame_seconds(self) -> float:
        """Usual distance of two frames, as the header has it."""
        return 1.0 / float(self.stream.average_rate or self.stream.guessed_rate or 25)

    def shown_seconds(self, frame: VideoFrame) -> float:
        """How long a frame stays on display."""
        return _seconds(frame.duration, frame.time_base) if frame.duration else self.frame_seconds

    def measure_seconds(self) -> float:
        """Duration of a stream whose header does not tell it, from its packets."""
        index = self.index()
        if index is not None:
            return index.end_seconds()
        self.rewind()
        self._next_packet = -1
        return max(self._packet_ends(), default=0.0)

    def _packet_ends(self) -> Iterator[float]:
        """End of the display of every packet, in seconds since the first."""
        origin: int | None = None
        try:
            for count, packet in enumerate(self.container.demux(self.stream)):
                self.check(count)
                if packet.size and packet.pts is None:
                    yield (count + 1) * self.frame_seconds
                elif packet.size and packet.pts is not None:
                    origin = packet.pts if origin is None else min(origin, packet.pts)
                    length = _seconds(packet.duration, packet.time_base) if packet.duration else self.frame_seconds
                    yield _seconds(packet.pts - origin, packet.time_base) + length
        except (av.error.FFmpegError, EOFError) as error:
            self._fail(error)

    def sequential(self, *, keyframes_only: bool = False) -> Iterator[Decoded]:
        """All frames in order. Packets that cannot be decoded are counted in `problem`.

        Args:
            keyframes_only: leave everything but keyframes undecoded; indices are -1 then.
        """
        self.rewind()
        codec = self.stream.codec_context
        demanding = codec.codec.canonical_name in DEMANDING_CODECS
        self._use_threads(THREADED_PIXELS if demanding else SIMPLE_THREADED_PIXELS)
        self._next_packet = -1
        if keyframes_only:
            codec.skip_frame = "NONKEY"
        self.failed_packets = 0
        self.read_seconds = 0.0
        count, origin = 0, None
        seconds = 0.0
        for frame in self._all_frames():
            if count == 0:
                origin = frame.pts
            if keyframes_only and not frame.key_frame:
                continue
            if frame.pts is not None and origin is not None:
                seconds = _seconds(frame.pts - origin, frame.time_base)
            elif count:
                seconds += self.frame_seconds
            if self.first is None:
                self.first = frame
            yield Decoded(-1 if keyframes_only else count, seconds, frame)
            count += 1
            self.check(count)

    def _all_frames(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        count, origin = 0, None
        while True:
            self.check(0)
            try:
                packet = next(packets, None)
                if packet is None:
                    self._note_early_end(count)
                    return
                if count == 0:
                    refuse_encryption(packet, self.path)
                count += packet.size > 0
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is not None:
                    origin = stamp if origin is None else min(origin, stamp)
                    end = _seconds(stamp - origin + (packet.duration or 0), packet.time_base)
                    self.read_seconds = max(self.read_seconds, end)
                frames = packet.decode()
            except EOFError:
                self._note_early_end(count)
                return
            except MemoryError as error:
                raise VideoMemoryError(f"{self.path}: decoding it needs more memory than there is") from error
            except av.error.FFmpegError as error:
                self._fail(error)
                if self.failed_packets > MAX_FAILED_PACKETS:
                    return
                continue
            yield from frames

    def _note_early_end(self, packets: int) -> None:
        if packets < self.stream.frames:
            self._early_end = f"the file ends after {packets} of {self.stream.frames} announced packets"

    def _fail(self, error: BaseException) -> None:
        self.failed_packets += 1
        self._failure = getattr(error, "strerror", None) or type(error).__name__

    def indexed(self, frames: np.ndarray) -> Iterator[Decoded]:
        """Frames by index, ascending and without repeats, through the packet index.

        Raises:
            IndexMismatch: what came out is not what the index promised.
        """
        index = self._index
        assert index is not None
        if len(frames) == 0:
            return
        self.settle(frames)
        times = index.times_seconds()
        runs = index.ranges(frames)
        if self.first is None and runs[0][0] != 0:
            runs.insert(0, (0, 1, []))
        for first, stop, members in runs:
            wanted = set(members)
            keep = {int(index.packet_of_frame[frame]) for frame in members}
            if self.first is None:
                keep.update(range(min(PROBED_PACKETS, stop)))
            number_of = index.frame_of_pts(first, stop)
            promised = {number for number in number_of.values() if index.packet_of_frame[number] in keep}
            latest = -1
            for frame in self._run(index, first, stop, keep):
                number = number_of.get(frame.pts, -1)
                if number < 0:
                    continue
                if number < latest or frame.is_corrupt:
                    raise IndexMismatch(f"{self.path}: frame {number} came out of place or damaged")
                latest = number
                promised.discard(number)
                if self.first is None:
                    self.first = frame
                if number in wanted:
                    yield Decoded(number, float(times[number]), frame)
            if promised:
                raise IndexMismatch(f"{self.path}: frames {sorted(promised)} did not come out")

    def settle(self, frames: np.ndarray) -> None:
        """Make the order of `frames` certain, by decoding the doubtful groups of the index that hold them.

        Raises:
            IndexMismatch: a group does not give the frames that the index promised.
        """
        index = self._index
        assert index is not None
        for group in index.doubtful_among(frames):
            everything = set(range(group.first_packet, group.stop_packet))
            came = [f.pts for f in self._run(index, group.first_packet, group.stop_packet, everything)]
            if not index.settle(group, [pts for pts in came if pts is not None]):
                raise IndexMismatch(
                    f"{self.path}: frames {group.first_frame}..{group.stop_frame - 1} are not as indexed"
                )

    def _run(self, index: PacketIndex, first: int, stop: int, keep: set[int]) -> Iterator[VideoFrame]:
        """Decode packets first..stop-1 with a clean decoder, down to the last picture it holds.

        Pictures that no other refers to are left out, except those of the packets `keep`.
        """
        codec = self.stream.codec_context
        selective = codec.codec.canonical_name == "h264"
        complete = True
        codec.skip_frame = "DEFAULT"
        try:
            for number, packet in enumerate(self._packets(index, first, stop), first):
                self.check(0)
                if selective and complete is not (number in keep):
                    complete = not complete
                    codec.skip_frame = "DEFAULT" if complete else "NONREF"
                yield from codec.decode(packet)
            yield from codec.decode(None)
        except MemoryError as error:
            raise VideoMemoryError(f"{self.path}: decoding it needs more memory than there is") from error
        except (av.error.FFmpegError, EOFError) as error:
            raise IndexMismatch(f"{self.path}: packets {first}..{stop - 1} do not decode ({error})") from error
        finally:
            codec.flush_buffers()

    def _packets(self, index: PacketIndex, first: int, stop: int) -> Iterator[Packet]:
        if index.packets is not None:
            self._next_packet = -1
            yield from index.packets[first:stop]
            return
        ahead = first - self._next_packet
        peeked = [] if self._next_packet >= 0 and 0 <= ahead <= SEEK_AHEAD_PACKETS else self._seek(index, first)
        for packet in chain(peeked, self.container.demux(self.stream)):
            if (packet.dts, packet.pts, packet.size) != index.identity[self._next_packet]:
                raise IndexMismatch(f"{self.path}: packet {self._next_packet} is not the one that was indexed")
            self._next_packet += 1
            if self._next_packet > first:
                yield packet
            if self._next_packet == stop:
                return
        raise IndexMismatch(f"{self.path}: the file ends before packet {stop}, which was indexed")

    def _seek(self, index: PacketIndex, packet: int) -> list[Packet]:
        """Place demuxing at `packet` or before it. What comes first tells the place; unrecognised means the start.

        Returns:
            the packet that was read to find out, if any.
        """
        dts, pts, _ = index.identity[packet]
        self.container.seek(pts if dts is None else dts, stream=self.stream)
        peeked = next(self.container.demux(self.stream))
        place = index.place_of.get((peeked.dts, peeked.pts or 0, peeked.size), -1)
        if 0 <= place <= packet:
            self._next_packet = place
            return [peeked]
        self.rewind()
        return []


def _seconds(units: int, time_base: Fraction | None) -> float:
    return float(units) * float(time_base or 1)
