"""The account of a data set: how many images of which classes it has, and what was left out of it and why."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from mocokit.data.sources.suffixes import kind_of, readable_suffixes

if TYPE_CHECKING:
    from mocokit.data.sources.sources import ImageSource

LOGGER = logging.getLogger("mocokit")

MAX_NAMES = 1000
"""Names of files left out that a source keeps, and that log.txt lists."""
SHOWN_CLASSES = 6
"""Classes that the line about a data set shows; with more, the first three."""


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Files of one kind that a source does not use."""

    count: int
    what: str
    """Plural noun, such as ".avif files"."""
    why: str = ""
    """Reason, or what to do; empty if that is plain."""
    names: tuple[str, ...] = ()
    """The first MAX_NAMES of them, sorted."""
    num_lost: int = 0
    """Number of those that are images which the user meant to be used, as far as names tell."""

    def __str__(self) -> str:
        """Return for example `30 .heic files (not read; convert them ...)`."""
        return f"{self.count:,} {self.noun}" + (f" ({self.why})" if self.why else "")

    @property
    def noun(self) -> str:
        """Return `what`, in the singular if there is one."""
        return re.sub(r"\b(image|file|folder|link)s\b", r"\1", self.what, count=1) if self.count == 1 else self.what


@dataclass
class LeftOutTally:
    """Counts what a source leaves out while it is opened."""

    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    _names: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _others: Counter[str] = field(default_factory=Counter)
    _other_names: list[str] = field(default_factory=list)

    def add(self, what: str, name: str, why: str = "", *, count: int = 1, lost: bool = False) -> None:
        """Count `count` more of `what` (a plural noun), of which `name` is one; `lost`: they were meant to be used."""
        key = (what, why)
        self._counts[key] += count
        self._lost[key] += count * lost
        names = self._names.setdefault(key, [])
        if len(names) < MAX_NAMES:
            names.append(name)

    def add_file(self, name: str) -> None:
        """Count a file that is no image, by its name."""
        kind = kind_of(name)
        if kind.kind in {"unread image", "archive"}:
            self.add(f"{kind.suffix} files", name, kind.remedy, lost=kind.kind == "unread image")
        elif kind.kind == "hidden image":
            self.add("hidden images", name, "a part of their path starts with a dot, or is __MACOSX")
        elif not any(part.startswith(".") for part in PurePosixPath(name).parts):
            self._others[kind.suffix or "without suffix"] += 1
            if len(self._other_names) < MAX_NAMES:
                self._other_names.append(name)

    def update(self, other: "LeftOutTally") -> None:
        """Add what another tally has counted."""
        self._counts.update(other._counts)
        self._lost.update(other._lost)
        self._others.update(other._others)
        for key, names in other._names.items():
            own = self._names.setdefault(key, [])
            own += names[: MAX_NAMES - len(own)]
        self._other_names += other._other_names[: MAX_NAMES - len(self._other_names)]

    def state(self) -> dict[str, Any]:
        """Return what was counted as lists that JSON can hold; `from_state` reads them."""
        kinds = [
            [what, why, count, self._lost[what, why], self._names[what, why]]
            for (what, why), count in self._counts.items()
        ]
        return {"kinds": kinds, "others": list(self._others.items()), "other_names": self._other_names}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "LeftOutTally":
        """Return a tally that has counted what `state` tells."""
        tally = cls()
        for what, why, count, lost, names in state["kinds"]:
            key = (str(what), str(why))
            tally._counts[key] = int(count)
            tally._lost[key] = int(lost)
            tally._names[key] = list(map(str, names))
        tally._others = Counter({str(suffix): int(count) for suffix, count in state["others"]})
        tally._other_names = list(map(str, state["other_names"]))
        return tally

    def forget_twins(self, names: Sequence[str]) -> None:
        """Don't count an image as lost that lies beside a readable one of the same stem (raw files of a camera)."""
        if not any(self._lost.values()):
            return
        stems = {PurePosixPath(name).with_suffix("").as_posix().lower() for name in names}
        for key in self._lost:
            twins = sum(PurePosixPath(name).with_suffix("").as_posix().lower() in stems for name in self._names[key])
            # Only the first MAX_NAMES names are known: their share stands for all.
            self._lost[key] = round(self._lost[key] * (1 - twins / max(1, len(self._names[key]))))

    def result(self) -> tuple[LeftOut, ...]:
        """Return the kinds that were left out, those with most lost images first."""
        found = [
            LeftOut(
                count=count,
                what=what,
                why=why,
                names=tuple(sorted(self._names[what, why])),
                num_lost=self._lost[what, why],
            )
            for (what, why), count in self._counts.items()
        ]
        found.sort(key=lambda kind: (-kind.num_lost, -kind.count, kind.what))
        if self._others:
            by_suffix = ", ".join(f"{suffix} {count:,}" for suffix, count in self._others.most_common(4))
            more = ", ..." if len(self._others) > 4 else ""
            found.append(
                LeftOut(
                    count=self._others.total(),
                    what="other files",
                    why=by_suffix + more,
                    names=tuple(sorted(self._other_names)),
                )
            )
        return tuple(found)


def left_out_of(source: "ImageSource") -> tuple[LeftOut, ...]:
    """Return what a source left out; empty for a source that does not say, such as one of the user's own."""
    return tuple(getattr(source, "left_out", ()))


def note_of(source: "ImageSource") -> str:
    """Return the source's sentence about its labels: where they come from, or why there are none; mostly empty."""
    return str(getattr(source, "label_note", ""))


def describe_source(source: "ImageSource", labels: Sequence[int] | None = None, class_names: Sequence[str] = ()) -> str:
    """Return a line on a source: `48 images in 2 classes (cat 24, dog 24); left out: 30 .heic files (...)`.

    Args:
        source: The images.
        labels: Class numbers to tell instead of the source's own, such as those by the training images' classes.
        class_names: Names of these classes.

    """
    given = labels is not None
    counted = _describe_classes(labels if given else source.labels, class_names if given else source.class_names)
    line = f"{_count(len(source), 'image')} {counted}"
    if (note := note_of(source)) and not (given and source.labels is None):
        line += f" ({note})"
    line += _describe_formats(getattr(source, "names", ()))
    if left_out := left_out_of(source):
        line += f"; left out: {', '.join(map(_with_example, left_out))}"
    return line


def log_line(line: str) -> None:
    """Log a line of `describe_source`, as a warning if it tells that something was left out."""
    LOGGER.log(logging.WARNING if "; left out: " in line else logging.INFO, line)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _with_example(kind: LeftOut) -> str:
    """Return `2 broken links (a.jpg, b.jpg)`: with names if there are few, unless the kind is summarised anyway."""
    if kind.what.startswith(("other files", "images in ", ".")):
        return str(kind)
    names = ", ".join(kind.names[:3]) + (", ..." if kind.count > 3 else "")
    return f"{kind.count:,} {kind.noun} ({names}" + (f": {kind.why})" if kind.why else ")")


def _describe_formats(names: Sequence[str]) -> str:
    """Return the number of images of each suffix if there are several, and that of a GIF the first frame is read."""
    counts = Counter(name.rpartition(".")[2].lower() for name in names)
    counts["jpg"] += counts.pop("jpeg", 0)
    known = [(suffix, count) for suffix, count in counts.most_common() if count and f".{suffix}" in readable_suffixes()]
    text = ""
    if len(known) > 1:
        listed = ", ".join(f".{suffix} {count:,}" for suffix, count in known[:5])
        text = f"; formats: {listed}{', ...' if len(known) > 5 else ''}"
    return f"{text}; of each .gif the first frame" if counts["gif"] else text


def _describe_classes(labels: Sequence[int] | None, class_names: Sequence[str]) -> str:
    if labels is None:
        return "without labels"
    counts = Counter(labels)
    number = len(counts)
    present = [index for index in range(len(class_names)) if counts[index]]
    shown = present if number <= SHOWN_CLASSES else present[:3]
    listed = ", ".join(f"{class_names[index]} {counts[index]:,}" for index in shown)
    more = ", ..." if len(shown) < number else ""
    return f"in {number:,} {'class' if number == 1 else 'classes'} ({listed}{more})"


def names_left_out(source: "ImageSource") -> Iterator[str]:
    """Yield a line for each file left out, at most MAX_NAMES in all."""
    budget = MAX_NAMES
    for kind in left_out_of(source):
        for name in kind.names[:budget]:
            yield f"left out: {name}: one of {kind}"
        budget -= len(kind.names[:budget])


def require_few_lost(source: "ImageSource", *, max_share: float) -> None:
    """Raise ValueError if more than `max_share` of the images that the user meant to use are left out."""
    lost = sum(kind.num_lost for kind in left_out_of(source))
    whole = len(source) + lost
    if lost > max_share * whole:
        kinds = ", ".join(_with_example(kind) for kind in left_out_of(source) if kind.num_lost)
        enough = min(1.0, lost / whole + 0.01)
        raise ValueError(
            f"data.max_bad_share={max_share}: {lost:,} of {whole:,} images are left out: {kinds}; convert or remove "
            f"them, or allow a larger share, for example --data.max-bad-share {enough:.2f}"
        )
