"""Every example runs as a person would run it and prints what it promises; code in the documentation runs too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

PROMISED = {
    "budget.py": ["fits", "limit 20 GMACs"],
    "plan.py": [
        "nano within 0.5gmacs, 40MB: 120 tokens",
        "tokens: clamped to 120 of 1152",
        "measured",
        "refused: no plan",
    ],
    "read_video.py": ["Clip(3x", "equal by index: True", "frames in order:"],
    "search_folder.py": ["6 files", "looking for:", "truth:"],
    "select_tokens.py": [" all tokens:", "40 tokens:", "#"],
}


def run(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in `folder`."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=200, check=False)


def test_every_example_has_a_promise():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISED)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROMISED))
def test_example_runs(name, tmp_path):
    result = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, timeout=200
    )
    assert result.returncode == 0, result.stderr
    for text in PROMISED[name]:
        assert text in result.stdout, result.stdout


def test_read_video_takes_a_file(tmp_path):
    result = run(tmp_path, EXAMPLES / "read_video.py", "missing.mp4")
    assert result.returncode != 0
    assert "missing.mp4" in result.stderr


def blocks() -> list[tuple[str, str]]:
    """Page and text of every Python block of the README and the documentation."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        texts = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)
        found += [(f"{page.relative_to(ROOT)}:{number}", text) for number, text in enumerate(texts, start=1)]
    return found


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks()])
def test_code_in_the_documentation_runs(text, tmp_path):
    """A block that names a file of the reader's cannot run here: then its imports must."""
    if any(name in text for name in ("~/Videos", "clip.mp4", "egovlp.pth")):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        text = "\n".join(ast.unparse(node) for node in nodes)
    result = run(tmp_path, "-c", text)
    assert result.returncode == 0, result.stderr
