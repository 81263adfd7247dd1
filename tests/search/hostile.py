"""Files that want to do harm: too large, too long, too many, or pointing elsewhere. All of them are small on disk."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def apng(path: Path, width: int, height: int) -> Path:
    """An animated PNG of one black picture, which compresses to next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compressobj(9)
    row = bytes(1 + 4 * width)
    packed = b"".join(rows.compress(row) for _ in range(height)) + rows.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", 1, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 25, 0, 0))
        + chunk(b"IDAT", packed)
        + chunk(b"IEND", b"")
    )
    return path


def gif_of_size(path: Path, width: int, height: int) -> Path:
    """A GIF whose header announces a screen of this size, with one pixel on it."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(b"GIF89a" + screen + image + b";")
    return path


def y4m(path: Path, width: int, height: int, rate: str = "25:1", frames: int = 1, cut: bool = False) -> Path:
    """Uncompressed grey frames; `cut` leaves out the pixels."""
    head = f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C420jpeg\n".encode()
    pixels = b"" if cut else bytes([128]) * (width * height * 3 // 2)
    path.write_bytes(head + (b"FRAME\n" + pixels) * frames)
    return path


def still_frames(path: Path, times_seconds: list[float], size: tuple[int, int] = (16, 16)) -> Path:
    """One frame of growing brightness at each of these times."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        packets = []
        for number in range(len(times_seconds)):
            picture = np.full((size[1], size[0], 3), number * 40 % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet, seconds in zip(packets, times_seconds, strict=True):
            packet.time_base = Fraction(1, 1000)
            packet.pts = packet.dts = round(seconds * 1000)
            packet.duration = 40
            container.mux(packet)
    return path


def claim_duration(path: Path, seconds: float) -> Path:
    """Let the header of a Matroska file claim another duration."""
    content = bytearray(path.read_bytes())
    place = content.index(b"\x44\x89\x88") + 3
    content[place : place + 8] = struct.pack(">d", seconds * 1000)
    path.write_bytes(bytes(content))
    return path


def playlists(folder: Path, target: str) -> dict[str, Path]:
    """Lists that point at `target`, under names that say what they are and under that of a video."""
    texts = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
        "list.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "list.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "list.asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "list.mov": '<?xml version="1.0"?><?quicktime type="application/x-quicktime-media-link"?>'
        f'<embed src="{target}"/>',
    }
    written = {}
    for name, text in texts.items():
        for suffix in ("", ".mp4"):
            (folder / (name + suffix)).write_text(text)
            written[name + suffix] = folder / (name + suffix)
    return written
