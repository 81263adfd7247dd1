"""Errors of the library. Every message says what was wrong, what was got, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ElastividError(Exception):
    """Base of every error that elastivid raises on purpose."""


class BudgetError(ElastividError, ValueError):
    """A budget cannot be parsed, contradicts itself or cannot be met."""


class PointError(ElastividError, ValueError):
    """An operating point or a sampling is not valid, or names an axis the model does not have."""


class PlanError(ElastividError, ValueError):
    """A plan cannot be written as JSON, or a text is not a plan."""


class QuestionError(ElastividError, ValueError):
    """A question is empty, too long, or of no kind that can be answered."""


class WeightsError(ElastividError, ValueError):
    """A weights file is missing, damaged, or does not fit the model."""


class UnknownNameError(ElastividError, LookupError):
    """A name is not known. The message lists the closest known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(names)}.{hint}")


class MissingExtraError(ElastividError, ImportError):
    """An optional dependency is needed and not installed. The message holds the pip line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed; run: pip install 'elastivid[{extra}]'"
        )


def require_known_keys(config_name: str, config: Iterable[str], known: Iterable[str], *ignored: Iterable[str]) -> None:
    """Refuse a config of other code that says something we do not understand.

    Args:
        config_name: for the message.
        config: its keys.
        known: keys that are understood.
        ignored: keys that make no difference.

    Raises:
        WeightsError: there are others.
    """
    unknown = sorted(set(config).difference(known, *ignored))
    if unknown:
        raise WeightsError(
            f"{config_name} has unknown keys {unknown}; known: {sorted(known)}. Leave them out if they change nothing, "
            "else this model cannot be built here"
        )
