"""Files of trained classifiers: one safetensors with an encoder, a head, and the names of its classes in the config.

    family        "classifier"
    config        what `ClassifierConfig.to_dict` gives: encoder, classes, blocks, transform, frames
    address, licence, card, weights_id

`linear_probe` and `finetune` export such files. Importing this module loads no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import ElastividError, WeightsError
from elastivid.weights.hub import UNKNOWN_LICENCE
from elastivid.weights.load import read_metadata, resolve

if TYPE_CHECKING:
    from elastivid.models.classifier import ClassifierConfig, ClipClassifier

FAMILY = "classifier"


def is_classifier(address: str) -> bool:
    """Whether an address is the file of a classifier.

    Raises:
        WeightsError: it is a path, and there is no such file or it is damaged.
    """
    return address.endswith(".safetensors") and read_metadata(resolve(address)).get("family") == FAMILY


def config_of(metadata: Mapping[str, Any]) -> ClassifierConfig:
    """The config in the metadata of a classifier's file.

    Raises:
        WeightsError: it does not describe a classifier.
    """
    from elastivid.models.classifier import ClassifierConfig

    try:
        return ClassifierConfig.from_dict(metadata["config"])
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, ElastividError) as error:
        raise WeightsError(
            f"the metadata of the file does not describe a classifier ({type(error).__name__}: {error}); "
            "use a file that linear_probe, finetune or save_classifier wrote"
        ) from error


def load_classifier(address: str) -> ClipClassifier:
    """The classifier in a file, in evaluation mode on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, or its parts do not fit each other.
    """
    from safetensors.torch import load_file

    from elastivid.models.towers import hash_of_tensors

    path = resolve(address)
    metadata = read_metadata(path)
    model = config_of(metadata).build()
    try:
        model.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model its metadata describes: {error}") from error
    own = hash_of_tensors(model)
    if metadata.get("weights_id") != own:
        raise WeightsError(f"tensors of {path} hash to {own}, but it says {metadata.get('weights_id')}: it is damaged")
    return model.eval()


def save_classifier(
    model: ClipClassifier,
    path: Path,
    *,
    address: str,
    licence: str = UNKNOWN_LICENCE,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write a classifier to a file that `load_classifier` reads; it appears when it is whole.

    Args:
        model: the classifier.
        path: where to write.
        address: name under which it is published.
        licence: SPDX expression of the weights.
        card: how it was trained, on what, and what it measures; JSON values.
    """
    from safetensors.torch import save_file

    from elastivid.models.towers import hash_of_tensors

    metadata = {
        "family": FAMILY,
        "address": address,
        "config": model.config.to_dict(),
        "weights_id": hash_of_tensors(model),
        "licence": licence,
        "card": dict(card or {}),
    }
    partial = path.with_suffix(".partial")
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(state, partial, metadata={key: json.dumps(value) for key, value in metadata.items()})
    partial.replace(path)
