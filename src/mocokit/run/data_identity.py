"""The identity of a run's images: computed at each start, recorded in the run folder, and compared on resume."""

import logging
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.data.sources.identity import DataIdentity, describe_change, identify, load_identity
from mocokit.data.sources.overlap import find_overlap
from mocokit.data.sources.sources import ImageSource
from mocokit.engine.checkpoint import write_atomically
from mocokit.engine.run_folder import RunFolder

LOGGER = logging.getLogger("mocokit")


@dataclass(frozen=True, kw_only=True)
class RunImages:
    """The identity of a run's images, as far as this rank knows it."""

    num_images: int
    digest: str
    identity: DataIdentity | None
    """Names and content hashes; None except on the first rank of each machine, which computed them."""
    test: DataIdentity | None = None
    """The same of the images that the monitor classifies; None without such, and except on the main rank."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it; complete on the main rank."""
        test_digest = self.test.digest if self.test else ""
        return {"digest": self.digest, "num_images": self.num_images, "test_digest": test_digest}

    def save(self, folder: RunFolder) -> None:
        """Write names and content hashes into the run folder, on the main rank; they tell later what changed."""
        if distributed.is_main() and self.identity is not None:
            write_atomically(folder.images, self._write)

    def _write(self, path: Path) -> None:
        assert self.identity is not None
        with path.open("wb") as file:
            self.identity.save(file)


def identify_images(source: ImageSource, test: ImageSource | None = None) -> RunImages:
    """Return the identity of the run's images; the first rank of each machine looks at its files, the others wait.

    Args:
        source: The training images.
        test: The images that the monitor classifies; None: some of the training images.

    Raises:
        ValueError: The machines have different images.

    """
    identity = None
    test_identity = None
    with distributed.work_alone():
        if distributed.local_rank() == 0:
            identity = identify(source)
        if distributed.is_main() and test is not None:
            test_identity = identify(test)
    digests = distributed.all_gather_objects(identity.digest if identity else "")
    odd = [rank for rank, digest in enumerate(digests) if digest not in ("", digests[0])]
    if odd:
        raise ValueError(
            f"data: the machine of rank {odd[0]} has other images than that of rank 0 (names, sizes or bytes differ); "
            "give every machine the same files"
        )
    return RunImages(num_images=len(source), digest=digests[0], identity=identity, test=test_identity)


def require_same_images(
    folder: RunFolder, state: Mapping[str, Any], images: RunImages, *, accept_changes: bool
) -> list[str]:
    """Return warnings about images that changed since a checkpoint was written; every rank calls it.

    Args:
        folder: The run folder.
        state: The checkpoint's content. Checkpoints of older versions have no identity: only the number of images,
            which resolved.toml holds, is compared.
        images: The images now.
        accept_changes: Go on although the images changed.

    Raises:
        ValueError: The images changed, and `accept_changes` is false.

    """
    before = state.get("data") or {"num_images": _read_resolved(folder).get("num_images", images.num_images)}
    notes = _test_changes(before, images)
    if before.get("digest", images.digest) == images.digest and before["num_images"] == images.num_images:
        return notes
    change = distributed.all_gather_objects(_describe(folder, before, images) if distributed.is_main() else "")[0]
    if not accept_changes:
        raise ValueError(
            f"data: the images changed since {folder.path} was saved: {change}; put them back, name their new place "
            "with --data, start a new run, or go on with --accept-changes"
        )
    return [f"data: the images changed since the last checkpoint: {change}; accepted", *notes]


def _test_changes(before: Mapping[str, Any], now: RunImages) -> list[str]:
    """Return a warning if the monitor's test images changed, on the main rank; they do not move the training."""
    digest = before.get("test_digest", "")
    if not digest or now.test is None or now.test.digest == digest:
        return []
    return [
        f"data.test: the test images changed since the last checkpoint ({len(now.test.names):,} now); kNN accuracies "
        "before and after it are of other images"
    ]


def _describe(folder: RunFolder, before: Mapping[str, Any], now: RunImages) -> str:
    """Return how the images changed, in as much detail as the run folder tells."""
    assert now.identity is not None, "rank 0 is the first rank of its machine"
    saved = None
    if folder.images.is_file():
        saved = load_identity(folder.images.read_bytes(), like=now.identity)
    if saved is not None and saved.digest == before.get("digest"):
        return describe_change(saved, now.identity)
    if before["num_images"] != now.num_images:
        return f"{now.num_images:,} images now, {before['num_images']:,} before"
    return f"{now.num_images:,} images as before, but other names, contents or labels"


def require_same_shapes(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ValueError if a tensor of a method's state has another shape now, such as a bank with a row per image."""
    for name, value in state.items():
        shape = getattr(own.get(name), "shape", None)
        if isinstance(value, Tensor) and shape is not None and value.shape != shape:
            raise ValueError(
                f"data: the run's {name} has shape {tuple(value.shape)}, these images need {tuple(shape)}; this method "
                "can't go on with another number of images: put them back, or start a new run"
            )


def with_recorded_mean(config: Config, folder: RunFolder) -> Config:
    """Return the config with mean and deviation that the run measured when it began.

    They belong to the weights: measured again on changed images, they would change what the network sees.
    """
    resolved = _read_resolved(folder)
    if config.data.mean or not resolved.get("mean"):
        return config
    return replace_settings(config, {"data.mean": tuple(resolved["mean"]), "data.std": tuple(resolved["std"])})


def _read_resolved(folder: RunFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(folder.resolved.read_text(encoding="utf-8")) if folder.resolved.is_file() else {}
    except ValueError as error:
        raise ValueError(
            f"run={folder.path}: its resolved.toml is damaged ({error}); put it back, or delete it: then mean and "
            "deviation, unless they were given, are measured again"
        ) from error


def overlap_warnings(source: ImageSource, test: ImageSource | None, images: RunImages, location: str) -> list[str]:
    """Return a warning if test images are training images too; on the main rank, others return nothing.

    Args:
        source: The training images.
        test: The images that the monitor classifies; None: some of the training images, apart from those that vote.
        images: Identities of both.
        location: Where the test images are.

    """
    with distributed.work_alone():
        if test is None or images.test is None or images.identity is None:
            return []
        overlap = find_overlap(source, test, images.identity, images.test)
    return [f"data.test={location}: {overlap}"] if overlap.shared else []
