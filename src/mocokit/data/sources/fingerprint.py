"""A hash of the images in a source: equal for the same data, different if an image was added, removed or changed."""

import hashlib

from mocokit.data.sources.sources import FileSource, ImageSource

SAMPLED_IMAGES = 64
"""Images whose bytes are hashed if the source has no files, and so no sizes and times of modification."""


def fingerprint(source: ImageSource) -> str:
    """Return the SHA-256 of the names and labels, and of what shows a change of the images.

    For a FileSource, that is each file's size and time of modification. For other sources, it is the bytes of about
    SAMPLED_IMAGES images at equal distances, so a change of a single image can go unnoticed.
    """
    digest = hashlib.sha256(repr((len(source), source.labels, source.class_names)).encode())
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    if isinstance(source, FileSource):
        for name in source.names:
            digest.update(_size_and_time(source, name))
        return digest.hexdigest()
    for index in range(0, len(source), max(1, len(source) // SAMPLED_IMAGES)):
        digest.update(_stored_bytes(source, index))
    return digest.hexdigest()


def _size_and_time(source: FileSource, name: str) -> bytes:
    try:
        status = (source.root / name).stat()
    except OSError:
        return b"gone\0"
    return f"{status.st_size} {status.st_mtime_ns}\0".encode()


def _stored_bytes(source: ImageSource, index: int) -> bytes:
    try:
        raw = source.read(index)
    except OSError:
        return b"unreadable"
    return raw if isinstance(raw, bytes) else raw.tobytes()
