"""Reading small files that people and other programs write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from elastivid.core.errors import WeightsError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that travels with weights.

    Raises:
        WeightsError: it is missing or no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}; fetch it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} must hold a JSON object, got {type(values).__name__}; fetch it again")
    return values
