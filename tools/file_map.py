"""The README's file map, written from the first sentence of every module.

python tools/file_map.py         rewrites the part of README.md between the two `file map` comments
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- file map: begin -->", "<!-- file map: end -->"

# From the bottom layer to the top, then what stands around the package.
FOLDERS = (
    ("src/elastivid/core", "values that flow through everything"),
    ("src/elastivid/video", "files to frames"),
    ("src/elastivid/layers", "parts of networks"),
    ("src/elastivid/select", "fewer tokens"),
    ("src/elastivid/memory", "streaming state for long video"),
    ("src/elastivid/losses", "functions of tensors"),
    ("src/elastivid/models", "one file per family"),
    ("src/elastivid/weights", "files of weights"),
    ("src/elastivid/data", "what models learn from and are tested on"),
    ("src/elastivid/train", "training"),
    ("src/elastivid/evaluate", "protocols and metrics"),
    ("src/elastivid/planning", "choosing an operating point"),
    ("src/elastivid/search", "folders to moments"),
    ("src/elastivid/app", "the command line"),
    ("recipes", "how shipped weights were made"),
    ("benchmarks", "measurements; each writes a table under docs/benchmarks"),
    ("examples", "short scripts to start from; tests run them"),
    ("tools", "checks of the project itself"),
)


def summary(source: str) -> str:
    """First sentence of the module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(source)) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[^.\s][.])\s+(?=[A-Z`])", first)[0].rstrip(".").replace("|", "\\|")


def file_map() -> str:
    """The map as Markdown: a heading per folder, a row per file that has content."""
    parts = []
    for folder, purpose in FOLDERS:
        paths = [path for path in sorted((ROOT / folder).glob("*.py")) if path.name != "__init__.py"]
        rows = [f"| `{path.relative_to(ROOT)}` | {summary(path.read_text(encoding='utf-8'))} |" for path in paths]
        if rows:
            parts.append(f"**{folder}/**: {purpose}\n\n| file | what |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def updated(readme: str) -> str:
    """`readme` with a fresh map between the two comments."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{file_map()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
