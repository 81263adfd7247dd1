"""Splits that never cut a source in two, and what leaks where somebody split otherwise.

Clips cut from one film share people, places and light: a model that saw one of them recognises the others.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastivid.data.listing import Entry

SHOWN = 5


def split_by_source(entries: Sequence[Entry], folds: int, seed: int = 0) -> np.ndarray:
    """Fold number (N,) of every entry: sources whole, labels spread as evenly as whole sources allow.

    Sources are dealt out, the largest first, each to the fold where it raises the squared deviation from an even share
    the least, summed over labels (and over the total, which settles ties between rare labels). Equal sizes are
    ordered by a hash of seed and name.

    Args:
        entries: the data set; its order does not matter.
        folds: number of folds, at least 2.
        seed: other seeds give other folds.

    Raises:
        ValueError: there are fewer than 2 folds, or fewer sources than folds.
    """
    members, labels = _members(entries, folds), sorted({entry.label for entry in entries})
    place = {label: i for i, label in enumerate(labels)}
    counts = {source: np.zeros(len(labels) + 1) for source in members}  # by label, and all of them
    for source, rows in members.items():
        for row in rows:
            counts[source][[place[entries[row].label], -1]] += 1
    total = np.sum(list(counts.values()), axis=0)
    weight = 1.0 / np.maximum(total, 1)  # a clip more or less matters more where a label has few
    filled = np.zeros((folds, len(labels) + 1))
    of_entry = np.empty(len(entries), dtype=np.int64)
    for source in sorted(members, key=lambda s: (-len(members[s]), zlib.crc32(f"{seed}/{s}".encode()), s)):
        excess = ((filled + counts[source] - total / folds) ** 2 - (filled - total / folds) ** 2) * weight
        fold = int(excess.sum(axis=1).argmin())
        filled[fold] += counts[source]
        of_entry[members[source]] = fold
    return of_entry


def folds_by_size(entries: Sequence[Entry], folds: int) -> np.ndarray:
    """Fold number (N,) of every entry: sources whole, the largest first, each to the smallest fold.

    Looks at sizes alone, and at no seed: the folds of docs/benchmarks/actions.md.

    Raises:
        ValueError: see `split_by_source`.
    """
    members = _members(entries, folds)
    totals = [0] * folds
    of_entry = np.empty(len(entries), dtype=np.int64)
    for source in sorted(members, key=lambda s: (-len(members[s]), zlib.crc32(s.encode()))):
        fold = totals.index(min(totals))
        totals[fold] += len(members[source])
        of_entry[members[source]] = fold
    return of_entry


@dataclass(frozen=True)
class Leak:
    """Something that stands on both sides of a split.

    Args:
        kind: "source" or "content".
        what: name of the source, or the first digits of the hash of the bytes.
        train: entries on the one side that have it.
        test: those on the other.
    """

    kind: str
    what: str
    train: tuple[Path, ...]
    test: tuple[Path, ...]


def leaks(train: Sequence[Entry], test: Sequence[Entry]) -> list[Leak]:
    """Sources, and file contents, that stand on both sides.

    Contents are compared by size first, so that only files of equal size are read. Files that cannot be read are left
    to the quarantine. Parts of one file count as one content.
    """
    found = _shared("source", *(_group((e.origin, e.path) for e in side) for side in (train, test)))
    by_size: list[dict[int, set[Path]]] = [defaultdict(set) for _ in range(2)]
    for side, sizes in zip((train, test), by_size, strict=True):
        for path in {entry.path for entry in side}:
            if path.is_file():
                sizes[path.stat().st_size].add(path)
    common = by_size[0].keys() & by_size[1].keys()
    hashes = {path: _hash(path) for sizes in by_size for size in common for path in sizes[size]}
    grouped = [_group((hashes[p], p) for size in common for p in sizes[size]) for sizes in by_size]
    return found + _shared("content", *grouped)


def leakage_report(train: Sequence[Entry], test: Sequence[Entry]) -> list[str]:
    """Lines that say what stands on both sides of a split, or that nothing does."""
    found = leaks(train, test)
    if not found:
        return [f"leakage: none (no source and no file content of {len(train)} clips among the other {len(test)})"]
    clips = {path for leak in found for path in leak.test}
    share = 100 * sum(entry.path in clips for entry in test) / len(test)
    kinds = Counter(leak.kind for leak in found)
    named = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(kinds.items()))
    lines = [f"leakage: {named} on both sides; {share:.1f} % of the {len(test)} test clips are touched"]
    for leak in found[:SHOWN]:
        lines.append(
            f"  {leak.kind} {leak.what}: {leak.train[0]} ({len(leak.train)}) | {leak.test[0]} ({len(leak.test)})"
        )
    if len(found) > SHOWN:
        lines.append(f"  and {len(found) - SHOWN} more")
    return [*lines, "  split with elastivid.data.splits.split_by_source to part them"]


def _members(entries: Sequence[Entry], folds: int) -> dict[str, list[int]]:
    members: dict[str, list[int]] = defaultdict(list)
    for row, entry in enumerate(entries):
        members[entry.origin].append(row)
    if folds < 2 or len(members) < folds:
        raise ValueError(f"need at least 2 folds and as many sources, got folds={folds} and {len(members)} sources")
    return members


def _group(pairs: Iterable[tuple[str, Path]]) -> dict[str, tuple[Path, ...]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for key, path in pairs:
        groups[key].append(path)
    return {key: tuple(sorted(paths)) for key, paths in groups.items()}


def _shared(kind: str, train: dict[str, tuple[Path, ...]], test: dict[str, tuple[Path, ...]]) -> list[Leak]:
    return [Leak(kind, key, train[key], test[key]) for key in sorted(train.keys() & test.keys())]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
