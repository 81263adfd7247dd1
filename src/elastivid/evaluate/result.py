"""`Result`: an evaluation as JSON that somebody else can run again and compare.

It names the weights and the data by hashes of their bytes, holds the settings, seeds and versions, a row per operating
point, and what was predicted for every sample, compressed. `differences` says what came out otherwise the second time.

Letters: N samples, k classes kept of each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from elastivid import __version__
from elastivid.core.errors import ElastividError
from elastivid.train.checkpoint import write_atomically

FORMAT = 1
TOLERANCE = 1e-6
KINDS = ("int32", "float32", "bool")
NOT_COMPARED = ("milliseconds",)  # measured, so never the same twice


class ResultError(ElastividError, ValueError):
    """A text is no result, or a result cannot be run again."""


@dataclass(frozen=True)
class Data:
    """What was evaluated on.

    Args:
        path: list or folder, as it was given.
        hash: of the bytes of every clip, its label and its text, in order.
        clips: how many entries it has.
        classes: names of the classes, in order.
    """

    path: str
    hash: str
    clips: int
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Args:
        protocol: name of the recipe that ran.
        settings: of the recipe, as JSON values.
        model: address.
        weights_id: hash of the weights.
        data: what it ran on.
        rows: one per operating point; `gmacs`, `tokens`, `frames` stand beside accuracy.
        predictions: per row, arrays by name: what was predicted for each sample that could be read.
        left_out: clips that could not be read, with reasons.
        seeds: by what they were for.
        versions: of packages, Python and processor.
    """

    protocol: str
    settings: Mapping[str, Any]
    model: str
    weights_id: str
    data: Data
    rows: tuple[Mapping[str, Any], ...]
    predictions: tuple[Mapping[str, np.ndarray], ...] = ()
    left_out: tuple[Mapping[str, str], ...] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON text that `from_json` reads back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["data"] = vars(self.data)
        values["predictions"] = [{name: packed(array) for name, array in part.items()} for part in self.predictions]
        return json.dumps({"format": FORMAT, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Inverse of `to_json`.

        Raises:
            ResultError: the text is no result of this format.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            data = Data(**values.pop("data"))
            data = replace(data, classes=tuple(data.classes))
            predictions = tuple(
                {name: unpacked(array) for name, array in part.items()} for part in values.pop("predictions")
            )
            rows, left_out = tuple(values.pop("rows")), tuple(values.pop("left_out"))
            return cls(data=data, predictions=predictions, rows=rows, left_out=left_out, **values)
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise ResultError(
                f"this is no result that elastivid wrote ({type(error).__name__}: {error}); "
                "use a file that `elastivid eval` wrote with --out"
            ) from error

    def write(self, path: Path) -> None:
        """Write to a file, which appears when it is whole."""
        write_atomically(path, lambda file: file.write(self.to_json().encode()))

    @classmethod
    def read(cls, path: Path) -> Result:
        """The result in a file.

        Raises:
            ResultError: the file cannot be read or holds none.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultError(f"cannot read {path}: {error}") from error
        return cls.from_json(text)


def differences(before: Result, now: Result, tolerance: float = TOLERANCE) -> list[str]:
    """A line for everything that came out otherwise: weights, data, numbers of rows, predictions. Empty when the same.

    Measured times are not compared, nor are versions: the same numbers on another machine are the same result.

    Args:
        before, now: two runs of one protocol.
        tolerance: largest difference of a number, absolute, and relative to numbers above 1.
    """
    lines = []
    for name, one, two in (
        ("weights", before.weights_id, now.weights_id),
        ("data", before.data.hash, now.data.hash),
        ("classes", before.data.classes, now.data.classes),
        ("clips left out", len(before.left_out), len(now.left_out)),
        ("operating points", len(before.rows), len(now.rows)),
    ):
        if one != two:
            lines.append(f"{name}: {_short(one)} -> {_short(two)}")
    for number, (row, other) in enumerate(zip(before.rows, now.rows, strict=False)):
        where = str(row.get("point", f"row {number + 1}"))
        lines += [f"{where}: {text}" for text in _of_rows(row, other, tolerance)]
    for number, (part, other) in enumerate(zip(before.predictions, now.predictions, strict=False)):
        where = str(before.rows[number].get("point", f"row {number + 1}"))
        lines += [f"{where}: {text}" for text in _of_predictions(part, other, tolerance)]
    return lines


def _of_rows(row: Mapping[str, Any], other: Mapping[str, Any], tolerance: float) -> list[str]:
    lines = []
    for name in [*row, *(name for name in other if name not in row)]:
        one, two = row.get(name), other.get(name)
        if name not in NOT_COMPARED and not _same(one, two, tolerance):
            lines.append(f"{name} {_short(one)} -> {_short(two)}")
    return lines


def _of_predictions(part: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], tolerance: float) -> list[str]:
    lines = []
    for name in [*part, *(name for name in other if name not in part)]:
        one, two = part.get(name), other.get(name)
        if one is None or two is None or one.shape != two.shape:
            lines.append(f"{name}: {None if one is None else one.shape} -> {None if two is None else two.shape}")
            continue
        apart = np.abs(one.astype(np.float64) - two.astype(np.float64)).reshape(len(one), -1).max(axis=1, initial=0.0)
        off = int((~(apart <= tolerance)).sum())
        if off:
            worst = f", by up to {np.nanmax(apart):.2g}" if one.dtype == np.float32 else ""
            lines.append(f"{name} of {off} of {len(one)} samples differ{worst}")
    return lines


def _same(one: Any, two: Any, tolerance: float) -> bool:
    numbers = isinstance(one, int | float) and isinstance(two, int | float)
    if not numbers or isinstance(one, bool) or isinstance(two, bool):
        return bool(one == two) or (isinstance(one, list) and isinstance(two, list) and len(one) == len(two)
                                    and all(_same(a, b, tolerance) for a, b in zip(one, two, strict=True)))  # fmt: skip
    if math.isnan(one) or math.isnan(two):
        return math.isnan(one) and math.isnan(two)
    return abs(one - two) <= tolerance * max(1.0, abs(one))


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def packed(array: np.ndarray) -> dict[str, Any]:
    """An array as JSON values: type, shape, and its bytes, little-endian, compressed, in base 64."""
    name = array.dtype.name
    if name not in KINDS:
        raise ValueError(f"predictions are kept as {', '.join(KINDS)}, got {name}")
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return {"type": name, "shape": list(array.shape), "data": base64.b64encode(zlib.compress(raw, 9)).decode()}


def unpacked(values: Mapping[str, Any]) -> np.ndarray:
    """Inverse of `packed`.

    Raises:
        ValueError: type, shape and bytes do not fit each other.
    """
    if values["type"] not in KINDS:
        raise ValueError(f"an array is of type {values['type']!r}")
    kind, shape = np.dtype(values["type"]), tuple(int(n) for n in values["shape"])
    size = math.prod(shape) * kind.itemsize
    stream = zlib.decompressobj()
    raw = stream.decompress(base64.b64decode(values["data"]), size + 1)  # never more than the shape says
    if len(raw) != size or (not stream.eof and stream.decompress(stream.unconsumed_tail, 1)):
        raise ValueError(f"an array of shape {shape} does not have its size")
    return np.frombuffer(raw, kind.newbyteorder("<")).astype(kind).reshape(shape)


def hash_of_files(items: Sequence[tuple[Path, str]]) -> str:
    """First 16 hexadecimal digits of a hash over files and what is said of each (label, text, times), in order.

    Names and places of files do not enter, so moved data hashes alike. A file that is missing enters as such.
    """
    digest = hashlib.sha256()
    for path, said in items:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            content = "missing"
        digest.update(f"{content}\0{said}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def versions(*packages: str) -> dict[str, str]:
    """Versions that decide about numbers."""
    found = {"elastivid": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "numpy", "av", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
