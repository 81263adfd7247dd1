"""The model that a run leaves behind, as a weights file."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from elastivid.models.classifier import ClipClassifier
from elastivid.models.towers import TwoTowers
from elastivid.train.checkpoint import MODEL
from elastivid.train.recipe import Recipe
from elastivid.weights.classifier import save_classifier
from elastivid.weights.load import save


def export(recipe: Recipe, module: nn.Module, folder: Path, step: int) -> Path:
    """Write what `recipe.exported` returns to `model.safetensors` and return its path.

    A dual encoder becomes a file that `elastivid.load` reads; its weights are rounded to half precision there. A
    classifier becomes a file that `elastivid classify` reads. Any other model is written in its own precision with its
    config beside it.

    Args:
        recipe: says what to export and what it was.
        module: what was trained.
        folder: the folder of the run.
        step: optimizer steps done.
    """
    exported = recipe.exported(module)
    model = copy.deepcopy(exported.model).cpu().eval()
    card = {
        "recipe": recipe.name,
        "steps": step,
        "batch_size": recipe.config.batch_size,
        "seed": recipe.config.seed,
        **exported.card,
    }
    path, address = folder / MODEL, f"{recipe.name}@{step}"
    if isinstance(model, TwoTowers):
        save(model, path, address=address, licence=exported.licence, card=card, measured=dict(exported.measured))
        return path
    if isinstance(model, ClipClassifier):
        save_classifier(model, path, address=address, licence=exported.licence, card=card)
        return path
    config = getattr(model, "config", None)
    metadata = {
        "family": type(model).__module__.rpartition(".")[2],
        "address": address,
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None,  # type: ignore[arg-type]
        "licence": exported.licence,
        "card": card,
        **exported.measured,
    }
    partial = path.with_suffix(".partial")
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, metadata={key: json.dumps(value) for key, value in metadata.items()})
    partial.replace(path)
    return path
