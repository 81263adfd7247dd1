"""What `elastivid convert` does and prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import WeightsError

if TYPE_CHECKING:
    from elastivid.weights.convert import Report

SHOWN = 4  # entries of a list that are printed


def run_convert(
    checkpoint: Path, address: str, out: Path | None, settings: Sequence[str], *, key: str | None, licence: str
) -> tuple[Report, Path, int]:
    """Convert, write, and return the report, the file and its number of parameters.

    Raises:
        WeightsError: the file would overwrite the checkpoint, or the checkpoint is a file of ours already.
    """
    from elastivid.train.settings import changed
    from elastivid.weights.convert import convert, save_encoder

    target = out or Path(f"{checkpoint.stem}.safetensors")
    if target.resolve() == checkpoint.resolve():
        raise WeightsError(f"{target} is the checkpoint itself; name another file with --out")
    _require_foreign(checkpoint)
    model, report = convert(checkpoint, address, adjust=lambda config: changed(config, settings), key=key)
    card = {"converted_from": checkpoint.name, "settings": list(settings)}
    save_encoder(model, target, address=address, licence=licence, card=card)
    return report, target, sum(parameter.numel() for parameter in model.parameters())


def _require_foreign(checkpoint: Path) -> None:
    """Refuse what needs no conversion."""
    from elastivid.weights.load import read_metadata

    try:
        ours = checkpoint.suffix == ".safetensors" and read_metadata(checkpoint)
    except WeightsError:
        return  # of another program, or damaged, which reading it says
    if ours:
        raise WeightsError(
            f"{checkpoint} is a weights file of elastivid already ({ours['address']}); use it as it is, for example "
            f"--model {checkpoint}; elastivid info {checkpoint} says what it holds"
        )


def lines_of_report(report: Report, target: Path, parameters: int) -> list[str]:
    """The report, a line per kind and the first few of each."""
    lines = [f"{report.address}: {parameters / 1e6:.1f} M parameters"]
    if report.found_in:
        lines.append(f"found in   {' > '.join(report.found_in)}")
    if report.settings:
        lines.append(f"settings   {', '.join(f'{name}={value}' for name, value in report.settings.items())}")
    lines.append(f"as it is   {len(report.matched)} tensors")
    lines += _listed("renamed", [f"{there} -> {here}" for there, here in report.renamed])
    lines += _listed(
        "reshaped", [f"{name}: {_shape(there)} -> {_shape(here)}" for name, there, here in report.reshaped]
    )
    lines += _listed("joined", [f"{name} of {', '.join(sources)}" for name, sources in report.joined])
    lines += _listed("resized", [f"{name}: {_shape(old)} -> {_shape(new)}" for name, old, new in report.resized])
    lines += _listed("left out", list(report.left_out))
    return [*lines, f"written    {target}"]


def values_of_report(report: Report, target: Path, parameters: int) -> dict[str, Any]:
    """The whole report as JSON values."""
    return {**dataclasses.asdict(report), "parameters": parameters, "file": str(target)}


def _listed(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    rest = [f"{'':<10} and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return [f"{title:<10} {len(entries)}:", *(f"{'':<10} {entry}" for entry in entries[:SHOWN]), *rest]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
