"""The version of all that decides a run's numbers, and what each version changed.

A commit that moves pixels, file lists, labels or trajectories raises NUMERICS and says so in CHANGES. A run of an older
version then stops on resume in one line, instead of going on as another run.
"""

from collections.abc import Mapping
from pathlib import Path

NUMERICS = 2
"""Version that this code trains with. Checkpoints and backbone files record it; those that don't are of version 1."""

CHANGES: Mapping[int, tuple[str, ...]] = {
    2: (
        "TIFF files and images of more than 8 bits have other pixels",
        "JPEGs whose orientation stands behind the first 4 KiB, or in XMP, are turned upright",
        "tall crops follow the installed Pillow, and thin images are cropped before they are resized",
        "more kinds of image files are read, and links, tar files and numbered frames inside archives",
        "of train and val or test folders only the training part is used, and run folders below the data are left out",
        "labels of lists come from the column that the header names, labels of one tar from its .cls or .json files",
        "the warm-up of the learning rate starts at 0",
    ),
}
"""Version -> what it changed against the version before, as the end of a sentence for the user."""


def recorded_numerics(record: Mapping[str, object]) -> int:
    """Return the version in a checkpoint's state or a card; 1 if it names none."""
    version = record.get("numerics", 1)
    if not isinstance(version, int):
        raise ValueError(f"numerics={version!r}: not a version; the file is damaged")
    return version


def changes_since(version: int) -> str:
    """Return what changed after `version`, in one line; empty if nothing did."""
    return "; ".join(change for later in sorted(CHANGES) if later > version for change in CHANGES[later])


def describe_other_numerics(version: int) -> str:
    """Return a sentence on a backbone that was trained with another version of the numbers."""
    if version > NUMERICS:
        return f"trained by a newer mocokit (numerics {version}, here {NUMERICS}); update mocokit"
    return f"trained by an older mocokit (numerics {version}, now {NUMERICS}); since then {changes_since(version)}"


def require_same_numerics(run: Path, version: int, *, accept_changes: bool) -> list[str]:
    """Return warnings about a run that began with another version of the numbers.

    Args:
        run: The run folder, for the message.
        version: Version that the run's newest checkpoint records.
        accept_changes: Go on although the numbers change in the middle of the run.

    Raises:
        ValueError: The version is newer than this code's, or older and `accept_changes` is false.

    """
    if version > NUMERICS:
        raise ValueError(
            f"numerics={version}: {run} was made by a newer mocokit, this one has version {NUMERICS}; update mocokit"
        )
    if version == NUMERICS:
        return []
    changed = f"{run} began with an older mocokit (numerics {version}, now {NUMERICS}): {changes_since(version)}"
    if not accept_changes:
        raise ValueError(
            f"numerics={version}: {changed}; finish it with the version that began it, start a new run, or go on with "
            "--accept-changes"
        )
    return [f"{changed}; accepted"]
