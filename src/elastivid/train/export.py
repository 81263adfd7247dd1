"""The model that a run leaves behind, as a weights file."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from torch import nn

from elastivid.models.classifier import ClipClassifier
from elastivid.models.towers import TwoTowers, hash_of_tensors
from elastivid.train.checkpoint import MODEL
from elastivid.train.recipe import Recipe
from elastivid.weights.classifier import save_classifier
from elastivid.weights.load import save
from elastivid.weights.writing import write_weights


def export(recipe: Recipe, module: nn.Module, folder: Path, step: int) -> Path:
    """Write what `recipe.exported` returns to `model.safetensors` and return its path.

    A dual encoder becomes a file that `elastivid.load` reads; its weights are rounded to half precision there. A
    classifier becomes a file that `elastivid classify` reads. Any other model is written in its own precision with its
    config beside it; a FluxViT with heads whose classes `measured` names can be classified with too.

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
        "weights_id": hash_of_tensors(model),
        "licence": exported.licence,
        "card": card,
        **exported.measured,
    }
    write_weights(path, model.state_dict(), metadata)
    return path
