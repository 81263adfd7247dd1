"""What is an address on the web rather than the name of a file."""

from __future__ import annotations

import os


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether this is an http or https address."""
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))
