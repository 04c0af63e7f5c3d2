"""Read WebDataset shards of other tools: the samples in their headers, their labels, and an index of them."""

import json
import posixpath
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Literal

import numpy as np

from mocokit.data.sources.layout import label_ids, read_layout
from mocokit.data.sources.left_out import LeftOutTally
from mocokit.data.sources.limits import ARCHIVE_ERRORS
from mocokit.data.sources.names import Names
from mocokit.data.sources.shard_index import UNKNOWN, ShardIndex
from mocokit.data.sources.suffixes import is_image_name
from mocokit.data.sources.tar_members import (
    damage_as_tar_error,
    has_data,
    link_target,
    safe_members,
    tell_rest,
    tell_special,
)

LABEL_KEYS = ("label", "class", "cls", "category", "target")
"""Keys of a sample's `.json` file that may hold its class, in order of preference."""
_MAX_CLASS_BYTES = 1000
_MAX_JSON_BYTES = 2**16
_TRIED_JSON = 8
"""`.json` files of a shard that are read before they count as files without labels."""


@dataclass(frozen=True)
class Sample:
    """The first image of a WebDataset sample: its path in the shard, and offset and size in bytes."""

    name: str
    offset: int
    size: int
    class_text: str | None
    """Content of the sample's `.cls` file, or the label in its `.json` file; None without one."""


def sample_key(name: str) -> tuple[str, str]:
    """Return a member's sample and its extension within it: `a/video.0001.seg.png` gives (a/video.0001, seg.png).

    By WebDataset's convention a sample's name ends at the first dot of the file name. Parts of digits alone are counted
    to the name too, because frames are numbered that way.
    """
    folder, _, base = name.rpartition("/")
    parts = base.split(".")
    count = 1
    while count < len(parts) - 1 and parts[count].isdecimal():
        count += 1
    return f"{folder}/{'.'.join(parts[:count])}", ".".join(parts[count:])


@dataclass
class _Walk:
    """The state of reading a shard's headers."""

    tally: LeftOutTally
    images: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Sample -> (name, offset, size) of its first image."""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Name of each image -> (offset, size), for links."""
    classes: dict[str, str] = field(default_factory=dict)
    """Sample -> text of its `.cls` file."""
    json_classes: dict[str, str] = field(default_factory=dict)
    """Sample -> label in its `.json` file."""
    num_json: int = 0

    def add(self, member: tarfile.TarInfo, read: Callable[[int], bytes]) -> None:
        """Add a member; `read(n)` returns its first n bytes."""
        key, extension = sample_key(member.name)
        if is_image_name(member.name):
            self._add_image(member, key)
        elif not has_data(member):
            pass
        elif extension == "cls":
            self.classes[key] = read(_MAX_CLASS_BYTES).decode("utf-8", "replace").strip()
        elif extension == "json":
            self._add_json(key, member.size, read)
        else:
            self.tally.add_file(member.name)

    def _add_image(self, member: tarfile.TarInfo, key: str) -> None:
        if has_data(member):
            place: tuple[int, int] | None = (member.offset_data, member.size)
        else:
            place = self.places.get(link_target(member) or "")
        if place is None:
            tell_special(member, self.tally)
            return
        self.places[posixpath.normpath(member.name)] = place
        if key in self.images:
            why = "of a WebDataset sample, whose name ends at the first dot, the first image is used"
            self.tally.add("further images of samples", member.name, why)
        else:
            self.images[key] = (member.name, *place)

    def _add_json(self, key: str, size: int, read: Callable[[int], bytes]) -> None:
        self.num_json += 1
        if size > _MAX_JSON_BYTES or (self.num_json > _TRIED_JSON and not self.json_classes):
            return
        label = _label_in_json(read(_MAX_JSON_BYTES))
        if label:
            self.json_classes[key] = label

    def samples(self) -> list[Sample]:
        """Return the samples that hold an image, in the shard's order."""
        classes = self.classes or self.json_classes
        return [Sample(*image, classes.get(key, classes.get(_first_dot(key)))) for key, image in self.images.items()]


def _first_dot(key: str) -> str:
    """Return the sample's name by the convention alone: all frames of a video may share one `.cls` file."""
    folder, _, base = key.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}"


def _label_in_json(raw: bytes) -> str:
    """Return the label in a sample's metadata, if it is text or a whole number; empty without one."""
    try:
        found = json.loads(raw)
    except ARCHIVE_ERRORS:  # RecursionError, a RuntimeError, for deeply nested lists
        return ""
    values = [found[key] for key in LABEL_KEYS if key in found] if isinstance(found, dict) else [found]
    label = next((value for value in values if isinstance(value, str | int) and not isinstance(value, bool)), "")
    return str(label).strip()


def walk_shard(file: IO[bytes], *, mode: Literal["r:", "r|"], tally: LeftOutTally) -> list[Sample]:
    """Return the samples of a WebDataset shard that hold an image, by reading its headers.

    Args:
        file: The uncompressed tar file.
        mode: "r:" seeks from header to header; "r|" reads the whole file in order, as a stream.
        tally: Counts the members that are not used.

    Raises:
        tarfile.TarError: Not an uncompressed tar file, or damaged.

    """
    walk = _Walk(tally)
    with damage_as_tar_error(), tarfile.open(fileobj=file, mode=mode) as archive:
        for member in safe_members(archive):
            if member.isdir():
                continue

            def read(count: int, member: tarfile.TarInfo = member) -> bytes:
                content = archive.extractfile(member)
                return content.read(count) if content else b""

            walk.add(member, read)
        if mode == "r:":
            tell_rest(archive, file, tally)
    return walk.samples()


@dataclass(frozen=True, kw_only=True)
class FoundShards:
    """The index of shards that came without one, and where their labels come from."""

    index: ShardIndex
    label_note: str


def index_samples(
    samples_of: Sequence[Sequence[Sample]], shard_bytes: Sequence[int], tally: LeftOutTally
) -> FoundShards:
    """Return the index of shards that came without one, in the order of shards and of the samples in each.

    Classes come from the `.cls` files (or from the labels in `.json` files) if every sample has one, otherwise from
    class folders, if there are any.

    Args:
        samples_of: Samples of each shard.
        shard_bytes: Size of each shard.
        tally: Counts the images that are left out, because they are the test part of a split, for example.

    """
    numbered = [(shard, sample) for shard, samples in enumerate(samples_of) for sample in samples]
    names = tuple(sample.name for _, sample in numbered)
    classes = [sample.class_text for _, sample in numbered if sample.class_text is not None]
    note = ""
    labels: tuple[int, ...] | None
    if len(classes) == len(names):
        padded = [text.zfill(5) if text.isdecimal() else text for text in classes]  # so that 9 sorts before 10
        labels, class_names = label_ids(padded)
        note = "labels: the .cls or .json file beside each image"
    else:
        layout = read_layout(names, tally)
        kept = set(layout.names)
        numbered = [(shard, sample) for shard, sample in numbered if sample.name in kept]
        names = layout.names
        labels = layout.labels
        class_names = layout.class_names
        note = layout.note
        if classes:
            bare = next(sample.name for _, sample in numbered if sample.class_text is None)
            dropped = f"{len(classes):,} samples have a .cls or a label in .json, others, {bare} for one, have none"
            note = f"{dropped}; {note}" if note else dropped
    if len(set(names)) < len(names):  # each shard may count its images from 0
        names = tuple(f"{shard:05d}/{sample.name}" for shard, sample in numbered)
    members = np.array([(shard, sample.offset, sample.size, UNKNOWN) for shard, sample in numbered], np.int64)
    index = ShardIndex(Names(names), np.ascontiguousarray(members.T), labels, class_names, tuple(shard_bytes))
    return FoundShards(index=index, label_note=note)
