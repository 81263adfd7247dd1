"""Clips that cannot be used are listed with the reason, whoever reports them, and too many of them stop a run."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from elastivid.data.quarantine import Quarantine, QuarantineError


def test_reasons_are_listed_once_and_summed_up(tmp_path):
    quarantine = Quarantine(tmp_path / "runs" / "quarantine.jsonl", total=100)
    assert quarantine.summary() == ["quarantine: all 100 clips could be used"]
    for _ in range(3):
        quarantine.add("a.mp4", "a.mp4: the file is empty", replaced_by="b.mp4")
        pickle.loads(pickle.dumps(quarantine)).add("c.mp4", "c.mp4: the file is empty")
    rows = quarantine.rows()
    assert [row["path"] for row in rows] == ["a.mp4", "c.mp4"]
    assert rows[0]["replaced_by"] == "b.mp4"
    lines = quarantine.summary()
    assert lines[0].startswith("quarantine: 2 of 100 clips could not be used; listed in ")
    assert lines[1] == "  2 x FILE: the file is empty"


def test_a_line_that_a_kill_cut_off_harms_nothing(tmp_path):
    file = tmp_path / "quarantine.jsonl"
    file.write_bytes(b'{"path": "a.mp4", "reason": "x"}\n{"path": "b.m')
    quarantine = Quarantine(file, total=10, limit=1.0)
    assert len(quarantine.rows()) == 1


def test_too_many_stop_the_run(tmp_path):
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", total=40, limit=0.05)
    quarantine.add("a", "bad")
    quarantine.add("b", "bad")
    with pytest.raises(
        QuarantineError, match=r"3 of 40 clips cannot be used, more than the allowed 5 %; the last: worse"
    ):
        quarantine.add("c", "worse")
    with pytest.raises(ValueError, match=r"limit must be a share in \[0, 1\] and total >= 1, got limit=2, total=1"):
        Quarantine(tmp_path / "x", total=1, limit=2)


def test_processes_do_not_mix_their_lines(tmp_path):
    code = (
        "import sys; from pathlib import Path; from elastivid.data.quarantine import Quarantine\n"
        "q = Quarantine(Path(sys.argv[1]), 1000, 1.0)\n"
        "for i in range(40): q.add(f'{sys.argv[2]}-{i}.mp4', 'x' * 300)"
    )
    file = tmp_path / "quarantine.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    rows = Quarantine(file, 1000, 1.0).rows()
    assert {row["path"] for row in rows} == {f"{name}-{i}.mp4" for name in "abc" for i in range(40)}
    assert len(rows) == len(file.read_bytes().splitlines()) == 120
