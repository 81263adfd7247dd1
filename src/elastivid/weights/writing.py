"""Writing weights files: whole or not at all, and on the disk when it returns. And what speaks against reading one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to one safetensors file that replaces what is at `path` when it is whole.

    Args:
        path: where to write.
        state: tensors by name, on any device.
        metadata: JSON values; each becomes text of its own, as `read_metadata` reads it.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was at `path` stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    try:
        save_file(tensors, partial, metadata={name: json.dumps(value) for name, value in metadata.items()})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except SafetensorError as error:  # the library's own name for trouble with the disk
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def misfits(wanted: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> str:
    """What keeps `stored` from filling a model whose tensors are `wanted`, in words; "" where nothing does."""
    missing = sorted(set(wanted) - set(stored))
    unknown = sorted(set(stored) - set(wanted))
    shapes = [
        f"{name}: file {tuple(stored[name].shape)}, model {tuple(wanted[name].shape)}"
        for name in sorted(set(wanted) & set(stored))
        if stored[name].shape != wanted[name].shape
    ]
    if not (missing or unknown or shapes):
        return ""
    return f"does not fit the model; missing {missing}, unknown {unknown}, misshapen {shapes}"
