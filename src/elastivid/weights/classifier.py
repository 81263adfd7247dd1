"""Files of trained classifiers: one safetensors with an encoder, its heads, and the names of its classes.

                  linear_probe, finetune                      flux_tune
    family        "classifier"                                "fluxvit"
    config        encoder, classes, blocks, transform,        sizes of the FluxViT
                  frames (`ClassifierConfig.to_dict`)
    classes                                                   names
    trained_tokens                                            a count per head

and address, licence, card and weights_id, the hash of the tensors, in both. Importing this module loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastivid.core.errors import ElastividError, WeightsError
from elastivid.weights.hub import UNKNOWN_LICENCE
from elastivid.weights.load import read_metadata, resolve
from elastivid.weights.writing import write_weights

if TYPE_CHECKING:
    from elastivid.models.classifier import ClassifierConfig, ClipClassifier
    from elastivid.models.flux_classifier import FluxClassifier, FluxClassifierConfig

FAMILY = "classifier"
HEADED = "fluxvit"  # a family of encoders whose files may hold heads; those that name classes are classifiers


def is_classifier(address: str) -> bool:
    """Whether an address is the file of a classifier.

    Raises:
        WeightsError: it is a path, and there is no such file or it is damaged.
    """
    return address.endswith(".safetensors") and describes_classifier(read_metadata(resolve(address)))


def describes_classifier(metadata: Mapping[str, Any]) -> bool:
    """Whether the metadata are those of a classifier's file."""
    family = metadata.get("family")
    return family == FAMILY or (family == HEADED and "classes" in metadata)


def config_of(metadata: Mapping[str, Any]) -> ClassifierConfig | FluxClassifierConfig:
    """The config in the metadata of a classifier's file.

    Raises:
        WeightsError: it does not describe a classifier.
    """
    from elastivid.models.classifier import ClassifierConfig
    from elastivid.models.flux_classifier import FluxClassifierConfig

    try:
        if metadata.get("family") == HEADED:
            return FluxClassifierConfig.from_metadata(metadata)
        return ClassifierConfig.from_dict(metadata["config"])
    except (KeyError, TypeError, ValueError, AttributeError, ImportError, ElastividError) as error:
        raise WeightsError(
            f"the metadata of the file does not describe a classifier ({type(error).__name__}: {error}); "
            "use a file that linear_probe, finetune, flux_tune or save_classifier wrote"
        ) from error


def load_classifier(address: str) -> ClipClassifier | FluxClassifier:
    """The classifier in a file, in evaluation mode on the CPU.

    Raises:
        WeightsError: the file is missing, damaged, or its parts do not fit each other.
    """
    from safetensors.torch import load_file

    path = resolve(address)
    metadata = read_metadata(path)
    model = config_of(metadata).build()
    headed = metadata["family"] == HEADED  # the file of an encoder, heads included
    try:
        (model.encoder if headed else model).load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model its metadata describes: {error}") from error
    own = model.weights_id
    if metadata.get("weights_id", own if headed else None) != own:  # the first files with heads did not state it
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
    metadata = {
        "family": FAMILY,
        "address": address,
        "config": model.config.to_dict(),
        "weights_id": model.weights_id,
        "licence": licence,
        "card": dict(card or {}),
    }
    write_weights(path, model.state_dict(), metadata)
