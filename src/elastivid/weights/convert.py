"""Checkpoints of public code to weights of ours: `convert`, strict and with a report; `save_encoder`, `load_encoder`.

    read     a .pth, .pt, .bin or .safetensors file; pickles are read as data, nothing in them is executed
    find     the tensors inside nested dicts ("model", "module", "state_dict", ...)
    convert  names by the family's `convert_reference`; positions of another grid resized; the classifier as it is there
    check    every parameter of the model is filled and nothing is left over, or it is refused with a list

What the converter leaves out (decoders of pre-training, biases that cancel) is in the report.

Which tensor went where is found by sending numbered dummies through the converter, so converters know nothing of it.

Letters: N places, D channels.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastivid.core.errors import UnknownNameError, WeightsError
from elastivid.layers.position import resize_table
from elastivid.models.base import VideoEncoder
from elastivid.weights.load import families, read_metadata
from elastivid.weights.writing import write_weights

INNER = ("model", "module", "state_dict", "model_state_dict", "model_state", "encoder")  # in this order
CLASSIFIERS = ("classifier.weight", "classifiers.0.weight")
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Args:
        address: family and preset.
        found_in: keys that led to the tensors inside the checkpoint.
        matched: tensors taken as they are.
        renamed: (name there, name here).
        reshaped: (name here, shape there, shape here).
        joined: (name here, names there) for tensors made of several.
        resized: (name here, grid there, grid here) for positions that were interpolated.
        left_out: names that the converter does not need.
        settings: fields of the config that the checkpoint decided.
    """

    address: str
    found_in: tuple[str, ...] = ()
    matched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()
    resized: tuple[tuple[str, Grid, Grid], ...] = ()
    left_out: tuple[str, ...] = ()
    settings: dict[str, int] = field(default_factory=dict)


def convert(
    checkpoint: Path, address: str, *, adjust: Callable[[Any], Any] = lambda config: config, key: str | None = None
) -> tuple[VideoEncoder, Report]:
    """The model of a checkpoint, in evaluation mode, and what was done to get it.

    Args:
        checkpoint: the file.
        address: family and preset, such as "internvideo2/small".
        adjust: changes the preset's config, for checkpoints that differ from it.
        key: where the tensors are inside the checkpoint, such as "model_ema"; `None` looks for them.

    Raises:
        UnknownNameError: no such family or preset, or no such key.
        WeightsError: the file cannot be read, or it and the model do not fit; the message lists every name.
    """
    config, converter = _target(address)
    config = adjust(config)
    state, found_in = read_checkpoint(checkpoint, key)
    converted = converter(state)
    settings = _settings(config, converted)
    config = replace(config, **settings)
    model: VideoEncoder = config.build()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    resized = []
    for name, value in converted.items():
        if name in wanted and tuple(value.shape) != wanted[name]:
            done = resized_positions(name, value, wanted[name], getattr(config, "table_grid", None))
            if done is not None:
                converted[name] = done[0]
                resized.append((name, *done[1:]))
    _check(checkpoint, address, wanted, converted, sorted(state))
    model.load_state_dict(converted, strict=True)
    traced = _trace(converter, state)
    report = _report(address, state, converted, traced, {name for name, *_ in resized})
    return model.eval(), replace(report, found_in=found_in, resized=tuple(resized), settings=settings)


def convertible() -> list[str]:
    """Families that checkpoints can be converted to."""
    found = []
    for family in families():
        module = importlib.import_module(f"elastivid.models.{family}")
        presets = list(getattr(module, "PRESETS", {}).values())
        if hasattr(module, "convert_reference") and presets and hasattr(presets[0], "num_frames"):
            found.append(family)
    return found


def _target(address: str) -> tuple[Any, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
    """Config and converter of "family/preset"."""
    family, _, preset = address.partition("/")
    if family not in convertible():
        raise UnknownNameError("family to convert to", family, convertible())
    module = importlib.import_module(f"elastivid.models.{family}")
    if not preset:
        raise WeightsError(f"a preset is missing: --as {family}/NAME, one of {', '.join(module.PRESETS)}")
    if preset not in module.PRESETS:
        raise UnknownNameError(f"preset of {family}", preset, module.PRESETS)
    return module.PRESETS[preset], module.convert_reference


def read_checkpoint(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by name, and the keys under which they were found.

    Raises:
        UnknownNameError: there is no such key.
        WeightsError: the file is missing, damaged, holds more than data, or no tensors.
    """
    if not path.is_file():
        raise WeightsError(f"no checkpoint at {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the namespace: command lines are stored with weights
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} cannot be read as tensors and plain values: it was not written by torch.save, or holds code or "
            "objects, which are never executed here; where you trust it, load it with the program that wrote it and "
            "save its state dict alone with torch.save"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        raise WeightsError(f"cannot read {path}: {type(error).__name__}: {error}; fetch it again") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a dict of tensors; save a state dict")
    state, found_in = _tensors(content, key, path)
    prefixes = [p for p in ("module.", "_orig_mod.") if all(name.startswith(p) for name in state)]
    for prefix in prefixes:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state, found_in


def _tensors(content: Mapping[str, Any], key: str | None, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors in `content` or in a dict inside it."""
    found_in: tuple[str, ...] = ()
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            raise UnknownNameError(
                f"key of {path.name}", key, [k for k, v in content.items() if isinstance(v, Mapping)]
            )
        content, found_in = content[key], (key,)
    while True:
        inner = next((k for k in INNER if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content, found_in = content[inner], (*found_in, inner)
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        there = ", ".join(map(str, list(content)[:10])) or "nothing"
        raise WeightsError(f"{path} holds no tensors where they are looked for ({', '.join(INNER)}); it has {there}")
    return state, found_in


def _settings(config: Any, converted: Mapping[str, Tensor]) -> dict[str, int]:
    """Fields that follow from the checkpoint: the number of classes, and of pools where a family has several."""
    names = {f.name for f in dataclasses.fields(config)}
    found: dict[str, int] = {}
    classifier = next((name for name in CLASSIFIERS if name in converted), None)
    if "num_classes" in names:
        found["num_classes"] = len(converted[classifier]) if classifier else 0
    pools = {name.split(".")[1] for name in converted if name.startswith("pools.")}
    if "num_pools" in names and pools:
        found["num_pools"] = len(pools)
    return {name: value for name, value in found.items() if value != getattr(config, name)}


def resized_positions(
    name: str, value: Tensor, wanted: tuple[int, ...], grid: Sequence[int] | None
) -> tuple[Tensor, Grid, Grid] | None:
    """Positions of another grid brought to `wanted`, with both grids; `None` where `name` holds no positions.

    The grid of the file is not written in it: where the places of one time step are as many as here, the number of
    steps differs; else the steps are as many as here and the places are a square.

    Args:
        name: of the tensor.
        value: (..., N, D), with a row for the class token in front where the wanted one has it.
        wanted: shape it should have.
        grid: (t, h, w) of the model.
    """
    if grid is None or len(grid) != 3 or "positions" not in name or value.shape[-1] != wanted[-1]:
        return None
    t, h, w = grid
    kind = name.rpartition(".")[2]
    native = {"places": (1, h, w), "times": (t, 1, 1)}.get(kind, (t, h, w))
    table = value.reshape(-1, value.shape[-1])  # (..., N, D) -> (N, D)
    front = math.prod(wanted[:-1]) - math.prod(native)
    count, site = len(table) - front, native[1] * native[2]
    side = math.isqrt(max(count // native[0], 0))
    if front not in (0, 1) or count < 1:
        return None
    if count % site == 0 and kind != "places":
        there: Grid = (count // site, native[1], native[2])
    elif count == native[0] * side * side:
        there = (native[0], side, side)
    else:
        return None
    resized = resize_table(table[front:].float(), there, native).to(value.dtype)  # (N', D)
    return torch.cat([table[:front], resized]).reshape(wanted), there, native


def _check(
    checkpoint: Path,
    address: str,
    wanted: Mapping[str, tuple[int, ...]],
    converted: Mapping[str, Tensor],
    there: Sequence[str],
) -> None:
    """Refuse what does not fit, with every name."""
    missing = sorted(set(wanted) - set(converted))
    left_over = sorted(set(converted) - set(wanted))
    shapes = [
        f"{name}: {tuple(converted[name].shape)} in the file, {shape} in the model"
        for name, shape in sorted(wanted.items())
        if name in converted and tuple(converted[name].shape) != shape
    ]
    if not (missing or left_over or shapes):
        return
    lines = [f"{checkpoint} is not {address}:"]
    for title, names in (("missing in the file", missing), ("left over", left_over), ("other shapes", shapes)):
        if names:
            lines.append(f"  {title} ({len(names)}):")
            lines += [f"    {name}" for name in names[:20]]
            lines += [f"    and {len(names) - 20} more"] if len(names) > 20 else []
    lines.append(f"  the file begins with {', '.join(there[:3])}")
    lines.append("  take another preset, or change it with --set, such as --set depth=24")
    raise WeightsError("\n".join(lines))


def _trace(
    converter: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], state: Mapping[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    """Names in the file of every tensor that the converter makes: tensor i is sent through as all i."""
    names = sorted(state)
    dummies = {name: torch.full((), float(i)).expand(state[name].shape) for i, name in enumerate(names)}
    traced = {}
    for name, value in converter(dummies).items():
        row = value.reshape(len(value), -1)[:, 0] if value.ndim > 1 else value.reshape(-1)
        numbers = [int(n) for n in row.unique().tolist() if float(n).is_integer() and 0 <= n < len(names)]
        traced[name] = tuple(names[n] for n in numbers)
    return traced


def _report(
    address: str,
    state: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    traced: Mapping[str, tuple[str, ...]],
    resized: set[str],
) -> Report:
    matched, renamed, reshaped, joined = [], [], [], []
    for name, sources in sorted(traced.items()):
        if len(sources) != 1:
            joined.append((name, sources))
            continue
        (source,) = sources
        if state[source].shape != converted[name].shape and name not in resized:
            reshaped.append((name, tuple(state[source].shape), tuple(converted[name].shape)))
        if source != name:
            renamed.append((source, name))
        elif state[source].shape == converted[name].shape:
            matched.append(name)
    used = {source for sources in traced.values() for source in sources}
    return Report(
        address,
        matched=tuple(matched),
        renamed=tuple(renamed),
        reshaped=tuple(reshaped),
        joined=tuple(joined),
        left_out=tuple(sorted(set(state) - used)),
    )


def save_encoder(model: VideoEncoder, path: Path, *, address: str, licence: str, card: Mapping[str, Any]) -> None:
    """Write an encoder's weights, in the precision they have, with what rebuilds it: replaced atomically."""
    metadata = {
        "family": type(model).__module__.rpartition(".")[2],
        "address": address,
        "config": dataclasses.asdict(model.config),
        "licence": licence,
        "card": dict(card),
    }
    write_weights(path, model.state_dict(), metadata)


def load_encoder(path: Path) -> VideoEncoder:
    """The encoder in a file that `save_encoder` or a training run wrote, in evaluation mode.

    Raises:
        WeightsError: the file is damaged, or does not describe an encoder.
    """
    metadata = read_metadata(path)
    try:
        kind = type(importlib.import_module(f"elastivid.models.{metadata['family']}").PRESETS["tiny"])
        model: VideoEncoder = kind(**metadata["config"]).build()
    except (KeyError, TypeError, ValueError, ImportError, AttributeError) as error:
        raise WeightsError(
            f"metadata of {path} does not describe an encoder ({type(error).__name__}: {error}); use a file that "
            "elastivid convert or a training run wrote"
        ) from error
    state, _ = read_checkpoint(path)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    _check(path, metadata["address"], wanted, state, sorted(state))
    model.load_state_dict(state, strict=True)
    return model.eval()
