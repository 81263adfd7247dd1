"""Synthetic captioned videos with complete ground truth: one import for the toy world, its pixels, words and files.

rng = np.random.default_rng(0)
scene = sample_scene(rng)                             # elastivid.data.staging
frames = render_frames(scene, [0.25, 0.75], 168)      # elastivid.data.render
text = captions(scene, rng)                           # elastivid.data.captions
write_video(scene, "scene.mp4")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from elastivid.data.captions import canonical_caption, captions, hard_negatives, negative_contents, swapped
from elastivid.data.render import iterate_frames, render_frames
from elastivid.data.staging import compose_parts, compose_scene, sample_content, sample_scene
from elastivid.data.world import Content, Phrase, Scene, is_held_out

__all__ = [
    "Content",
    "Phrase",
    "Scene",
    "VideoFormat",
    "canonical_caption",
    "captions",
    "compose_parts",
    "compose_scene",
    "hard_negatives",
    "is_held_out",
    "negative_contents",
    "render_frames",
    "sample_content",
    "sample_scene",
    "swapped",
    "write_video",
]

_PIXELS_OF_CODEC = {"libx264": "yuv420p", "mpeg4": "yuv420p", "libvpx-vp9": "yuv420p", "mjpeg": "yuvj444p"}
_OPTIONS_OF_CODEC = {
    "libx264": {"preset": "veryfast", "crf": "21"},
    "mpeg4": {"qscale": "3", "flags": "+qscale"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "mjpeg": {},
}
_TICKS = 12_000  # of the clock for files of variable rate, per second


@dataclass(frozen=True)
class VideoFormat:
    """How a file is encoded. The container follows from the file's suffix.

    Args:
        height, width: size in pixels; libx264 needs even ones.
        fps: frames per second.
        codec: one of the FFmpeg encoders libx264, mpeg4, libvpx-vp9, mjpeg.
        keyframe_seconds: distance of keyframes.
    """

    height: int = 240
    width: int = 320
    fps: int = 24
    codec: str = "libx264"
    keyframe_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.codec not in _PIXELS_OF_CODEC:
            raise ValueError(f"codec must be one of {', '.join(_PIXELS_OF_CODEC)}, got {self.codec!r}")
        if self.codec == "libx264" and (self.height % 2 or self.width % 2):
            raise ValueError(f"libx264 needs even sizes, got {self.width}x{self.height}; use libvpx-vp9 or mjpeg")


def write_video(
    scene: Scene,
    path: str | Path,
    video_format: VideoFormat | None = None,
    *,
    times_seconds: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Render the scene and encode it as a real file (no audio). Encoding is single-threaded and writes no random
    identifiers, so equal calls write equal files; but libx264 now and then chooses otherwise for a few frames, which
    then differ by less than a grey level on average.

    Args:
        times_seconds: presentation times of the frames, ascending, for a file of variable rate; `None` gives a
            constant rate, frame k at k / fps, over the whole duration.

    Raises:
        ValueError: times are not ascending, or the format is not possible.
    """
    video_format = video_format or VideoFormat()
    rate = video_format.fps
    if times_seconds is None:
        count = max(1, round(scene.duration_seconds * rate))
        times, stamps, time_base = np.arange(count) / rate, np.arange(count), Fraction(1, rate)
    else:
        times, time_base = np.asarray(times_seconds, dtype=np.float64), Fraction(1, _TICKS)
        stamps = np.round(times * _TICKS).astype(np.int64)
        if len(times) == 0 or np.any(np.diff(stamps) <= 0):
            raise ValueError(f"times_seconds must be ascending and at least 1/{_TICKS} s apart, got {times_seconds!r}")
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(video_format.codec, rate=rate, options=_OPTIONS_OF_CODEC[video_format.codec])
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = video_format.width, video_format.height
        stream.pix_fmt = _PIXELS_OF_CODEC[video_format.codec]
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = max(1, round(video_format.keyframe_seconds * rate))
        pictures = iterate_frames(scene, times, video_format.height, video_format.width)
        for stamp, picture in zip(stamps, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(stamp), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
