"""File name suffixes of images that mocokit reads, of images that it does not read, and of archives, with remedies."""

import functools
import shlex
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Literal

from PIL import features

_COMMON = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
IMAGE_SUFFIXES = frozenset(_COMMON | {".jpe", ".jfif", ".jif", ".mpo", ".apng", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"})
"""Suffixes of the images that every installation reads. Of a GIF, an APNG and a WebP animation, the first frame."""

AVIF = ".avif"

_CONVERT = "not read; convert them to PNG or JPEG"
_UNREAD = {
    AVIF: "pip install -U 'pillow>=11.3'",
    **dict.fromkeys((".heic", ".heif", ".hif"), f"{_CONVERT}, for example: magick mogrify -format jpg FILES"),
    **dict.fromkeys((".jxl", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc", ".jxr", ".bpg", ".flif"), _CONVERT),
    **dict.fromkeys((".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef"), _CONVERT),
    **dict.fromkeys((".exr", ".hdr", ".pfm", ".dds", ".tga", ".pcx", ".sgi", ".dib", ".ico", ".ras"), _CONVERT),
    **dict.fromkeys((".dcm", ".dicom", ".fits", ".fit", ".mha", ".nrrd", ".svs", ".ndpi", ".czi"), _CONVERT),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"), "a video; write its frames as images"),
}
"""Images (and videos) that this installation can't read -> what to do."""

_UNPACKERS = {
    ".tar.gz": "gunzip -k {0}",
    ".tgz": "gunzip -k {0}",
    ".tar.bz2": "bunzip2 -k {0}",
    ".tbz2": "bunzip2 -k {0}",
    ".tbz": "bunzip2 -k {0}",
    ".tar.xz": "xz -dk {0}",
    ".txz": "xz -dk {0}",
    ".tar.lzma": "xz -dk {0}",
    ".tar.zst": "zstd -dk {0}",
    ".tzst": "zstd -dk {0}",
    ".tar.lz4": "lz4 -dk {0}",
    ".7z": "7z x {0} -oimages",
    ".rar": "unrar x {0} images/",
}
"""Archives that can't be read in any order -> the command that unpacks them."""
_FILTERS = ("gunzip", "bunzip2", "xz", "zstd", "lz4")
"""Programs of these that unpack from standard input too, by `-dc`."""
_MAGIC = {
    b"\x1f\x8b": ".tar.gz",
    b"BZh": ".tar.bz2",
    b"\xfd7zXZ\0": ".tar.xz",
    b"\x28\xb5\x2f\xfd": ".tar.zst",
    b"7z\xbc\xaf\x27\x1c": ".7z",
    b"Rar!\x1a\x07": ".rar",
}
"""First bytes of a compressed file -> its suffix."""
_ARCHIVES = (".zip", ".tar", *_UNPACKERS)


@functools.cache
def reads_avif() -> bool:
    """Return True if this Pillow decodes AVIF (its wheels do from 11.3 on)."""
    return "avif" in features.modules and features.check("avif") is True


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the images that this installation reads."""
    return IMAGE_SUFFIXES | {AVIF} if reads_avif() else IMAGE_SUFFIXES


def list_suffixes() -> str:
    """Return the readable suffixes as text for messages, without dots and the common ones first."""
    common, others = (sorted(suffix[1:] for suffix in part) for part in (_COMMON, readable_suffixes() - _COMMON))
    return ", ".join([*common, *others])


def is_hidden(name: str) -> bool:
    """Return True for a path of which a part starts with a dot (`..` too) or is `__MACOSX`.

    Archives made on macOS hold a `__MACOSX` folder of metadata files under the images' names.
    """
    if not name.startswith(".") and "/." not in name and "__MACOSX" not in name:
        return False  # the usual case, a tenth of the time
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def suffix_of(name: str) -> str:
    """Return the suffix of a path in lower case, like pathlib's but in a fifth of the time; a data set has millions."""
    base = name.rpartition("/")[2]
    dot = base.rfind(".")
    return base[dot:].lower() if 0 < dot < len(base) - 1 else ""


def has_image_suffix(name: str) -> bool:
    """Return True for a path with the suffix of an image that is read, in upper or lower case."""
    return suffix_of(name) in readable_suffixes()


def is_image_name(name: str) -> bool:
    """Return True for a path with an image's suffix, unless a part of it is hidden."""
    return has_image_suffix(name) and not is_hidden(name)


@dataclass(frozen=True)
class FileKind:
    """Kind of a file by its name, and what to do if it is not read."""

    kind: Literal["image", "hidden image", "unread image", "archive", "other"]
    suffix: str
    """In lower case; empty if the name has none."""
    remedy: str = ""


def kind_of(name: str) -> FileKind:
    """Return the kind of a file that is found beside images."""
    suffix = suffix_of(name)
    hidden = is_hidden(name)
    if suffix in readable_suffixes():
        return FileKind("hidden image" if hidden else "image", suffix)
    if hidden:
        return FileKind("other", suffix)
    if suffix in _UNREAD:
        return FileKind("unread image", suffix, _UNREAD[suffix])
    if archive := archive_suffix(name):
        return FileKind("archive", archive, "not opened here; unpack them, or give each as --data")
    return FileKind("other", suffix)


def archive_suffix(name: str) -> str:
    """Return the suffix of an archive, such as `.tar.gz`; empty for another file."""
    lower = name.lower()
    return next((suffix for suffix in sorted(_ARCHIVES, key=len, reverse=True) if lower.endswith(suffix)), "")


def unpacking_command(path: PurePath, start: bytes = b"") -> str:
    """Return the command that unpacks a compressed archive; empty if it is none, or a zip or tar that is read in place.

    Args:
        path: The file.
        start: Its first bytes, which count more than its name.

    """
    magic = next((suffix for magic, suffix in _MAGIC.items() if start.startswith(magic)), None)
    command = _UNPACKERS.get(magic or archive_suffix(path.name), "").format(shlex.quote(str(path)))
    program = command.partition(" ")[0]
    if magic and archive_suffix(path.name) not in _UNPACKERS and program in _FILTERS:  # which ask for their own suffix
        target = shlex.quote(str(path.with_name(f"unpacked_{path.stem}.tar")))
        return f"{program} -dc < {shlex.quote(str(path))} > {target}"
    return command
