"""Naming the classes of a user's own photos."""

from pathlib import Path

import torch

from bam_exp.build import build, describe
from bam_exp.config import Chosen
from bam_exp.errors import ConfigError, DataError
from bam_exp.tasks import Classification
from bam_exp.weights import load_weights, read_metadata, read_photos

SHOWN = 3
"""Number of classes that are named for a photo."""


def classify(chosen: Chosen) -> list[tuple[Path, list[tuple[str, float]]]]:
    """The most probable classes of the photos of the setting `images`, by the weights of the setting `evaluate`.

    Returns:
        for each photo, the names of the classes with their probabilities, the most probable first.

    Raises:
        ConfigError: if the network is no classifier.
        DataError: if a file is not a photo, or the weights do not fit the network.
    """
    assert chosen.evaluate is not None
    data, network, task = build(chosen)
    metadata = read_metadata(chosen.evaluate) or describe(chosen, data, source="", overrides=())
    if not isinstance(task, Classification) or metadata.preprocessing is None:
        raise ConfigError(f"images: recipe={chosen.recipe.name} does not train a classifier of images")
    if len(metadata.classes) != data.num_classes:
        named = f"names {len(metadata.classes)} classes, and the network has {data.num_classes}"
        raise DataError(f"{chosen.evaluate}: its metadata is damaged (it {named})")
    photos = read_photos(chosen.images, metadata.preprocessing)
    load_weights(network, chosen.evaluate)
    network.eval()
    with torch.no_grad():
        probabilities, indices = network(photos).softmax(1).topk(min(SHOWN, data.num_classes))
    return [
        (path, [(metadata.classes[index], p) for index, p in zip(*pair, strict=True)])
        for path, *pair in zip(chosen.images, indices.tolist(), probabilities.tolist(), strict=True)
    ]
