"""Spend less on a clip: keep only the patch tokens that change, and see which ones those are.

python examples/select_tokens.py
"""

from __future__ import annotations

import numpy as np
import torch

from elastivid import OperatingPoint, build
from elastivid.core.cost import format_macs, measured_macs
from elastivid.data.synthetic import canonical_caption, render_frames, sample_scene

FRAMES, SIZE = 8, 70


def main() -> None:
    """Encode one clip with all tokens and with fewer; print the cost, and a map of the kept tokens of one frame."""
    scene = sample_scene(np.random.default_rng(3), kind="single")
    frames = render_frames(scene, np.linspace(0.2, scene.duration_seconds - 0.2, FRAMES), SIZE)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255 - 0.5  # (T, H, W, 3) -> (1, T, 3, H, W)
    torch.manual_seed(0)
    model = build("fluxvit/tiny").eval()
    print(canonical_caption(scene))
    for tokens in (None, 100, 40):
        point = OperatingPoint(tokens=tokens)
        macs = measured_macs(lambda point=point: model(video, point=point))
        with torch.no_grad():
            output = model(video, point=point)
        print(f"{tokens or 'all':>4} tokens: {format_macs(macs)}, embedding {tuple(output.embedding.shape)}")
    side = SIZE // 14
    kept = torch.zeros(FRAMES * side * side).index_fill(0, output.taps["kept"][0], 1.0)
    for row in kept.reshape(FRAMES, side, side)[FRAMES // 2].int().tolist():  # (T*h*w) -> (T, h, w)
        print("  ", "".join(".#"[value] for value in row))


if __name__ == "__main__":
    main()
