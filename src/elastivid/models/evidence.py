"""Where in time a model looked: attention to remembered tokens as stretches of the video.

Letters: N tokens.
"""

from __future__ import annotations

from torch import Tensor

from elastivid.core.answer import Evidence

SHARE_OF_BEST = 0.1  # a chunk counts when it gets this much of what the best one gets


def stretches(
    attention: Tensor, seconds: Tensor, chunk_seconds: float, now_seconds: float, share: float = SHARE_OF_BEST
) -> list[Evidence]:
    """Stretches of chunks that got attention, the weightiest first.

    A chunk's weight is the attention of its tokens. Chunks with at least `share` of the largest weight count, and
    neighbours among them are one stretch. Times are as fine as chunks are long.

    Args:
        attention: to each token (N,), what went to a sink left out.
        seconds: time of each token (N,).
        chunk_seconds: length of a chunk.
        now_seconds: where the video ends so far; the last chunk may reach beyond it.
        share: see above.
    """
    weights: dict[int, float] = {}
    for number, weight in zip((seconds / chunk_seconds).long().tolist(), attention.tolist(), strict=True):
        weights[number] = weights.get(number, 0.0) + weight
    least = share * max(weights.values(), default=0.0)
    runs: list[list[int]] = []
    for number in sorted(n for n, weight in weights.items() if weight >= least and weight > 0):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    found = [
        Evidence(
            run[0] * chunk_seconds,
            min((run[-1] + 1) * chunk_seconds, now_seconds),
            round(sum(weights[n] for n in run), 4),
        )
        for run in runs
    ]
    return sorted(found, key=lambda e: -e.weight)
