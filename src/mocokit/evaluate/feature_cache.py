"""Features once: each set of features is computed for the same weights, images and transform a single time.

A file of the cache is written complete or not at all, and is checked by its hash when it is read.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mocokit.data.sources.fingerprint import fingerprint
from mocokit.data.sources.sources import ImageSource
from mocokit.engine.checkpoint import write_atomically
from mocokit.evaluate.features import Features, LabelledImages
from mocokit.evaluate.frozen import digest_tensors

LOGGER = logging.getLogger("mocokit")

FORMAT = 1
"""Raise it when features of the same weights and images change."""


@dataclass(frozen=True)
class FeatureCache:
    """Features on disk.

    Args:
        folder: Where they lie; None: nothing is kept.

    """

    folder: Path | None
    _fingerprints: dict[int, tuple[ImageSource, str]] = field(default_factory=dict, repr=False)

    def get(self, what: str, images: LabelledImages, compute: Callable[[], Features]) -> Features:
        """The features from the cache, or else computed and kept.

        Args:
            what: All that they depend on beside the images: weights, normalisation, precision.
            images: What they are the features of.
            compute: Makes them.

        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{self._key(what, images)}.safetensors"
        features = _load(path)
        if features is None:
            features = compute()
            _save(path, features)
        return features

    def _key(self, what: str, images: LabelledImages) -> str:
        source = images.reader.source
        if id(source) not in self._fingerprints:  # once a source; it is kept alive so that its id stays its own
            self._fingerprints[id(source)] = source, fingerprint(source)
        view = images.view
        parts = (
            FORMAT,
            what,
            self._fingerprints[id(source)][1],
            images.labels,
            images.indices,
            view.size_px,
            view.crop_ratio,
            images.reader.max_image_px,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _load(path: Path) -> Features | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("rows", "labels")}
            metadata = json.loads((file.metadata() or {})["mocokit"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        LOGGER.warning("%s: damaged (%s); its features are computed again", path, error)
        return None
    if digest_tensors(tensors) != metadata["sha256"]:
        LOGGER.warning("%s: damaged (its hash is wrong); its features are computed again", path)
        return None
    return Features(rows=tensors["rows"], labels=tensors["labels"], extract_s=metadata["extract_s"])


def _save(path: Path, features: Features) -> None:
    tensors = {"rows": features.rows.contiguous(), "labels": features.labels}
    facts = {"sha256": digest_tensors(tensors), "extract_s": features.extract_s}
    metadata = {"format": "pt", "mocokit": json.dumps(facts)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    except (OSError, SafetensorError) as error:
        LOGGER.warning("%s: features not kept (%s)", path, error)
