"""Video files -> `Clip`: exact reading, sampling and transforms.

Names load on first use, so that samplers and transforms do not bring in the decoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastivid.video.errors import (
        EncryptedVideoError,
        NotAVideoError,
        NoVideoStreamError,
        TruncatedVideoError,
        VideoError,
        VideoMemoryError,
        VideoNotFoundError,
        VideoTimeoutError,
        VideoTooLargeError,
    )
    from elastivid.video.reader import VideoReader
    from elastivid.video.source import Limits, VideoMetadata
    from elastivid.video.transforms import Transform

_HOMES = {
    "VideoError": "errors",
    "VideoNotFoundError": "errors",
    "NotAVideoError": "errors",
    "NoVideoStreamError": "errors",
    "TruncatedVideoError": "errors",
    "EncryptedVideoError": "errors",
    "VideoTooLargeError": "errors",
    "VideoMemoryError": "errors",
    "VideoTimeoutError": "errors",
    "VideoReader": "reader",
    "Limits": "source",
    "VideoMetadata": "source",
    "Transform": "transforms",
}

__all__ = [
    "EncryptedVideoError",
    "Limits",
    "NoVideoStreamError",
    "NotAVideoError",
    "Transform",
    "TruncatedVideoError",
    "VideoError",
    "VideoMemoryError",
    "VideoMetadata",
    "VideoNotFoundError",
    "VideoReader",
    "VideoTimeoutError",
    "VideoTooLargeError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
