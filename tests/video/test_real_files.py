"""Real files: every clip equals sequential decoding bit for bit; every broken file ends as the table says."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from broken_files import TABLE, outcomes
from conftest import shared_folder
from media import planes

from elastivid.video import VideoReader
from elastivid.video.samplers import uniform

DATA = shared_folder() / "data"
CLIPS = sorted((DATA / "clips").rglob("*.*")) if DATA.is_dir() else []
needs_data = pytest.mark.skipif(not CLIPS, reason="real files absent; set ELASTIVID_SHARED to the folder with data/")


@needs_data
def test_sixteen_spread_frames_of_every_clip_equal_sequential_decoding():
    import av

    wrong, compared = [], 0
    for path in CLIPS:
        if path.suffix == ".csv":
            continue
        with VideoReader(path) as reader:
            indices = np.unique(uniform(reader.count_frames(), 16))
            got = [(g.index, *planes(g.frame)) for g in reader.decoded_frames_at(indices)]
        wanted = set(indices.tolist())
        with av.open(str(path), metadata_errors="replace") as container:
            frames = enumerate(container.decode(video=0))
            expected = [(i, *planes(f)) for i, f in frames if i in wanted]
        compared += 1
        if got != expected:
            wrong.append(path.name)
    assert compared >= 66
    assert not wrong


@needs_data
def test_broken_files_end_as_the_table_says():
    with TABLE.open(newline="") as file:
        expected = {row["file"]: row["result"] for row in csv.DictReader(file)}
    assert not {"hang", "crash"} & set(expected.values())
    assert outcomes(DATA / "broken") == expected
