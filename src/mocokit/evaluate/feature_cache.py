"""Keep features on disk, so that the same weights, images and view are embedded only once.

A cache file is written atomically, and its hash is checked when it is read.
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

FORMAT = 2
"""Version of the cache. Raise it if a change of code gives other features for the same weights and images."""


@dataclass(frozen=True)
class FeatureCache:
    """Folder of cached features.

    Args:
        folder: Folder of the cache files; None: cache nothing.

    """

    folder: Path | None
    _fingerprints: dict[int, tuple[ImageSource, str]] = field(default_factory=dict, repr=False)

    def get(self, extractor_key: str, images: LabelledImages, compute: Callable[[], Features]) -> Features:
        """Return the cached features of `images`; compute and save them if they are missing or damaged.

        A file that can't be written is a warning, not an error.

        Args:
            extractor_key: Everything that the features depend on besides the images: weights, normalisation, precision.
            images: Images of the features.
            compute: Computes the features.

        """
        if self.folder is None:
            return compute()
        path = self.folder / f"{self._key(extractor_key, images)}.safetensors"
        features = _load(path)
        if features is None:
            features = compute()
            _save(path, features)
        return features

    def _key(self, extractor_key: str, images: LabelledImages) -> str:
        source = images.reader.source
        # A fingerprint reads every file's size and time, so each source gets one. The source is stored with it: while
        # it is alive, no other source can get the same id().
        if id(source) not in self._fingerprints:
            self._fingerprints[id(source)] = source, fingerprint(source)
        view = images.view
        parts = (
            FORMAT,
            extractor_key,
            self._fingerprints[id(source)][1],
            images.labels,
            images.indices,
            view.size_px,
            view.crop_ratio,
            images.reader.max_image_px,
            sorted(images.reader.ranges.items()),
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
