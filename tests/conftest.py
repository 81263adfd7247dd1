"""Fixtures every test may use: data outside the repository, with a count of what was there and what was not.

`ELASTIVID_SHARED` (default `../shared` beside the repository) holds `golden/` (random weights, inputs and outputs of
public implementations) and `data/` (real videos). Tests that need them skip where they are absent;
`ELASTIVID_REQUIRE_GOLDEN=1` turns an absent golden file into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

_compared: set[str] = set()
_absent: set[str] = set()


def shared_folder() -> Path:
    """Folder of the data that is not part of the repository; it may not exist."""
    folder = Path(os.environ.get("ELASTIVID_SHARED", "../shared")).expanduser()
    return folder if folder.is_absolute() else (ROOT / folder).resolve()


def require_or_skip(name: str, path: Path) -> None:
    """Skip when golden file `name` is absent, or fail where `ELASTIVID_REQUIRE_GOLDEN=1` demands it."""
    if path.is_file():
        _compared.add(name)
        return
    _absent.add(name)
    message = f"golden file {path.name} is absent; set ELASTIVID_SHARED to the folder that holds golden/"
    if os.environ.get("ELASTIVID_REQUIRE_GOLDEN") == "1":
        pytest.fail(message + " (ELASTIVID_REQUIRE_GOLDEN=1)")
    pytest.skip(message)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict, dict[str, str]]]:
    """`golden(name)` returns (tensors, metadata) of `golden/<name>.safetensors`, or skips the test."""

    def load(name: str) -> tuple[dict, dict[str, str]]:
        path = shared_folder() / "golden" / f"{name}.safetensors"
        require_or_skip(name, path)
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118

    return load


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder `data/` with real videos (`clips/`, `broken/`, `labelled/`), or skips the test."""
    folder = shared_folder() / "data"
    if not folder.is_dir():
        pytest.skip("real videos are absent; set ELASTIVID_SHARED to the folder that holds data/")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many golden files were compared and how many were absent."""
    absent = f" ({', '.join(sorted(_absent))})" if _absent else ""
    terminalreporter.write_line(f"golden files: {len(_compared)} compared, {len(_absent)} absent{absent}")
