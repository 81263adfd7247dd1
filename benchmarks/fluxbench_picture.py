"""A picture of flux-bench: one test clip of each task in twelve frames.

    python benchmarks/fluxbench_picture.py

Writes docs/images/flux-bench.png.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from elastivid.data.fluxbench import TASKS, draw_clip, render_clip

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "flux-bench.png"
NUMBERS = (7, 15, 9, 17, 11, 19, 13)  # test clips of the tasks in their order


def main() -> None:
    figure, rows = plt.subplots(len(TASKS), 1, figsize=(9.6, 6.4), dpi=120)
    for axes, index in zip(rows, NUMBERS, strict=True):
        clip = draw_clip("test", index)
        task = TASKS[clip.task]
        frames = np.pad(render_clip(clip, 12, 64), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        axes.imshow(np.concatenate(list(frames), axis=1), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_ylabel(f"{task.name}\n{task.classes[clip.label]}\n{task.seconds:g} s", fontsize=8, rotation=0,
                        ha="right", va="center")  # fmt: skip
    figure.tight_layout(h_pad=0.3)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    main()
