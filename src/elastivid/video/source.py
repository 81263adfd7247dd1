"""Opening one file safely, and what its header says.

FFmpeg may be talked into opening other files or URLs (playlists, concatenation scripts, numbered pictures). Here it
gets one regular local file, the `file` protocol only, and a fixed list of container formats that hold their own data.
Where the caller allows addresses, an http or https address gets the protocols that this takes and no `file`.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from elastivid.video.address import is_url
from elastivid.video.errors import (
    EncryptedVideoError,
    NotAVideoError,
    NoVideoStreamError,
    TruncatedVideoError,
    VideoMemoryError,
    VideoNotFoundError,
    VideoTimeoutError,
    VideoTooLargeError,
)

CONTAINER_FORMATS = (
    "mov,matroska,avi,flv,gif,apng,ogg,mpeg,mpegts,mpegvideo,h264,hevc,vvc,av1,obu,ivf,asf,mxf,rm,dv,nut,yuv4mpegpipe,"
    "m4v,h263,h261,dirac,vc1,mjpeg,mp3,wav,w64,flac,aac,aiff,caf,amr,ac3,eac3,dts,ape,tta,wv"
)
FILE_PROTOCOLS = "file"
URL_PROTOCOLS = "http,https,tls,tcp"
ENCRYPTED_TAGS = frozenset({"encv", "drmi"})


@dataclass(frozen=True)
class Limits:
    """What reading one file may cost. A file or a request beyond a limit is an error, never a slow death.

    `seconds` and `memory_megabytes` hold where files are read in processes of their own, as indexing does; the others
    hold in every `VideoReader`.

    Args:
        pixels: width times height of one frame.
        frames: frames decoded in one call, packets of one file, frames wanted of one file.
        seconds: time spent reading one file.
        stall_seconds: time spent inside the reader by one call; iterators start afresh with every frame they give. A
            process that gives nothing for longer is stopped.
        memory_megabytes: memory that a process may take for reading, on top of what it holds when it starts.
        clip_bytes: size of one returned clip; longer requests go through `iterate`.

    Raises:
        ValueError: a limit is not positive.
    """

    pixels: int = 8192 * 8192
    frames: int = 5_000_000
    seconds: float = 4 * 3600.0
    stall_seconds: float = 600.0
    memory_megabytes: int = 4096
    clip_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name} must be > 0, got {value}")


@dataclass(frozen=True)
class VideoMetadata:
    """What the header of a file claims about its video stream; `None` where it says nothing.

    Args:
        path: the file.
        container: FFmpeg's names of the container format.
        codec: FFmpeg's name of the codec.
        width: pixels of a frame as returned, after rotation.
        height: pixels of a frame as returned, after rotation.
        rotation_degrees: counter-clockwise turn that the file asks for and that returned frames have had.
        sample_aspect_ratio: width of a pixel over its height, after rotation. Frames are not stretched for it.
        pixel_format: FFmpeg's name of the stored format.
        bit_depth: bits per stored component.
        average_fps: frames per second on average.
        duration_seconds: from the first frame to the end of the last one.
        num_frames: frames the container lists.
        start_seconds: presentation time of the first frame on the file's own clock. All other times of the reader
            count from the first frame: file time = start_seconds + time.
        has_audio: whether there is an audio stream.
        tags: free text of the container; bytes that are no UTF-8 are replaced.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    rotation_degrees: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)
    pixel_format: str = ""
    bit_depth: int = 8
    average_fps: float | None = None
    duration_seconds: float | None = None
    num_frames: int | None = None
    start_seconds: float = 0.0
    has_audio: bool = False
    tags: dict[str, str] = field(default_factory=dict)


def local_file(path: str | os.PathLike[str]) -> str:
    """Absolute name of an existing regular file.

    Raises:
        VideoNotFoundError: there is none, or it may not be read.
        NotAVideoError: it is a directory, a device or a pipe.
    """
    name = os.fspath(path)
    try:
        status = os.stat(name)
    except (OSError, ValueError) as error:
        hint = " Only local files are read: download it first." if "://" in str(name) else ""
        hint += " Or allow addresses (--allow-url, allow_url=True)." if is_url(name) else ""
        absent = isinstance(error, FileNotFoundError)
        what = "no such file" if absent else f"no such file ({getattr(error, 'strerror', None) or error})"
        raise VideoNotFoundError(f"{name!r}: {what}; check the spelling or mount the drive.{hint}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise NotAVideoError(f"{name!r} is {kind}; give the path of one video file")
    if not os.access(name, os.R_OK):
        raise VideoNotFoundError(f"{name!r}: permission denied; make the file readable")
    return str(Path(name).absolute())


def open_container(path: str, limits: Limits, *, allow_url: bool = False) -> tuple[InputContainer, VideoStream]:
    """Open `path` and pick its video stream: the first that is not an attached picture.

    Args:
        path: local file, or an http(s) address when `allow_url`.
        limits: pixels of a frame, and seconds that opening and each later read may take.
        allow_url: whether addresses are read.

    Raises:
        VideoError: see the flavours in `elastivid.video.errors`.
    """
    if allow_url and is_url(path):
        name, protocols = path, URL_PROTOCOLS
    else:
        name, protocols = "file:" + local_file(path), FILE_PROTOCOLS
        if os.path.getsize(path) == 0:
            raise NotAVideoError(f"{path}: the file is empty (0 bytes)")
    try:
        container = av.open(
            name,
            container_options={"protocol_whitelist": protocols, "format_whitelist": CONTAINER_FORMATS},
            options=_decoder_options(limits),
            metadata_errors="replace",
            timeout=limits.stall_seconds,
        )
    except (TimeoutError, av.error.ExitError) as error:
        raise VideoTimeoutError(
            f"{path}: opening took longer than Limits.stall_seconds={limits.stall_seconds}"
        ) from error
    except MemoryError as error:
        raise VideoMemoryError(f"{path}: opening it needs more memory than there is") from error
    except (av.error.HTTPError, av.error.ConnectionRefusedError) as error:
        raise VideoNotFoundError(f"{path}: the server does not give it ({_reason(error)})") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise NotAVideoError(
            f"{path}: cannot be opened as a video ({_reason(error)}); it is damaged, a list that points to "
            "other files, or of a kind that is not read"
        ) from error
    try:
        return container, _video_stream(container, path, limits)
    except BaseException:
        container.close()
        raise


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decoder_options(limits: Limits) -> dict[str, str]:
    """What keeps FFmpeg from making larger frames. It counts their borders too: the reader compares exactly."""
    return {"max_pixels": str(2 * limits.pixels + (1 << 16))}


def _video_stream(container: InputContainer, path: str, limits: Limits) -> VideoStream:
    pictures = 0
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            pictures += 1
            continue
        codec = stream.codec_context
        if codec is None:
            raise TruncatedVideoError(f"{path}: its video codec is not known to this build of FFmpeg")
        if codec.codec_tag in ENCRYPTED_TAGS or "encryption" in " ".join(stream.metadata):
            raise EncryptedVideoError(f"{path}: the video is encrypted ({codec.codec_tag}); decrypt it first")
        if codec.width * codec.height > limits.pixels:
            raise VideoTooLargeError(
                f"{path}: frames of {codec.width}x{codec.height} pixels exceed Limits.pixels={limits.pixels}"
            )
        codec.options = {**codec.options, **_decoder_options(limits)}  # the header may say less, or nothing
        return stream
    found = ", ".join(sorted({s.type for s in container.streams})) or "none"
    extra = f" ({pictures} attached picture)" if pictures else ""
    raise NoVideoStreamError(f"{path}: no video stream; streams found: {found}{extra}")


def refuse_encryption(packet: Packet, path: str) -> None:
    """Raise `EncryptedVideoError` when a packet carries the key information of encrypted media."""
    if packet.has_sidedata("encryption_info") or packet.has_sidedata("encryption_init_info"):
        raise EncryptedVideoError(f"{path}: the video is encrypted; decrypt it first")


def describe(path: str, container: InputContainer, stream: VideoStream, first: VideoFrame | None) -> VideoMetadata:
    """Metadata of an open file. `first` is its first decoded frame, which carries the rotation."""
    codec = stream.codec_context
    turns, _ = orientation(first)
    width, height = (first.width, first.height) if first is not None else (codec.width, codec.height)
    aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
    if turns % 2:
        width, height, aspect = height, width, 1 / aspect
    format_ = first.format if first is not None else codec.format
    return VideoMetadata(
        path=path,
        container=container.format.name,
        codec=codec.codec.name if codec.name is None else codec.name,
        width=width,
        height=height,
        rotation_degrees=90 * turns,
        sample_aspect_ratio=aspect,
        pixel_format=format_.name if format_ is not None else "",
        bit_depth=max((c.bits for c in format_.components), default=8) if format_ is not None else 8,
        average_fps=float(stream.average_rate) if stream.average_rate else None,
        duration_seconds=_duration_seconds(container, stream),
        num_frames=_num_frames(stream),
        start_seconds=_start_seconds(stream, first),
        has_audio=len(container.streams.audio) > 0,
        tags={**container.metadata, **stream.metadata},
    )


def orientation(frame: VideoFrame | None) -> tuple[int, bool]:
    """Quarter turns counter-clockwise (0..3) to apply to a frame, after mirroring it left-right if the bool is true."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame is not None else None
    if matrix is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    return round(math.atan2(-b, a) / (math.pi / 2)) % 4, mirrored


def _start_seconds(stream: VideoStream, first: VideoFrame | None) -> float:
    if first is not None and first.pts is not None:
        return float(first.pts * (first.time_base or 1))
    return float(stream.start_time * (stream.time_base or 1)) if stream.start_time is not None else 0.0


def _num_frames(stream: VideoStream) -> int | None:
    return int(stream.frames) or None


def _duration_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    entries = stream.index_entries
    if container.format.name.startswith("mov") and len(entries) > 1:
        # The sample table tells what is there; the header may claim anything.
        span = entries[-1].timestamp - entries[0].timestamp
        return float(span * (stream.time_base or 1)) * len(entries) / (len(entries) - 1)
    if stream.duration:
        return float(stream.duration * (stream.time_base or 1))
    return container.duration / av.time_base if container.duration else None
