"""Names and files to models: `build`, `load`, `resolve`, and `save` for dual encoders.

A weights file is one safetensors: tensors under `video.`, `text.` and what else a model has; metadata as JSON strings:
`family` (module under `elastivid.models`), `address`, `config`, `text_config`, `transform`, `space_id`, `weights_id`,
`licence`, `card`, `golden`. Floating tensors are stored in half precision and computed in single. Loading recomputes
`weights_id`, a hash of all tensors, and `golden`, the embedding of a fixed clip, so a damaged file or a changed model
is noticed at once. `space_id` equals `weights_id` unless the file holds what `TwoTowers.at` cut out of another model,
whose space it then names. Addresses `hf:...` are checkpoints of other formats: see `elastivid.weights.hub`.

Importing this module does not load torch; `resolve` and `read_metadata` work without it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import UnknownNameError, WeightsError
from elastivid.weights.hub import UNKNOWN_LICENCE, HubAddress, is_hub, licence_of, locate, space_of, weight_files
from elastivid.weights.licence import ANY, require_licence
from elastivid.weights.writing import misfits, write_weights

if TYPE_CHECKING:
    import torch

    from elastivid.models.base import DualEncoder
    from elastivid.models.tiny_vlm import TinyVLM
    from elastivid.models.towers import TwoTowers

DUALS = {"dual": "FluxDual", "adavid": "AdaVidDual"}  # families that files may hold, and the class in each
ASKERS = {"tiny_vlm": "TinyVLM"}  # families that answer questions; see `load_asker`
ALIASES = {"nano": "nano.safetensors", "nano-ask": "nano_ask.safetensors"}  # files shipped in this folder


def families() -> list[str]:
    """Names of the modules under `elastivid.models` that offer presets."""
    import elastivid.models as package

    found = []
    for module in pkgutil.iter_modules(package.__path__):
        source = (Path(package.__path__[0]) / f"{module.name}.py").read_text(encoding="utf-8")
        if "\nPRESETS" in source:
            found.append(module.name)
    return found


def build(address: str) -> torch.nn.Module:
    """An untrained model: `build("fluxvit/small")` is `elastivid.models.fluxvit.PRESETS["small"].build()`.

    Raises:
        UnknownNameError: no such family or preset; the message lists what there is.
    """
    family, _, preset = address.partition("/")
    if family not in families():
        raise UnknownNameError("model family", family, families())
    presets = importlib.import_module(f"elastivid.models.{family}").PRESETS
    if preset not in presets:
        raise UnknownNameError(f"preset of {family}", preset, presets)
    model: torch.nn.Module = presets[preset].build()
    return model


def resolve(address: str) -> Path:
    """The file that holds the weights of `address`: a shipped name or a path to a `.safetensors` file.

    Raises:
        UnknownNameError: neither a shipped name nor a path.
        WeightsError: the file does not exist.
    """
    if address in ALIASES:
        path = Path(__file__).parent / ALIASES[address]
    elif address.endswith(".safetensors"):
        path = Path(address).expanduser()
    else:
        raise UnknownNameError(
            "weights (a shipped name, a path that ends in .safetensors, or hf:organisation/repository)",
            address,
            ALIASES,
        )
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}; check the path or reinstall the package")
    return path


def read_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a weights file, parsed from JSON.

    Raises:
        WeightsError: the file is not a safetensors file of ours.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            raw = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read weights from {path}: {error}; the file is damaged or of another kind"
        ) from error
    if "address" not in raw:
        raise WeightsError(
            f"{path} holds no elastivid metadata; it may be another program's file and needs a converter"
        )
    try:
        return {key: json.loads(value) for key, value in raw.items()}
    except ValueError as error:
        raise WeightsError(f"metadata of {path} is not json ({error}); fetch the weights file again") from error


def load(address: str, *, allow_download: bool = False, licence: str = ANY) -> DualEncoder:
    """The trained dual encoder of `address`, in evaluation mode on the CPU.

    Args:
        address: "nano", the path of a file that `save` wrote, or a CLIP, SigLIP or SigLIP 2 checkpoint as
            `hf:organisation/repository`, `hf:organisation/repository@revision` or `hf:folder`.
        allow_download: fetch an `hf:` checkpoint from huggingface.co when it is not in the local cache.
        licence: "permissive" refuses weights whose stated licence is not (see `elastivid.weights.licence`).

    Raises:
        MissingExtraError: an `hf:` address without transformers installed.
        UnknownNameError, WeightsError: see `resolve` and `read_metadata`; also when metadata is incomplete, tensors
            are missing, unknown or misshapen, or the golden embedding or the space does not come out.
    """
    if is_hub(address):
        return _load_hub(address, allow_download, licence)
    from safetensors.torch import load_file

    from elastivid.video.transforms import Transform

    path = resolve(address)
    metadata = read_metadata(path)
    family_of(metadata)  # says so where the file holds a model of another kind
    require_licence(licence, stated_licence(metadata), address)
    try:
        golden, space_id = metadata["golden"], metadata["space_id"]
        family = family_of(metadata)
        kind: type[TwoTowers] = getattr(importlib.import_module(f"elastivid.models.{family}"), DUALS[family])
        config = kind.config_class.from_dict(metadata["config"])
        transform = Transform.from_dict(metadata["transform"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"metadata of {path} does not describe a dual encoder ({type(error).__name__}: {error}); "
            "use a file that `save` wrote"
        ) from error
    model = kind(config, transform, address)
    stored = load_file(path)
    _check_keys(path, model.state_dict(), stored)
    model.load_state_dict(stored, strict=True)
    model.eval()
    model.licence = stated_licence(metadata)
    _check_golden(path, model, golden)
    weights_id = metadata.get("weights_id", space_id)  # files of whole models need not have it
    if model.weights_id != weights_id:
        raise WeightsError(
            f"tensors of {path} have space {model.weights_id}, but it says {weights_id}: it is damaged; fetch it anew"
        )
    model.join_space(space_id)
    return model


def load_asker(address: str) -> TinyVLM:
    """The trained video language model of `address`, with its encoder, in evaluation mode on the CPU.

    Args:
        address: "nano-ask", or the path of a file that training wrote.

    Raises:
        UnknownNameError, WeightsError: see `resolve` and `read_metadata`; also when the file holds another kind of
            model, tensors do not fit, or its encoder is not the one that it was trained on.
    """
    from safetensors.torch import load_file

    path = resolve(address)
    metadata = read_metadata(path)
    family = str(metadata.get("family"))
    if family not in ASKERS:
        raise WeightsError(f"{address} holds a model of the family {family}, which answers no questions; try nano-ask")
    module = importlib.import_module(f"elastivid.models.{family}")
    try:
        model: TinyVLM = module.TinyVLMConfig.from_dict(metadata["config"]).build()
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"metadata of {path} does not describe a {family} ({error}); fetch it again") from error
    stored = {name: value.float() for name, value in load_file(path).items()}
    _check_keys(path, model.state_dict(), stored)
    model.load_state_dict(stored, strict=True)
    encoder = load(model.config.encoder)
    return model.attach(encoder).eval()  # type: ignore[arg-type]


def family_of(metadata: dict[str, Any]) -> str:
    """Family in the metadata of a weights file of ours: "dual" where it states none, as the first files did not.

    Raises:
        WeightsError: it is one of encoders alone, or of models that answer questions.
        UnknownNameError: it states one that is not known.
    """
    family = str(metadata.get("family", "dual"))
    if family in ASKERS:
        raise WeightsError(f"a {family} answers questions and embeds nothing; open it with load_asker, or use Watch")
    if family not in DUALS and family in families():
        raise WeightsError(
            f"a {family} encoder has neither a text tower nor names of classes, so it answers no words; train a "
            "classifier from its file (elastivid train finetune --set model=FILE), or take a dual encoder such as nano"
        )
    if family not in DUALS:
        raise UnknownNameError("model family of a weights file", family, DUALS)
    return family


def texts_need_torch(address: str) -> bool:
    """Whether the text tower of `address` runs in torch only; that of `dual` runs in numpy as well.

    Raises:
        UnknownNameError, WeightsError: see `resolve`, `read_metadata` and `family_of`.
    """
    return is_hub(address) or family_of(read_metadata(resolve(address))) != "dual"


def stated_licence(metadata: dict[str, Any]) -> str:
    """Licence in the metadata of a weights file of ours."""
    return str(metadata.get("licence") or UNKNOWN_LICENCE)


def _load_hub(address: str, allow_download: bool, licence: str) -> DualEncoder:
    folder = locate(address, allow_download=allow_download)
    stated = licence_of(folder)
    require_licence(licence, stated, address)
    from elastivid.models.hub_dual import HubDual

    weights = weight_files(folder)
    name = str(HubAddress.parse(address))
    return HubDual(folder, weights, name=name, space_id=space_of(folder), licence=stated).eval()


def save(
    model: TwoTowers,
    path: Path,
    *,
    address: str,
    licence: str,
    card: dict[str, Any],
    measured: dict[str, Any] | None = None,
) -> None:
    """Write `model` to one file. The model's own weights are rounded to half precision, as loading will see them.

    Args:
        model: the dual encoder; rounded in place so that its `space_id` is that of the file.
        path: where to write; replaced atomically.
        address: name under which it is published, such as "dual/nano@v1".
        licence: SPDX expression of the weights.
        card: how it was trained, on what, and what it measures; JSON values.
        measured: what plans go by: `trained_widths`, `trained_tokens` and `fronts` (see `elastivid.planning.subject`).

    Raises:
        WeightsError: the model was cast to another precision, or was cut out of a model that was never rounded, so
            that rounding would move it out of that model's space.
    """
    import torch

    other = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if other:
        raise WeightsError(f"save needs weights in float32, got {', '.join(map(str, other))}; save before casting")
    model.eval()
    derived = model.space_id != model.weights_id
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    if derived and model.space_id == model.weights_id:
        raise WeightsError(
            "rounding to half precision moved this part of a model out of the space of the whole; save the whole model "
            "first, which rounds it in place, and cut the part out again with at()"
        )
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    metadata = {
        "family": type(model).__module__.rpartition(".")[2],
        "address": address,
        "config": dataclasses.asdict(model.config),
        "text_config": dataclasses.asdict(model.config.text),
        "transform": model.transform.to_dict(),
        "space_id": model.space_id,
        "weights_id": model.weights_id,
        "licence": licence,
        "card": card,
        "golden": golden_embedding(model),
        **(measured or {}),
    }
    write_weights(path, state, metadata)


def golden_embedding(model: TwoTowers) -> list[float]:
    """Embedding of a fixed clip (four frames of moving waves), rounded to six decimals."""
    import torch

    side = 4 * model.config.video.patch_size
    t, y, x = torch.meshgrid(torch.arange(4.0), torch.arange(float(side)), torch.arange(float(side)), indexing="ij")
    waves = torch.stack([torch.sin(x / 5 + t), torch.cos(y / 7 - t), torch.sin((x + y) / 9)], dim=1)  # (4, 3, H, W)
    with torch.no_grad():
        return [round(v, 6) for v in model.embed_clips(waves[None])[0].tolist()]


def _check_keys(path: Path, wanted: dict[str, torch.Tensor], stored: dict[str, torch.Tensor]) -> None:
    problem = misfits(wanted, stored)
    if problem:
        raise WeightsError(f"{path} {problem}")


def _check_golden(path: Path, model: TwoTowers, wanted: list[float]) -> None:
    got = golden_embedding(model)
    worst = max(abs(a - b) for a, b in zip(got, wanted, strict=True)) if len(got) == len(wanted) else float("inf")
    if not worst <= 1e-3:  # so that not-a-number is refused
        raise WeightsError(
            f"{path} loads, but its golden clip embeds {worst:.2g} away from the stored embedding (allowed 1e-3): "
            "the file is damaged or was written by another version of elastivid"
        )
