"""Addresses `hf:org/repo@revision` and `hf:folder`: where files are, what they may be used for, what space they span.

Nothing is downloaded unless it is asked for: without `allow_download` only the local cache of huggingface_hub is
looked at. Only safetensors are read, and no code of a repository is ever run. Loads neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elastivid.core.errors import WeightsError
from elastivid.core.files import read_json

PREFIX = "hf:"
UNKNOWN_LICENCE = "unknown"
FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
HASHED_EACH_TIME_BYTES = 2**20  # hashes of larger files are remembered


@dataclass(frozen=True)
class HubAddress:
    """What an `hf:` address names: a folder on disk, or a repository with a revision (None: its main branch)."""

    folder: Path | None = None
    repository: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, address: str) -> HubAddress:
        """Read `hf:org/repo`, `hf:org/repo@revision`, or `hf:` and a path that exists, or starts with / or . or ~.

        Raises:
            WeightsError: it is neither.
        """
        name = address.removeprefix(PREFIX)
        folder = Path(os.path.expanduser(name))
        if folder.is_dir() or name.startswith(("/", ".", "~")):
            return cls(folder=folder.absolute())
        repository, _, revision = name.partition("@")
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise WeightsError(
                f"cannot read the address {address!r}: write hf:organisation/repository, "
                "hf:organisation/repository@revision, or hf: and a folder that exists"
            )
        return cls(repository=repository, revision=revision or None)

    def __str__(self) -> str:
        """The address in full, the same from every working directory."""
        if self.folder is not None:
            return f"{PREFIX}{self.folder}"
        return f"{PREFIX}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub(address: str) -> bool:
    """Whether `address` is one of those that this module reads."""
    return address.startswith(PREFIX)


def locate(address: str, *, allow_download: bool = False) -> Path:
    """Folder with the files of `address`.

    Args:
        address: see `HubAddress.parse`.
        allow_download: fetch from huggingface.co what is not in the local cache.

    Raises:
        WeightsError: the address is malformed, its files are not here (the message says how to get them), cannot be
            downloaded, are incomplete, or are pickles.
    """
    parsed = HubAddress.parse(address)
    folder = parsed.folder or _snapshot(parsed, allow_download)
    if not folder.is_dir():
        raise WeightsError(f"no such folder: {folder}; check the spelling, or write hf:organisation/repository")
    missing = [name for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()]
    missing += [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        more = "" if parsed.folder else f"; to fetch it again: {_download_line(parsed)}"
        raise WeightsError(f"{parsed} lacks {', '.join(missing)} in {folder}{more}")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a checkpoint: one file, or the shards that its index lists.

    Raises:
        WeightsError: there are none, or the index is damaged or points outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / SHARDS).is_file():
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        held = f"; it holds {', '.join(pickles)}, which are pickles and never loaded" if pickles else ""
        raise WeightsError(f"{folder} holds no {WEIGHTS}{held}; take a repository or revision with safetensors")
    names = set(read_json(folder / SHARDS).get("weight_map", {}).values())
    if not names or any(Path(name).name != name for name in names):
        raise WeightsError(f"{folder / SHARDS} lists no weights or names outside its folder; fetch it again")
    return [folder / name for name in sorted(names)]


def licence_of(folder: Path) -> str:
    """Licence that the model card (README.md, front matter) states; "unknown" where it states none."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        values = metadata_load(folder / "README.md") if (folder / "README.md").is_file() else None
    except (ValueError, YAMLError):  # front matter that is no mapping
        values = None
    if not values:
        return UNKNOWN_LICENCE
    stated = values.get("license")
    if stated == "other":
        stated = values.get("license_name") or stated
    if isinstance(stated, list):
        return " AND ".join(str(one) for one in stated) or UNKNOWN_LICENCE
    return str(stated) if stated else UNKNOWN_LICENCE


def space_of(folder: Path) -> str:
    """First 16 hexadecimal digits of the hash of every file that shapes the vectors.

    These are the weights of both towers, their config, the tokenizer and the preprocessing. A hash of a large file is
    kept under the user's cache folder with the size and modification time it belongs to.
    """
    digest = hashlib.sha256()
    with _Hashes() as hashes:
        for path in [*weight_files(folder), *(folder / name for name in FILES)]:
            if path.is_file():
                digest.update(f"{path.name}:{hashes.of(path)}\n".encode())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where elastivid keeps what can be computed again: `$XDG_CACHE_HOME/elastivid`, else `~/.cache/elastivid`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "elastivid"


class _Hashes:
    """Hashes of files by path, size and modification time. Leaving the block writes new ones to disk, if it can be."""

    def __init__(self) -> None:
        self._path = cache_folder() / "hashes.json"
        self._known: dict[str, list[Any]] = {}
        self._changed = False

    def __enter__(self) -> _Hashes:
        with contextlib.suppress(OSError, ValueError):  # no cache yet, or a damaged one: hashes are computed again
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = known if isinstance(known, dict) else {}
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._changed:
            return
        with contextlib.suppress(OSError):  # a home that cannot be written only costs time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)

    def of(self, path: Path) -> str:
        """SHA-256 of a file in hexadecimal digits."""
        real, status = os.path.realpath(path), path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(real)
        if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
            return str(known[2])
        with path.open("rb") as file:
            value = hashlib.file_digest(file, "sha256").hexdigest()
        if status.st_size >= HASHED_EACH_TIME_BYTES:
            self._known[real] = [*stamp, value]
            self._changed = True
        return value


def _snapshot(address: HubAddress, allow_download: bool) -> Path:
    """Folder of a repository's files in the cache of huggingface_hub, downloaded if that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                address.repository,
                revision=address.revision,
                allow_patterns=[*FILES, "README.md", "model*.safetensors", SHARDS],
                local_files_only=not allow_download,
            )
        )
    except Exception as error:  # the client raises a wide family: no network, no such repository, gated, disk full
        if not allow_download and isinstance(error, LocalEntryNotFoundError):
            raise WeightsError(
                f"{address} is not in the local cache, and nothing is downloaded unasked. To fetch it from "
                f"huggingface.co, add --allow-download (in Python: allow_download=True), or run: "
                f"{_download_line(address)}"
            ) from None
        raise WeightsError(
            f"cannot get {address}: {error}; check the name, the network and, for gated models, hf auth login"
        ) from error


def _download_line(address: HubAddress) -> str:
    return f"hf download {address.repository}" + (f" --revision {address.revision}" if address.revision else "")
