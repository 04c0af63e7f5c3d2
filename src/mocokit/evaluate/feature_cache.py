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

from mocokit.data.batch import BadImage
from mocokit.data.sources.identity import DataIdentity, identify
from mocokit.data.sources.sources import ImageSource
from mocokit.engine.agreement import digest_tensors
from mocokit.engine.checkpoint import write_atomically
from mocokit.evaluate.features import Features, LabelledImages

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
    _identities: dict[int, tuple[ImageSource, DataIdentity]] = field(default_factory=dict, repr=False)

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
        features = _load(path, images.reader.source)
        if features is None:
            features = compute()
            _save(path, features)
        images.tally.add(features.bad)
        return features

    def identity(self, source: ImageSource) -> DataIdentity:
        """Return the identity of a source's images, which is computed once for each source."""
        # The source is stored with it: while it is alive, no other source can get the same id().
        if id(source) not in self._identities:
            self._identities[id(source)] = source, identify(source)
        return self._identities[id(source)][1]

    def _key(self, extractor_key: str, images: LabelledImages) -> str:
        view = images.view
        parts = (
            FORMAT,
            extractor_key,
            self.identity(images.reader.source).digest,
            images.labels,
            images.indices,
            view.size_px,
            view.crop_ratio,
            images.reader.max_image_px,
            sorted(images.reader.ranges.items()),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _load(path: Path, source: ImageSource) -> Features | None:
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
    bad = tuple(BadImage(index=i, name=source.name(i), reason=reason) for i, reason in metadata["bad"])
    return Features(rows=tensors["rows"], labels=tensors["labels"], extract_s=metadata["extract_s"], bad=bad)


def _save(path: Path, features: Features) -> None:
    tensors = {"rows": features.rows.contiguous(), "labels": features.labels}
    bad = [(image.index, image.reason) for image in features.bad]
    facts = {"sha256": digest_tensors(tensors), "extract_s": features.extract_s, "bad": bad}
    metadata = {"format": "pt", "mocokit": json.dumps(facts)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    except (OSError, SafetensorError) as error:
        LOGGER.warning("%s: features not kept (%s)", path, error)
