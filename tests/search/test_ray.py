"""Ray: the same index as without it. Two actors on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worlds import ColourEncoder, render

from elastivid.app.engines import engine_named
from elastivid.core.errors import MissingExtraError, UnknownNameError
from elastivid.core.point import OperatingPoint, Sampling
from elastivid.search.index import Index
from elastivid.search.reading import Reading


def content_of(index: Index) -> tuple[dict[str, tuple], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By path: what is known of each file, times of its windows (n, 2), their vectors (n, D)."""
    snapshot = index._store.snapshot()
    rows, times, vectors = {}, {}, {}
    for number, record in snapshot.records.items():
        own = snapshot.windows["file_id"] == number
        for path in record.paths:
            rows[path] = (record.status, record.reason, record.size_bytes, record.content, record.windows)
            times[path] = np.stack([snapshot.windows[own]["start_seconds"], snapshot.windows[own]["end_seconds"]], 1)
            vectors[path] = snapshot.vectors[own]
    return rows, times, vectors


@pytest.mark.slow
def test_the_index_is_the_one_that_this_machine_makes_alone(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        render(folder / f"{number}.mp4", ("red", 3 + number), ("blue", 4))
    (folder / "copy.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (folder / "noise.mp4").write_bytes(b"noise" * 99)
    whole = render(folder / "whole.mkv", ("green", 10))
    (folder / "cut.mkv").write_bytes(whole.read_bytes()[:-2000])
    alone = Index.open(tmp_path / "alone.ev", encoder=ColourEncoder())
    expected = alone.add(folder)
    seen = []
    index = Index.open(tmp_path / "ray.ev", encoder=ColourEncoder())
    report = index.add(folder, engine=engine_named("ray"), progress=seen.append)
    assert not ray.is_initialized(), "what was started is ended"
    assert (report.indexed, report.windows, report.recognised) == (expected.indexed, expected.windows, 1)
    assert report.video_seconds == pytest.approx(expected.video_seconds)
    assert (seen[-1].files_done, seen[-1].files_total) == (9, 9)
    rows, times, vectors = content_of(alone)
    ray_rows, ray_times, ray_vectors = content_of(index)
    assert rows == ray_rows
    assert {row[0] for row in rows.values()} == {"indexed", "partial", "failed"}
    for path in rows:
        np.testing.assert_array_equal(times[path], ray_times[path])
        np.testing.assert_allclose(vectors[path], ray_vectors[path], atol=1e-6)
    assert index.add(folder).unchanged == 9, "another engine goes on where this one stopped"


def test_engines_have_names(monkeypatch):
    with pytest.raises(UnknownNameError, match="unknown engine 'rai'; known: local, ray"):
        engine_named("rai")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"elastivid\[ray\]"):
        engine_named("ray")(ColourEncoder(), Reading(Sampling()), OperatingPoint(), lambda files: None).run([])


def test_ray_is_loaded_only_when_it_is_asked_for(tmp_path):
    script = "import sys, elastivid.search.adding; assert not {'ray', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
