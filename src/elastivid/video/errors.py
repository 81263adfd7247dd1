"""Errors of reading video. All of them are `VideoError`; every message names the file."""

from __future__ import annotations

from elastivid.core.errors import ElastividError


class VideoError(ElastividError):
    """Base of everything that can be wrong with a video file."""


class VideoNotFoundError(VideoError, FileNotFoundError):
    """There is no readable local file of that name."""


class NotAVideoError(VideoError, ValueError):
    """The file is no media file that can be opened, or a list that points to other files."""


class NoVideoStreamError(VideoError, ValueError):
    """The file opens but holds no video stream (audio, subtitles or cover art only)."""


class TruncatedVideoError(VideoError, ValueError):
    """The file announces video but not one frame can be decoded: cut off, damaged or unsupported content."""


class EncryptedVideoError(VideoError, ValueError):
    """The video is encrypted; without the key it decodes to noise."""


class VideoTooLargeError(VideoError, ValueError):
    """A limit on pixels, frames or seconds of video is exceeded."""


class VideoMemoryError(VideoError, MemoryError):
    """Reading needs more memory than this process may take."""


class VideoTimeoutError(VideoError, TimeoutError):
    """Reading took longer than `Limits.stall_seconds`."""
