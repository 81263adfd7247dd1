"""The fixtures of `conftest.py`: absent data is skipped, counted, and a failure where it is required."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parent / "conftest.py"

A_TEST = """
def test_values(golden):
    tensors, metadata = golden("numbers")
    assert tensors["x"].tolist() == [1.0, 2.0]
    assert metadata == {"source": "here"}

def test_videos(shared_data):
    assert shared_data.name == "data"
"""


@pytest.fixture
def run(tmp_path):
    """Runs `A_TEST` in its own folder, with data in `shared/` of that folder."""
    tests = tmp_path / "project" / "tests"
    tests.mkdir(parents=True)
    shutil.copy(CONFTEST, tests / "conftest.py")
    (tests / "test_a.py").write_text(A_TEST)
    (tests.parent / "pytest.ini").write_text("[pytest]\n")

    def run(**variables: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ELASTIVID_")} | variables
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        return subprocess.run(command, cwd=tests.parent, env=environment, capture_output=True, text=True).stdout

    return run


def write_golden(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    (folder / "golden").mkdir(parents=True)
    (folder / "data").mkdir()
    save_file({"x": torch.tensor([1.0, 2.0])}, folder / "golden" / "numbers.safetensors", {"source": "here"})


def test_absent_files_are_skipped_and_counted(run):
    output = run()
    assert "2 skipped" in output
    assert "golden files: 0 compared, 1 absent (numbers)" in output
    assert "set ELASTIVID_SHARED to the folder that holds golden/" in output
    assert "set ELASTIVID_SHARED to the folder that holds data/" in output


def test_required_files_fail_when_absent(run):
    output = run(ELASTIVID_REQUIRE_GOLDEN="1")
    assert "1 failed, 1 skipped" in output
    assert "golden file numbers.safetensors is absent" in output


def test_files_are_found_beside_the_project_or_where_told(run, tmp_path):
    write_golden(tmp_path / "shared")
    for output in (run(), run(ELASTIVID_SHARED=str(tmp_path / "shared"), ELASTIVID_REQUIRE_GOLDEN="1")):
        assert "2 passed" in output
        assert "golden files: 1 compared, 0 absent" in output
    assert "2 skipped" in run(ELASTIVID_SHARED=str(tmp_path / "elsewhere"))
