"""elastivid: video understanding under a compute budget.

Importing this package loads neither torch nor av nor lancedb: public names are resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastivid.core.budget import Budget as Budget
    from elastivid.core.clip import Clip as Clip
    from elastivid.core.cost import Cost as Cost
    from elastivid.core.plan import Plan as Plan
    from elastivid.core.point import OperatingPoint as OperatingPoint
    from elastivid.core.point import Runtime as Runtime
    from elastivid.core.point import Sampling as Sampling
    from elastivid.planning.prepare import plan as plan
    from elastivid.search.classify import classify as classify
    from elastivid.search.filters import Filters as Filters
    from elastivid.search.index import Index as Index
    from elastivid.search.watch import Watch as Watch
    from elastivid.weights.load import build as build
    from elastivid.weights.load import load as load
    from elastivid.weights.load import load_asker as load_asker

__version__ = "0.4.0"

_WHERE = {
    "Budget": "elastivid.core.budget",
    "Cost": "elastivid.core.cost",
    "Plan": "elastivid.core.plan",
    "Clip": "elastivid.core.clip",
    "OperatingPoint": "elastivid.core.point",
    "Runtime": "elastivid.core.point",
    "Sampling": "elastivid.core.point",
    "classify": "elastivid.search.classify",
    "Filters": "elastivid.search.filters",
    "Index": "elastivid.search.index",
    "Watch": "elastivid.search.watch",
    "plan": "elastivid.planning.prepare",
    "build": "elastivid.weights.load",
    "load": "elastivid.weights.load",
    "load_asker": "elastivid.weights.load",
}

__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'elastivid' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
