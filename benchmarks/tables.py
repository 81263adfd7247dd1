"""What all benchmarks share: the line that names the machine, and writing a page with tables."""

from __future__ import annotations

import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

from elastivid.core.cost import hardware_key

PAGES = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def machine(*packages: str) -> str:
    """One sentence that names machine, Python and package versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "av", *packages))
    return f"Measured {date.today()} on {hardware_key()}, Python {platform.python_version()}, {versions}."


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; every column but the first is right-aligned."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def write_page(name: str, *parts: str) -> None:
    """Print the parts and write them to docs/benchmarks/<name>.md."""
    text = "\n\n".join(parts) + "\n"
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
