"""Subtitles of a video: files beside it (SubRip, WebVTT) and text streams inside it.

Importing this loads no decoder; only `embedded_lines` does.
"""

from __future__ import annotations

import codecs
import html
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer

SUFFIXES = (".srt", ".vtt")
TEXT_CODECS = frozenset({"ass", "mov_text", "srt", "ssa", "subrip", "text", "webvtt"})
MAX_FILE_BYTES = 8 * 2**20
MAX_LINES = 50_000  # of one video: a day of speech
MAX_LINE_CHARACTERS = 1000

_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_TAGS = re.compile(r"<[^>]*>|\{[^}]*\}")  # <i>, <v Name>, <00:01.000>, {\an8}


@dataclass(frozen=True)
class Line:
    """What is said or shown from one time to another, in seconds since the first frame."""

    start_seconds: float
    end_seconds: float
    text: str


def parse_lines(text: str) -> list[Line]:
    """Lines of a SubRip or WebVTT file, without markup, in the order of the file.

    Both formats are blocks of a line with two times and lines of text after it, up to an empty line. Whatever stands
    elsewhere (numbers, names of cues, comments, styles) is no line. Lines that end before they start are left out.
    """
    lines: list[Line] = []
    times: tuple[float, float] | None = None
    words: list[str] = []

    def close() -> None:
        nonlocal times
        if times is not None and times[1] > times[0]:
            said = plain(" ".join(words))
            if said:
                lines.append(Line(*times, said))
        times = None
        words.clear()

    for row in text.splitlines():
        found = _TIMES.match(row)
        if found or not row.strip() or len(lines) == MAX_LINES:
            close()
        if len(lines) == MAX_LINES:
            break
        if found:
            times = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
        elif times is not None:
            words.append(row)
    close()
    return lines[:MAX_LINES]


def plain(text: str) -> str:
    """Text without markup, entities and line breaks, cut at `MAX_LINE_CHARACTERS`."""
    text = _TAGS.sub(" ", text.replace("\\N", " ").replace("\\n", " ").replace("\\h", " "))
    return " ".join(html.unescape(text).split())[:MAX_LINE_CHARACTERS]


def sidecars(path: str, names: Iterable[str]) -> list[str]:
    """Those of `names`, files in the folder of the video at `path`, that hold its subtitles.

    `talk.srt` and `talk.en.vtt` belong to `talk.mp4`, whatever the case of their letters.
    """
    stem = os.path.splitext(os.path.basename(path))[0].lower() + "."
    return sorted(name for name in names if name.lower().startswith(stem) and name.lower().endswith(SUFFIXES))


def read_sidecar(path: str) -> list[Line]:
    """Lines of a subtitle file: UTF-8, UTF-16 with its mark, or else Windows-1252.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than `MAX_FILE_BYTES`, or none of its text has times.
    """
    size = os.path.getsize(path)
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size} bytes, at most {MAX_FILE_BYTES} are read")
    with open(path, "rb") as file:
        data = file.read(MAX_FILE_BYTES)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", "replace")
    lines = parse_lines(text)
    if not lines and text.replace("WEBVTT", "").strip():
        raise ValueError("no line with times in it; SubRip and WebVTT are read")
    return lines


def embedded_lines(container: InputContainer, start_seconds: float = 0.0) -> list[Line]:
    """Lines of the text subtitle streams of an open file, by stream, then time. Streams of pictures are left out.

    Reads the file once from where it stands.

    Args:
        container: an open container of PyAV.
        start_seconds: time of the first frame of the video on the clock of the file.

    Raises:
        av.error.FFmpegError: the file cannot be read further.
    """
    streams = [stream for stream in container.streams.subtitles if stream.codec_context.name in TEXT_CODECS]
    found: dict[int, list[Line]] = {stream.index: [] for stream in streams}
    count = 0
    for packet in container.demux(streams) if streams else ():
        if packet.pts is None or packet.time_base is None or not packet.size:
            continue
        start = float(packet.pts * packet.time_base) - start_seconds
        end = start + float((packet.duration or 0) * packet.time_base)
        text = plain(" ".join(_dialogue(item) for item in packet.decode()))
        if text and end > max(start, 0.0):
            found[packet.stream.index].append(Line(max(start, 0.0), end, text))
            count += 1
            if count == MAX_LINES:
                break
    return [line for lines in found.values() for line in lines]


def _dialogue(item: Any) -> str:
    """Text of one decoded subtitle; nothing for pictures."""
    said = getattr(item, "dialogue", b"") or b""
    return said.decode("utf-8", "replace")


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600.0 + int(minutes) * 60.0 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
