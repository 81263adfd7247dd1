"""What was measured on weights, written into their file: plans go by it (see `elastivid.planning.subject`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from elastivid.core.errors import WeightsError
from elastivid.weights.load import read_metadata
from elastivid.weights.writing import write_weights

POINT_KEYS = {"frames", "size", "tokens", "width", "accuracy"}


def add_front(path: Path, *, data: str, metric: str, points: Sequence[Mapping[str, float]]) -> None:
    """Add accuracies at operating points to a weights file; replaced atomically, its tensors stay as they are.

    A front of the same weights on the same data set with the same metric is replaced.

    Args:
        path: a file that `elastivid.weights.load.save` wrote.
        data: name and version of the data set, such as "synthetic@1".
        metric: what was measured; more is better.
        points: per point its frames, size, tokens, width and accuracy.

    Raises:
        WeightsError: the file is none of ours, there are no points, or one has other keys.
    """
    from safetensors.torch import load_file

    if not points or any(set(point) != POINT_KEYS for point in points):
        raise WeightsError(f"a front needs points, each with {', '.join(sorted(POINT_KEYS))}; got {list(points)[:1]}")
    metadata = read_metadata(path)
    weights = metadata.get("weights_id", metadata["space_id"])
    new = {"weights": weights, "data": data, "metric": metric, "points": [dict(point) for point in points]}
    same = {name: new[name] for name in ("weights", "data", "metric")}
    others = [row for row in metadata.get("fronts", ()) if {name: row.get(name) for name in same} != same]
    metadata["fronts"] = [*others, new]
    write_weights(path, load_file(path), metadata)
