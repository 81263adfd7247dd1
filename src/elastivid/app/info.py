"""What `elastivid info` and `elastivid doctor` print."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from elastivid import __version__
from elastivid.app.text import short_path
from elastivid.core.cost import cpu_model
from elastivid.core.errors import ElastividError
from elastivid.search.library import VIDEO_SUFFIXES
from elastivid.search.printing import pace, printable, span

PACKAGES = {
    "torch": "",
    "av": "",
    "numpy": "",
    "safetensors": "",
    "tokenizers": "",
    "rich": "",
    "lancedb": "search",
    "pyarrow": "search",
    "PIL": "search",
}
OPTIONAL = {"transformers": ("hf", "models of the hub, --model hf:...")}
DISTRIBUTIONS = {"PIL": "pillow"}
FIRST = ("address", "family", "licence", "weights_id", "space_id", "card")  # of the metadata of a weights file
WIDTH = 118
MOST_LISTED = 12
CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4", "prores")


def describe(target: str) -> list[str]:
    """Lines about an index, a video file or a model.

    Raises:
        ElastividError: it is none of these.
    """
    path = Path(target).expanduser()
    if (path / "index.json").exists():
        return describe_index(path)
    if path.is_dir():
        raise ElastividError(f"{printable(path)} is a folder but no index; make one with: elastivid index {target}")
    if path.exists() and path.suffix != ".safetensors":
        return describe_video(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise ElastividError(f"no such file: {printable(path)}; check the spelling or mount the drive")
    if path.suffix == ".ev":
        raise ElastividError(f"there is no index at {printable(path)}; check the spelling")
    return describe_model(target)


def describe_index(path: Path) -> list[str]:
    """Settings, counts, runs and files with trouble of an index."""
    from elastivid.search.index import Index

    index = Index.open(path)
    settings, files = index.settings, index.files()
    sampling = settings.sampling
    statuses = Counter("missing" if file.missing else file.status for file in files)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    seconds = sum(file.duration_seconds for file in files if file.is_searchable)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    lines = [
        f"index      {printable(index.path)} ({size / 1e6:.1f} MB)",
        f"files      {len(files)}: {counted or 'none'}",
        f"video      {span(seconds)}, {len(index)} windows",
        f"model      {settings.model}, space {settings.space_id}, {settings.dim} numbers per window",
        f"licence    {settings.licence} (of the model's weights)",
        f"window     {sampling.window_seconds:g} s every {sampling.stride_seconds:g} s, {sampling.frames} frames of "
        f"{sampling.size} px, {sampling.decode} decoding",
        f"spent      {settings.point.tokens or 'all'} tokens and {settings.gmacs_per_window:.2f} GMACs per window",
    ]
    lines += [
        f"run        {run['files']} files, {span(run['video_seconds'])} in {span(run['elapsed_seconds'])}: "
        f"{pace(run['x_realtime'])} realtime"
        for run in index.runs()[-3:]
    ]
    lines += [
        f"{file.status:<10} {short_path(path)}: {printable(file.reason)}"
        for file in files
        if file.reason
        for path in file.paths or (file.path,)
    ]
    return lines


def describe_video(path: Path) -> list[str]:
    """Metadata of a video file."""
    from elastivid.video.reader import VideoReader

    with VideoReader(path) as reader:
        values = asdict(reader.metadata)
    width = max(len(name) for name in values)
    return [f"{name:<{width}}  {printable(value)}" for name, value in values.items()]


def describe_model(address: str) -> list[str]:
    """Metadata of a weights file: everything but the tensors, the golden clip and the copy of `config.text`."""
    from elastivid.weights.hub import is_hub
    from elastivid.weights.load import read_metadata, resolve

    if is_hub(address):
        return describe_checkpoint(address)
    path = resolve(address)
    values = read_metadata(path)
    shown = {"file": f"{path} ({path.stat().st_size / 1e6:.1f} MB)"}
    names = [*(name for name in FIRST if name in values), *sorted(set(values) - {*FIRST, "golden", "text_config"})]
    return _lines_of_values(shown | {name: values[name] for name in names})


def _lines_of_values(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """A line per name, wrapped; values in values on lines of their own below it, but for short ones."""
    lines, wide = [], max(14, *map(len, values))
    for name, value in values.items():
        told = _told(value)
        if told is None:
            lines += [f"{indent}{name}", *_lines_of_values(value, indent + "  ")]
            continue
        wrapped = textwrap.wrap(printable(told), max(40, WIDTH - len(indent) - wide)) or [""]
        lines += [f"{indent}{name:<{wide}} {wrapped[0]}", *(indent + " " * (wide + 1) + line for line in wrapped[1:])]
    return lines


def _told(value: Any) -> str | None:
    """A value on one line, long lists by their first entries; `None` for one that holds others by name."""
    if isinstance(value, dict):
        return None if value else "none"
    if isinstance(value, list):
        parts = [_told(item) or json.dumps(item, ensure_ascii=False) for item in value[:MOST_LISTED]]
        rest = f" and {len(value) - MOST_LISTED} more" if len(value) > MOST_LISTED else ""
        return (", ".join(parts) or "none") + rest
    return value if isinstance(value, str) else json.dumps(value)


def describe_checkpoint(address: str) -> list[str]:
    """What the files of an `hf:` address say; neither torch nor transformers is loaded."""
    from elastivid.core.files import read_json
    from elastivid.weights.hub import HubAddress, licence_of, locate, space_of, weight_files
    from elastivid.weights.licence import is_permissive

    folder = locate(address)
    licence, files = licence_of(folder), weight_files(folder)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    values = {
        "address": str(HubAddress.parse(address)),
        "folder": printable(folder),
        "weights": f"{len(files)} safetensors file{'s' if len(files) > 1 else ''}, {megabytes:.1f} MB",
        "type": read_json(folder / "config.json").get("model_type", "unknown"),
        "licence": f"{licence} ({'permissive' if is_permissive(licence) else 'not on the permissive list'})",
        "space_id": space_of(folder),
    }
    return [f"{name:<12} {value}" for name, value in values.items()]


def diagnose() -> tuple[list[str], bool]:
    """Lines about this installation, and whether everything that indexing and searching need is there."""
    lines = [
        f"elastivid   {__version__}",
        f"python      {platform.python_version()} ({sys.executable})",
        f"system      {platform.platform()}",
        f"processor   {cpu_model()}, {os.cpu_count()} cores",
    ]
    missing: list[str] = []
    for module, extra in PACKAGES.items():
        distribution = DISTRIBUTIONS.get(module, module)
        if importlib.util.find_spec(module) is None:
            target = f"elastivid[{extra}]" if extra else "elastivid"
            missing.append(f"missing: {distribution}. Run: pip install '{target}'")
            continue
        lines.append(f"{distribution:<11} {metadata.version(distribution)}")
    for module, (extra, use) in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        absent = f"not installed; for {use}: pip install 'elastivid[{extra}]'"
        lines.append(f"{module:<11} {metadata.version(module) if there else absent}")
    if importlib.util.find_spec("torch") is not None:
        lines.append(_torch_line())
    if importlib.util.find_spec("av") is not None:
        lines += _codec_lines(missing)
    try:
        lines.append(_model_line())
    except ElastividError as error:
        missing.append(f"missing: {error}")
    lines += missing or ["everything that indexing and searching need is here"]
    return lines, not missing


def _torch_line() -> str:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu only"
    return f"compute     {device}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _codec_lines(missing: list[str]) -> list[str]:
    import av

    known = [name for name in CODECS if name in av.codecs_available]
    missing += [f"missing: decoder {name}. Run: pip install --upgrade av" for name in CODECS if name not in known]
    return [f"ffmpeg      {av.ffmpeg_version_info}, decodes {', '.join(known)} and others"]


def _model_line() -> str:
    from elastivid.weights.load import read_metadata, resolve

    path = resolve("nano")
    return f"nano        {path.stat().st_size / 1e6:.1f} MB, space {read_metadata(path)['space_id']}"
