"""Read frames of a video by time and by index, and see that both are exact.

    python examples/read_video.py [FILE]

Without a file it renders one: coloured shapes that move, written as H.264.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from elastivid.data.synthetic import canonical_caption, sample_scene, write_video
from elastivid.video import VideoReader


def main(path: str | None) -> None:
    """Print what a file holds and read some frames of it."""
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            scene = sample_scene(np.random.default_rng(7))
            path = str(Path(folder) / "scene.mp4")
            write_video(scene, path)
            print(f"rendered {path}: {canonical_caption(scene)}")
        with VideoReader(path) as reader:
            print(reader.metadata)
            played = reader.frames_played_at([0.0, 0.5, 1.0])  # what a player shows at these seconds
            print(played)
            same = reader.frames_at(played.indices)  # the same frames by position in the stream
            print("equal by index:", np.array_equal(played.frames, same.frames))
            print("frames in order:", sum(len(clip) for clip in reader.iterate()))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
