"""Licences of weights: which count as permissive, and refusing the others. Licence texts are not read, names are."""

from __future__ import annotations

import re

from elastivid.core.errors import WeightsError

PERMISSIVE = frozenset(
    {
        "0bsd",
        "apache-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc0-1.0",
        "isc",
        "mit",
        "ms-pl",
        "unlicense",
        "zlib",
    }
)
ANY, PERMISSIVE_ONLY = "any", "permissive"


def is_permissive(licence: str) -> bool:
    """Whether an SPDX expression or a name as huggingface.co writes it allows use without strings beyond attribution.

    Of `A OR B` one has to, of `A AND B` both. Names that are not in `PERMISSIVE` do not, "unknown" among them.
    """
    names = re.sub(r"[()]", " ", licence).lower()
    if names != licence.lower():  # brackets may mix both words: then every name has to be permissive
        names = re.sub(r"\s+or\s+", " and ", names)
    choices = [re.split(r"\s+and\s+", choice.strip()) for choice in re.split(r"\s+or\s+", names)]
    return any(all(name.strip() in PERMISSIVE for name in choice) for choice in choices)


def require_licence(wanted: str, licence: str, model: str) -> None:
    """Refuse weights whose licence is not what the user wants.

    Args:
        wanted: "any" or "permissive".
        licence: what the weights state.
        model: address of the weights, for the message.

    Raises:
        WeightsError: the licence is not permissive although it has to be, or `wanted` is neither word.
    """
    if wanted not in (ANY, PERMISSIVE_ONLY):
        raise WeightsError(f"a licence to require is {ANY!r} or {PERMISSIVE_ONLY!r}, got {wanted!r}")
    if wanted == PERMISSIVE_ONLY and not is_permissive(licence):
        raise WeightsError(
            f"the weights of {model} state the licence {licence!r}, which is not on the permissive list "
            f"({', '.join(sorted(PERMISSIVE))}); read their model card and leave out the licence option, "
            "or take other weights"
        )
