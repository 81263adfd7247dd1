"""What the first bytes of a packet prove: where decoding may start, and whether the packet holds a picture.

Containers mark keyframes, but a mark is a claim: H.264 files mark recovery points that still need earlier pictures, and
some muxers mark anything. Specifications give certainty instead:

    H.264   IDR slice (NAL type 5): all references are forgotten, all earlier pictures are output first
    HEVC    IDR (19, 20): the same; CRA and BLA (16-18, 21): pictures displayed after it need nothing before it
    VP8, VP9, AV1   keyframe bit of the frame header (AV1: shown, with its sequence header): all references are replaced
    intra-only codecs   every packet

Parameter sets must travel with the header or within the packet itself.
"""

from __future__ import annotations

from enum import Enum

H264_SLICES = frozenset(range(1, 6))
H264_IDR, H264_SPS = 5, 7
HEVC_IDR, HEVC_RANDOM_ACCESS, HEVC_SPS = frozenset({19, 20}), frozenset({16, 17, 18, 19, 20, 21}), 33
AV1_SEQUENCE_HEADER, AV1_FRAME_OBUS = 1, frozenset({3, 6})


class Start(Enum):
    """Whether decoding may start at a packet."""

    NO = 0
    OPEN = 1  # pictures displayed before this one still need earlier packets
    CLOSED = 2  # nothing at or after this packet needs earlier packets


class PacketParser:
    """Reads packets of one stream.

    Args:
        codec: FFmpeg's canonical codec name.
        extradata: the stream's header bytes.
        intra_only: whether the codec has no references between pictures.
    """

    def __init__(self, codec: str, extradata: bytes, intra_only: bool) -> None:
        self._codec = codec
        self._intra_only = intra_only
        self._length_bytes = 0
        if codec == "h264" and len(extradata) > 4 and extradata[0] == 1:
            self._length_bytes = (extradata[4] & 3) + 1
        elif codec == "hevc" and len(extradata) > 21 and extradata[0] == 1:
            self._length_bytes = (extradata[21] & 3) + 1

    @property
    def supported(self) -> bool:
        """Whether anything can be proved about this codec."""
        return self._intra_only or self._codec in ("h264", "hevc", "vp8", "vp9", "av1")

    def start(self, data: memoryview) -> Start:
        """Whether decoding may start at this packet, which the container marks as a keyframe."""
        if self._intra_only:
            return Start.CLOSED
        if self._codec in ("h264", "hevc"):
            return self._start_of_nal_units(data)
        if self._codec == "vp8":
            key = data[0] & 0x01 == 0
        elif self._codec == "vp9":
            key = data[0] & 0xCC == 0x80  # frame marker, not a repeat, type key
        else:
            key = _is_av1_keyframe(data)
        return Start.CLOSED if key else Start.NO

    def shows_picture(self, data: memoryview) -> bool:
        """False when the packet surely gives no picture to show: hidden references, end-of-stream marks."""
        if self._codec == "vp8":
            return bool(data[0] & 0x10)
        if self._codec == "vp9":
            superframe = data[-1] & 0xE0 == 0xC0
            return bool(data[0] & 0x0A) or superframe
        if self._codec == "h264" and len(data) <= 64:
            return any(kind in H264_SLICES for kind in self._nal_types(data))
        return True

    def _start_of_nal_units(self, data: memoryview) -> Start:
        parameters = self._length_bytes > 0
        for kind in self._nal_types(data):
            if self._codec == "h264":
                parameters = parameters or kind == H264_SPS
                if kind in H264_SLICES:
                    return Start.CLOSED if kind == H264_IDR and parameters else Start.NO
            else:
                parameters = parameters or kind == HEVC_SPS
                if kind < 32:
                    if kind not in HEVC_RANDOM_ACCESS or not parameters:
                        return Start.NO
                    return Start.CLOSED if kind in HEVC_IDR else Start.OPEN
        return Start.NO

    def _nal_types(self, data: memoryview) -> list[int]:
        """Types of the leading NAL units, up to the first slice."""
        types: list[int] = []
        place, size = 0, self._length_bytes
        annex_b = b"" if size else bytes(data[:65536])
        while True:
            if size:
                head = place + size
                place = head + int.from_bytes(data[place:head], "big")
            else:
                head = annex_b.find(b"\0\0\1", place) + 3
                place = head
                if head == 2:  # not found
                    return types
            if head >= len(data):
                return types
            kind = data[head] & 0x1F if self._codec == "h264" else data[head] >> 1 & 0x3F
            types.append(kind)
            if kind in H264_SLICES if self._codec == "h264" else kind < 32:
                return types


def _is_av1_keyframe(data: memoryview) -> bool:
    place, sequence = 0, False
    while place + 1 < len(data):
        header = data[place]
        kind = header >> 3 & 0x0F
        place += 2 if header & 0x04 else 1
        if not header & 0x02:  # without a size it is the last one
            return sequence and kind in AV1_FRAME_OBUS and place < len(data) and data[place] >> 4 == 1
        size = shift = 0
        while place < len(data):
            byte = data[place]
            place += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 28:
                break
        if kind == AV1_SEQUENCE_HEADER:
            sequence = True
        elif kind in AV1_FRAME_OBUS:
            return sequence and place < len(data) and data[place] >> 4 == 1  # not a repeat, type key, shown
        place += size
    return False
