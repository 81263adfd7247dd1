"""`PacketIndex`: which packets must be decoded to see a frame, read from the packets without decoding any.

An index is made only where it can be trusted: every packet holds one picture with its own presentation time, and the
bitstream itself proves where decoding may start (`elastivid.video.bitstream`). Frame i of sequential decoding is then
the i-th picture in the order (closed group, presentation time). Whoever decodes through the index still compares every
frame with it, and falls back to one sequential pass at the first disagreement.

Presentation times may be wrong themselves (joined segments). A closed group whose times are irregular is doubtful: it
is decoded as a whole before any of its frames is served, and its frames take the order in which they come out.

Reading the packets costs about 2 % of decoding them.
Letters: P packets, F frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from elastivid.video.bitstream import PacketParser, Start
from elastivid.video.source import refuse_encryption

CACHED_PACKET_BYTES = 64 << 20
PACKET_OVERHEAD_BYTES = 400  # of keeping a packet, beside its content
REGULAR_GAPS = (0.75, 1.5)  # of the median gap between neighbouring frames
MAX_DOUBTFUL_FRAMES = 600


@dataclass(frozen=True)
class Group:
    """A closed group: decoding starts at its first packet and needs nothing before. Half-open ranges."""

    first_packet: int
    stop_packet: int
    first_frame: int
    stop_frame: int


@dataclass(frozen=True)
class PacketIndex:
    """Packets of one stream, in decoding order, and the frames they hold, in sequential order.

    Args:
        pts: presentation times of the packets, int64 (P,), in units of `time_base`.
        identity: decoding time, presentation time and size of every packet, (P,): recognises a packet after a seek.
        starts: packets at which decoding may start, int64, ascending.
        packet_of_frame: packet that holds frame i, int64 (F,).
        time_base: seconds per unit.
        end_pts: end of the display of the last frame.
        doubtful: closed groups whose order of frames is not certain yet; see `settle`.
        packets: the packets themselves, or `None` when they are too large to keep.
    """

    pts: np.ndarray
    identity: list[tuple[int | None, int, int]]
    starts: np.ndarray
    packet_of_frame: np.ndarray
    time_base: Fraction
    end_pts: int
    doubtful: list[Group]
    packets: list[Packet] | None

    @cached_property
    def place_of(self) -> dict[tuple[int | None, int, int], int]:
        """Packet of every identity that occurs once."""
        places: dict[tuple[int | None, int, int], int] = {}
        for place, key in enumerate(self.identity):
            places[key] = -1 if key in places else place
        return places

    @property
    def num_frames(self) -> int:
        """F."""
        return len(self.packet_of_frame)

    @cached_property
    def _frame_of_packet(self) -> np.ndarray:
        frames = np.full(len(self.pts), -1, dtype=np.int64)  # (P,)
        frames[self.packet_of_frame] = np.arange(self.num_frames)
        return frames

    def times_seconds(self) -> np.ndarray:
        """Seconds since the first frame, float64 (F,)."""
        pts = self.pts[self.packet_of_frame]
        return (pts - pts[0]).astype(np.float64) * float(self.time_base) if len(pts) else np.zeros(0)

    def end_seconds(self) -> float:
        """End of the display of the last frame, in seconds since the first frame."""
        return float((self.end_pts - int(self.pts[self.packet_of_frame[0]])) * self.time_base)

    def frame_of_pts(self, first_packet: int, stop_packet: int) -> dict[int | None, int]:
        """Frame of every presentation time that the packets first..stop-1 give."""
        numbers = self._frame_of_packet[first_packet:stop_packet]
        pairs = zip(self.pts[first_packet:stop_packet].tolist(), numbers.tolist(), strict=True)
        return {pts: number for pts, number in pairs if number >= 0}

    def doubtful_among(self, frames: np.ndarray) -> list[Group]:
        """Doubtful groups that hold one of `frames`."""
        return [g for g in self.doubtful if np.any((frames >= g.first_frame) & (frames < g.stop_frame))]

    def beats_sequential(self, frames: np.ndarray) -> bool:
        """Whether reaching `frames` (ascending) decodes no more packets than reading up to the last of them.

        Groups that must be settled first are decoded twice, so only they can turn the balance.
        """
        doubtful = self.doubtful_among(frames)
        if not doubtful:
            return True
        settled = sum(group.stop_packet - group.first_packet for group in doubtful)
        served = sum(stop - first for first, stop, _ in self.ranges(frames))
        return settled + served <= int(self.packet_of_frame[frames].max()) + 1

    def settle(self, group: Group, pts: list[int]) -> bool:
        """Give the frames of a doubtful group the order in which they came out. False when they are not the same."""
        packet_of = {int(self.pts[p]): int(p) for p in self.packet_of_frame[group.first_frame : group.stop_frame]}
        if len(pts) != len(packet_of) or set(pts) != set(packet_of):
            return False
        packets = [packet_of[value] for value in pts]
        self.packet_of_frame[group.first_frame : group.stop_frame] = packets
        self._frame_of_packet[packets] = np.arange(group.first_frame, group.stop_frame)
        self.doubtful.remove(group)
        return True

    def start_of(self, packet: int) -> int:
        """Last packet at which decoding can start in order to see the picture of `packet`."""
        choice = int(np.searchsorted(self.starts, packet, side="right")) - 1
        while choice > 0 and self.pts[self.starts[choice]] > self.pts[packet]:
            choice -= 1
        return int(self.starts[choice])

    def ranges(self, frames: np.ndarray) -> list[tuple[int, int, list[int]]]:
        """Runs of packets to decode for `frames` (ascending): (first packet, one past the last, frames within)."""
        runs: list[tuple[int, int, list[int]]] = []
        for frame in frames.tolist():
            packet = int(self.packet_of_frame[frame])
            start = self.start_of(packet)
            if runs and start <= runs[-1][1]:
                first, stop, members = runs[-1]
                members.append(frame)
                runs[-1] = (min(first, start), max(stop, packet + 1), members)
            else:
                runs.append((start, packet + 1, [frame]))
        return runs


def _parser(stream: VideoStream) -> PacketParser:
    codec = stream.codec_context
    return PacketParser(codec.codec.canonical_name, bytes(codec.extradata or b""), codec.codec.intra_only)


def can_index(stream: VideoStream) -> bool:
    """Whether anything is known about where the codec may start; else there is no point in reading the packets."""
    return _parser(stream).supported


def build_index(
    container: InputContainer, stream: VideoStream, path: str, check: Callable[[int], None]
) -> tuple[PacketIndex | None, str]:
    """Read all packets of a freshly opened file.

    Args:
        container: open file, not read from yet.
        stream: its video stream.
        path: name of the file, for messages.
        check: called with the number of packets so far; raises when a limit is exceeded.

    Returns:
        the index, or `None` and the reason why this file only earns sequential decoding.

    Raises:
        EncryptedVideoError: the first packet says that it is encrypted.
    """
    parser = _parser(stream)
    packets: list[Packet] | None = []
    identity: list[tuple[int | None, int, int]] = []
    kinds: list[Start] = []
    hidden: list[int] = []
    size = end = 0
    try:
        for packet in container.demux(stream):
            if not packet.size:
                if packet.pts is None and packet.dts is None:
                    continue  # the mark of the end
                return None, "a packet is empty"
            if not identity:
                refuse_encryption(packet, path)
            pts = packet.pts
            if pts is None or packet.is_corrupt:
                return None, "a packet is damaged or has no presentation time"
            key = packet.is_keyframe
            if key and identity and packet.has_sidedata("new_extradata"):
                return None, "the stream header changes on the way"
            data = memoryview(packet)
            if packet.is_discard or not parser.shows_picture(data):
                hidden.append(len(identity))
            else:
                end = max(end, pts + (packet.duration or 0))
            kinds.append(parser.start(data) if key else Start.NO)
            identity.append((packet.dts, pts, packet.size))
            size += packet.size + PACKET_OVERHEAD_BYTES
            if size > CACHED_PACKET_BYTES:
                packets = None
            if packets is not None:
                packets.append(packet)
            if not len(identity) % 64:
                check(len(identity))
    except av.error.FFmpegError as error:
        return None, f"the container is damaged ({error.strerror})"
    if not identity or len(identity) < stream.frames:
        return None, f"the file holds {len(identity)} of {stream.frames} announced packets"
    return _arrange(identity, kinds, hidden, end, stream, packets)


def _arrange(
    identity: list[tuple[int | None, int, int]],
    kinds: list[Start],
    hidden: list[int],
    end: int,
    stream: VideoStream,
    packets: list[Packet] | None,
) -> tuple[PacketIndex | None, str]:
    pts = np.array([i[1] for i in identity], dtype=np.int64)  # (P,)
    shown = np.ones(len(pts), dtype=bool)
    shown[hidden] = False
    starts = np.flatnonzero([kind is not Start.NO for kind in kinds])
    if len(starts) == 0 or starts[0] != 0 or not shown[0]:
        return None, "decoding cannot start at the first packet"
    if len(np.unique(pts[shown])) != shown.sum():
        return None, "presentation times repeat"
    closed = np.flatnonzero([kind is Start.CLOSED for kind in kinds])
    group = np.searchsorted(closed, np.arange(len(pts)), side="right")  # (P,)
    where = np.flatnonzero(shown)
    packet_of_frame = where[np.lexsort((pts[where], group[where]))]  # (F,)
    if packet_of_frame[0] != 0:
        return None, "pictures are displayed before the first one that can be decoded"
    doubtful = _doubtful_groups(pts, packet_of_frame, np.append(closed, len(pts)))
    if any(g.stop_frame - g.first_frame > MAX_DOUBTFUL_FRAMES for g in doubtful):
        return None, "irregular presentation times in a group too long to settle"
    base = Fraction(stream.time_base or 1)
    return PacketIndex(pts, identity, starts, packet_of_frame, base, end, doubtful, packets), ""


def _doubtful_groups(pts: np.ndarray, packet_of_frame: np.ndarray, bounds: np.ndarray) -> list[Group]:
    """Closed groups that reorder frames and whose presentation times are irregular."""
    if len(packet_of_frame) < 3 or np.all(np.diff(packet_of_frame) > 0):
        return []
    sorted_pts = pts[packet_of_frame]  # (F,)
    gaps = np.diff(sorted_pts) / np.median(np.diff(sorted_pts))
    odd = np.flatnonzero((gaps < REGULAR_GAPS[0]) | (gaps > REGULAR_GAPS[1]))
    group_of_frame = np.searchsorted(bounds, packet_of_frame, side="right") - 1  # (F,)
    odd = odd[group_of_frame[odd] == group_of_frame[odd + 1]]  # gaps between groups do not matter
    groups = []
    for number in np.unique(group_of_frame[odd]).tolist():
        first, stop = np.searchsorted(group_of_frame, [number, number + 1]).tolist()
        if np.any(np.diff(packet_of_frame[first:stop]) < 0):
            groups.append(Group(int(bounds[number]), int(bounds[number + 1]), first, stop))
    return groups
