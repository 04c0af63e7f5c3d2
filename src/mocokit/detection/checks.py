"""Check the files of detection sets before the first iteration, and identify their images and annotations."""

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mocokit.data.sources.identity import DataIdentity, identify
from mocokit.data.sources.overlap import find_overlap
from mocokit.data.sources.sources import FileSource
from mocokit.detection.batches import read_picture
from mocokit.detection.data_sets import AnnotatedImage, DetectionSet
from mocokit.detection.image_files import stored_size

LOGGER = logging.getLogger("mocokit")

EXAMPLES = 3
"""Files that a message names."""

_THREADS = 16


def require_image_files(images: DetectionSet) -> None:
    """Raise ValueError if an image file is missing, can't be read, or has another size than its annotation says.

    Reads the header of each file. Else the run would end at the iteration that reaches the file.
    """
    pictures = images.images
    missing = [image for image in pictures if not image.path.is_file()]
    if missing:
        names = ", ".join(str(image.path) for image in missing[:EXAMPLES]) + (", ..." if missing[EXAMPLES:] else "")
        raise ValueError(
            f"data={missing[0].path.parent}: {len(missing):,} of {len(pictures):,} image files are missing ({names}); "
            "copy them there, or take them off the list"
        )
    with ThreadPoolExecutor(_THREADS) as threads:
        problems = [problem for problem in threads.map(_problem_of, pictures) if problem]
    if problems:
        more = f"; {len(problems) - 1:,} more of {len(pictures):,} images have such a flaw" if problems[1:] else ""
        raise ValueError(f"{problems[0]}{more}")


def _problem_of(image: AnnotatedImage) -> str:
    """Return why the detector could not read the image; empty if it can, as far as the header tells."""
    try:
        if stored_size(image.path) == (image.width, image.height):
            return ""
    except ValueError:
        pass  # the decoder reads some files that Pillow does not; it has the last word
    try:
        read_picture(image)
    except ValueError as error:
        return str(error)
    return ""


def identify_images(images: DetectionSet) -> DataIdentity:
    """Return the identity of a set's image files, wherever they are."""
    return identify(_as_source(images))


def annotations_digest(images: DetectionSet) -> str:
    """Return a SHA-256 of a set's objects, and of COCO's file, out of which the evaluation reads crowds."""
    digest = hashlib.sha256(repr(images.class_names).encode())
    for image in images.images:
        digest.update(repr((image.image_id, image.width, image.height, image.outlines)).encode())
        for values in (image.boxes, image.labels, image.difficult):
            digest.update(values.tobytes() + b"\0")
    if images.coco_file is not None:
        digest.update(images.coco_file.read_bytes())
    return digest.hexdigest()


def _as_source(images: DetectionSet) -> FileSource:
    names = tuple(str(image.path.absolute()) for image in images.images)
    return FileSource(root=Path(), names=names, labels=None, class_names=())


def warn_of_flaws(train: DetectionSet, test: DetectionSet, identities: tuple[DataIdentity, DataIdentity]) -> None:
    """Log a warning about each kind of flaw in the annotations, and about test images that are training images.

    Args:
        train: Training images.
        test: Test images.
        identities: Identity of the images of `train`, and of `test`.

    """
    for role, images in (("training", train), ("test", test)):
        for note in images.notes:
            LOGGER.warning("%s annotations: %s", role, note)
    overlap = find_overlap(_as_source(train), _as_source(test), *identities)
    if overlap.shared:
        LOGGER.warning("test: %s", overlap)
