"""What `elastivid eval` does with a recipe that only measures, and `elastivid replay` with what it wrote."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from elastivid.app.progress import count_files
from elastivid.app.training import table
from elastivid.core.errors import UnknownNameError
from elastivid.search.printing import printable

if TYPE_CHECKING:
    from elastivid.evaluate.protocol import Evaluation
    from elastivid.evaluate.result import Result

SHOWN = 10


def run_evaluation(recipe: Evaluation, device: str) -> Result:
    """Evaluate with a progress bar."""
    import torch

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    with count_files("clips") as progress:
        return recipe.run(device=chosen, progress=progress)


def lines_of_result(result: Result, out: Path | None) -> list[str]:
    """Rows as a table, clips that were left out, and what it was measured on."""
    lines = table([dict(row) for row in result.rows])
    lines += [f"left out: {printable(row['path'])}: {printable(row['reason'])}" for row in result.left_out[:SHOWN]]
    if len(result.left_out) > SHOWN:
        lines.append(f"left out: and {len(result.left_out) - SHOWN} more")
    lines.append(
        f"{result.model} ({result.weights_id}) on {printable(result.data.path)}, {result.data.clips} clips "
        f"({result.data.hash}); {result.versions.get('hardware', '')}"
    )
    if out is not None:
        lines.append(f"elastivid replay {printable(str(out))}   runs it again and compares")
    return lines


def again(result: Result, data: Path | None, model: str | None) -> Evaluation:
    """The evaluation that made `result`, on data or weights that lie elsewhere now.

    Raises:
        ResultError: its protocol or its settings are not known here.
    """
    from elastivid.evaluate.protocol import Evaluation
    from elastivid.evaluate.result import ResultError
    from elastivid.recipes import find
    from elastivid.train.settings import SettingError, changed, from_values

    try:
        kind = find(result.protocol)
        config = from_values(kind.config_class, dict(result.settings))
    except (UnknownNameError, SettingError) as error:
        raise ResultError(f"the result cannot be run again: {error}") from error
    if not issubclass(kind, Evaluation):
        raise ResultError(f"{result.protocol} is no evaluation, so its result cannot be run again")
    if model is not None:
        config = changed(config, [f"model={model}"])
    if data is not None:
        config = replace(config, data=data)  # type: ignore[call-arg]
    return kind(config)


def lines_of_replay(before: Result, now: Result) -> tuple[list[str], bool]:
    """What differs, and whether nothing does."""
    from elastivid.evaluate.result import TOLERANCE, differences

    found = differences(before, now)
    other = [
        f"{name} {before.versions.get(name)} -> {now.versions.get(name)}"
        for name in sorted({*before.versions, *now.versions})
        if before.versions.get(name) != now.versions.get(name)
    ]
    with_other = f" (with {', '.join(other)})" if other else ""
    if not found:
        rows, clips = (
            f"{n} {what}{'s' if n != 1 else ''}" for n, what in ((len(now.rows), "row"), (now.data.clips, "clip"))
        )
        return [f"same to {TOLERANCE:g}: {rows}, {clips}{with_other}"], True
    return [f"not the same{with_other}:", *(f"  {line}" for line in found)], False
