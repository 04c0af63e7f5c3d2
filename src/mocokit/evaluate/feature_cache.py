"""Keep features on disk, so that the same weights, images and view are embedded only once.

A cache file is written atomically, by the main rank, and its hash is checked when it is read. Other ranks map the file:
the ranks of a machine share one copy in its page cache.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mocokit import distributed
from mocokit.data.batch import BadImage
from mocokit.data.sources.identity import DataIdentity, identify
from mocokit.data.sources.sources import ImageSource
from mocokit.engine.agreement import digest_tensors
from mocokit.engine.checkpoint import write_atomically
from mocokit.evaluate.features import Features, LabelledImages
from mocokit.evaluate.rank_shares import from_main, gather_on_main, on_all_ranks

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
    _digests: dict[int, tuple[ImageSource, str]] = field(default_factory=dict, repr=False)

    def get(self, extractor_key: str, images: LabelledImages, compute: Callable[[], Features]) -> Features:
        """Return the cached features of `images` on all ranks; compute and save them if they are missing or damaged.

        A file that can't be written is a warning, not an error. All ranks must call it.

        Args:
            extractor_key: Everything that the features depend on besides the images: weights, normalisation, precision.
            images: Images of the features.
            compute: Computes this rank's part of the features.

        """
        if self.folder is None:
            return on_all_ranks(compute())
        path = self.folder / f"{self._key(extractor_key, images)}.safetensors"
        features = _load_on_ranks(path, images.reader.source)
        if features is None:
            whole = gather_on_main(compute())
            with distributed.work_alone():
                is_saved = distributed.from_main(lambda: whole is not None and _save(path, whole))
            mapped = _load(path, images.reader.source, is_checked=True) if is_saved and whole is None else whole
            features = from_main(whole) if distributed.any_rank(mapped is None) else mapped
            assert features is not None, "from_main has filled the gap"
        images.tally.add(features.bad)
        return features

    def identity(self, source: ImageSource) -> DataIdentity:
        """Return the identity of a source's images, as this rank sees them; it is computed once for each source."""
        # The source is stored with it: while it is alive, no other source can get the same id().
        if id(source) not in self._identities:
            self._identities[id(source)] = source, identify(source)
        return self._identities[id(source)][1]

    def digest(self, source: ImageSource) -> str:
        """Return the digest of the identity that the main rank sees, on all ranks; all of them must call it."""
        if id(source) not in self._digests:
            with distributed.work_alone():
                digest = distributed.from_main(lambda: self.identity(source).digest)
            self._digests[id(source)] = source, digest
        return self._digests[id(source)][1]

    def _key(self, extractor_key: str, images: LabelledImages) -> str:
        view = images.view
        parts = (
            FORMAT,
            extractor_key,
            self.digest(images.reader.source),
            images.labels,
            images.indices,
            view.size_px,
            view.crop_ratio,
            images.reader.max_image_px,
            sorted(images.reader.ranges.items()),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _load_on_ranks(path: Path, source: ImageSource) -> Features | None:
    """Return the features of a file that the main rank finds undamaged, if every rank sees it; else None on all."""
    with distributed.work_alone():  # the hash of 10 GB takes some time
        found = _load(path, source) if distributed.is_main() else None
        is_good = distributed.all_gather_objects(found is not None)[0]
    if is_good and not distributed.is_main():
        found = _load(path, source, is_checked=True)
    return None if distributed.any_rank(found is None) else found


def _load(path: Path, source: ImageSource, *, is_checked: bool = False) -> Features | None:
    """Return the features in a file; None if it is missing or damaged. `is_checked`: its hash is right."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("rows", "labels")}
            metadata = json.loads((file.metadata() or {})["mocokit"])
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        LOGGER.warning("%s: damaged (%s); its features are computed again", path, error)
        return None
    if not is_checked and digest_tensors(tensors) != metadata["sha256"]:
        LOGGER.warning("%s: damaged (its hash is wrong); its features are computed again", path)
        return None
    bad = tuple(BadImage(index=i, name=source.name(i), reason=reason) for i, reason in metadata["bad"])
    return Features(rows=tensors["rows"], labels=tensors["labels"], extract_s=metadata["extract_s"], bad=bad)


def _save(path: Path, features: Features) -> bool:
    """Write the features to a file; return False if that is impossible, which is a warning."""
    tensors = {"rows": features.rows.contiguous(), "labels": features.labels}
    bad = [(image.index, image.reason) for image in features.bad]
    facts = {"sha256": digest_tensors(tensors), "extract_s": features.extract_s, "bad": bad}
    metadata = {"format": "pt", "mocokit": json.dumps(facts)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    except (OSError, SafetensorError) as error:
        LOGGER.warning("%s: features not kept (%s)", path, error)
        return False
    return True
