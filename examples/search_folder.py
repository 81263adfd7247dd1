"""Render a folder of short videos, index it and search it in words.

python examples/search_folder.py ["a red circle moves left"]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import elastivid as ev
from elastivid.data.synthetic import VideoFormat, canonical_caption, sample_scene, write_video

NUM_VIDEOS = 6


def main(query: str | None) -> None:
    """Search `NUM_VIDEOS` rendered videos for `query`, by default for the caption of the first one."""
    with tempfile.TemporaryDirectory() as folder:
        captions = {}
        for number in range(NUM_VIDEOS):
            scene = sample_scene(np.random.default_rng(number), kind="single")
            path = Path(folder) / "videos" / f"{number}.mp4"
            path.parent.mkdir(exist_ok=True)
            write_video(scene, path, VideoFormat(height=168, width=224, fps=12))
            captions[path.name] = canonical_caption(scene)
        query = query or captions["0.mp4"]

        with ev.Index.open(Path(folder) / "library.ev") as index:
            report = index.add(path.parent)
            print(f"{report.indexed} files, {report.windows} windows, {report.x_realtime:.0f} x realtime")
            print(f"looking for: {query}")
            for moment in index.search(query, top=3):
                name = Path(moment.path).name
                times = f"{moment.start_seconds:5.2f} - {moment.end_seconds:5.2f} s"
                print(f"{moment.score:.3f}  {name}  {times}  truth: {captions[name]}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
