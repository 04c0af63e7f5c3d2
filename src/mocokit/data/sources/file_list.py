"""Source of the images that a text file lists: one path a line, or a table with columns for path and label."""

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from mocokit.data.sources.layout import label_ids
from mocokit.data.sources.limits import require_entries
from mocokit.data.sources.names import Names
from mocokit.data.sources.sources import FileSource
from mocokit.data.sources.suffixes import IMAGE_SUFFIXES, has_image_suffix, is_image_name
from mocokit.settings import require

PATH_HEADS = (
    "path",
    "file",
    "filename",
    "filepath",
    "image",
    "imagepath",
    "imagefile",
    "imagename",
    "img",
    "imgpath",
    "imgname",
    "imagefilename",
    "relpath",
    "relativepath",
)
"""Headers of the column of paths, in lower case, without spaces, `_` and `-`."""
LABEL_HEADS = (
    *("label", "class", "category", "target"),
    *("labels", "classname", "categoryname", "labelname", "classlabel", "imagelabel", "classes", "categories"),
)
"""Headers of the column of labels, likewise; the first four count most."""
SPLIT_HEADS = ("split", "set", "subset", "partition", "phase", "usage", "istrain", "istest", "train", "test")
"""Headers of a column that names the part of a split which each row belongs to, likewise."""
MAX_PARTS = 10
"""Parts of a split; a column with more values names something else."""
_SAMPLED_ROWS = 100
"""Rows that decide which columns hold paths."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table that the user names; each a header, or a number that counts from 1. Empty: found by itself."""

    path: str = ""
    label: str = ""


def open_list(path: Path, columns: Columns | None = None) -> FileSource:
    """Return a source of the images that a text file lists, with labels if every line has one.

    Paths are relative to the list's folder, or absolute. In `.csv` and `.tsv` files, the header names the columns of
    paths and labels (see PATH_HEADS and LABEL_HEADS); without a header, the first column is the path and the second,
    if it is the last, the label. Other files hold one path a line, or a path, white space and a label; a line that
    starts with `#` is a comment. Text is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ValueError: Not text, no paths, none of the first 100 paths exists, only some lines have a label, or the table
            lacks a column that `columns` names.

    """
    columns = columns or Columns()
    is_table = path.suffix.lower() in {".csv", ".tsv"}
    if not is_table and (columns.path or columns.label):
        raise ValueError(
            f"data={path}: only .csv and .tsv files have columns, so leave out label_column and path_column"
        )
    try:
        text = _read_text(path)
        listed = _read_table(path, text, columns) if is_table else _read_lines(path, text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"data={path}: not a list in UTF-8 text ({error}); save it as UTF-8, for example: iconv -f WINDOWS-1252 "
            f"-t UTF-8 {path.name} > utf8{path.suffix}"
        ) from error
    require(bool(listed.names), "data", path, "the list names no images; write one path per line")
    require_entries(len(listed.names), path)
    names = _existing(path, listed.names)
    labels, class_names = (None, ()) if listed.classes is None else label_ids(listed.classes)
    return FileSource(path.parent, Names(names), labels, class_names, label_note=_note(listed))


@dataclass(frozen=True)
class _Listed:
    """Paths of a list, and their classes if it has them."""

    names: tuple[str, ...]
    classes: tuple[str, ...] | None
    note: str = ""


def _note(listed: _Listed) -> str:
    repeated = len(listed.names) - len(set(listed.names))
    notes = [listed.note, f"paths repeated: {repeated:,}" if repeated else ""]
    return "; ".join(note for note in notes if note)


def _read_text(path: Path) -> str:
    """Return the file's text without its byte order mark, which tells the encoding; UTF-8 without one."""
    raw = path.read_bytes()
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    text = raw.decode(encoding)
    if "\0" in text:  # UTF-16 without a mark, or no text at all; no path holds a NUL character
        raise UnicodeDecodeError(encoding, raw, raw.index(b"\0"), len(raw), "it holds NUL characters")
    return text


def _existing(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    r"""Return the paths, with `/` for `\` if the list was written on Windows.

    Raises:
        ValueError: None of the first 100 paths exists.

    """
    first = names[:100]
    if any(_is_file(path.parent / name) for name in first):
        return names
    if any(_is_file(path.parent / name.replace("\\", "/")) for name in first):
        return tuple(name.replace("\\", "/") for name in names)
    bare = names[0]
    suffix = next((end for end in sorted(IMAGE_SUFFIXES) if _is_file(path.parent / f"{bare}{end}")), "")
    hint = f"; {bare}{suffix} does: write names with their suffix" if suffix else ""
    raise ValueError(
        f"data={path}: none of the first {len(first)} paths exists ({path.parent / bare}); "
        f"paths are relative to the list's folder{hint}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # the path holds a NUL character
        return False


def _read_lines(path: Path, text: str) -> _Listed:
    """Return the paths and classes of a list without columns; comments and empty lines are left out."""
    lines = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if not line.startswith("#")]
    rows = [_split_line(line) for line in lines if line]
    return _with_classes(path, [row[0] for row in rows], [row[1] if len(row) > 1 else "" for row in rows])


def _split_line(line: str) -> list[str]:
    if quoted := re.fullmatch(r"""(["'])(.+)\1\s*(.*)""", line):
        return [part for part in (quoted[2], quoted[3]) if part]
    # A line that ends in an image's suffix has no label; its white space belongs to the path.
    return [line] if is_image_name(PurePosixPath(line).name) else line.rsplit(maxsplit=1)


def _with_classes(path: Path, names: Sequence[str], classes: Sequence[str], note: str = "") -> _Listed:
    """Return the list, with classes if every line has one.

    Raises:
        ValueError: Some lines have a class, others don't.

    """
    if not any(classes):
        return _Listed(tuple(names), None, note)
    if not all(classes):
        bare = next(name for name, label in zip(names, classes, strict=True) if not label)
        raise ValueError(f"data={path}: {bare} has no label but others do; label all or none")
    return _Listed(tuple(names), tuple(classes), note)


def _read_table(path: Path, text: str, columns: Columns) -> _Listed:
    """Return the paths and classes of a .csv or .tsv file, without its header."""
    delimiter = _delimiter(path, text.lstrip().partition("\n")[0])
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = [[cell.strip() for cell in row] for row in table]
    rows = [row for row in rows if any(row)]
    if not rows:
        return _Listed((), None)
    width = max(map(len, rows))
    rows = [row + [""] * (width - len(row)) for row in rows]
    heads = rows[0] if _is_header(path, rows) else None
    body = rows[1:] if heads else rows
    if not body:
        return _Listed((), None)
    number = _path_column(path, heads, body, columns.path)
    label, note = _label_column(path, heads, width, number, columns.label)
    kept = [row for row in body if row[number]]
    note = "; ".join(part for part in (note, _split_note(heads, kept)) if part)
    classes = [row[label] if label is not None else "" for row in kept]
    return _with_classes(path, [row[number] for row in kept], classes, note)


def _split_note(heads: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> str:
    """Return a note on a column that names the parts of a split, since all rows are used; empty without one."""
    for number, head in enumerate(heads or ()):
        parts = Counter(row[number] for row in rows)
        if _plain(head) in SPLIT_HEADS and 1 < len(parts) <= MAX_PARTS:
            counted = ", ".join(f"{part or 'empty'} {count:,}" for part, count in sorted(parts.items()))
            return f"the column {head} ({counted}) is not used: all rows are; write a list for each part"
    return ""


def _delimiter(path: Path, line: str) -> str:
    r"""Return the character between columns: a tab in .tsv files, else `,`, or `;` or a tab where there is no `,`."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in (",", ";", "\t") if mark in line), ",")


def _is_header(path: Path, rows: Sequence[Sequence[str]]) -> bool:
    """Return True if the first row names the columns: none of its cells is an image, but a cell of the next row is.

    Also if one of its cells is a usual header.
    """
    first = rows[0]
    if any(_is_image_cell(path, cell) for cell in first):
        return False
    if any(_plain(cell) in PATH_HEADS + LABEL_HEADS for cell in first):
        return True
    return len(rows) > 1 and any(_is_image_cell(path, cell) for row in rows[1:6] for cell in row)


def _is_image_cell(path: Path, cell: str) -> bool:
    return has_image_suffix(cell.replace("\\", "/")) or (bool(cell) and _is_file(path.parent / cell))


def _plain(head: str) -> str:
    return re.sub(r"[\s_-]", "", head.lower())


def _find(path: Path, heads: Sequence[str] | None, width: int, asked: str, setting: str) -> int:
    """Return the position of the column that the user asked for, by its header or its number from 1."""
    lower = [head.lower() for head in heads or ()]
    if asked.lower() in lower:
        return lower.index(asked.lower())
    if asked.isdecimal() and 1 <= int(asked) <= width:
        return int(asked) - 1
    known = f"its columns are {', '.join(heads)}" if heads else f"it has no header and {width} columns, 1 to {width}"
    raise ValueError(f"{setting}={asked}: not a column of {path}; {known}")


def _path_column(path: Path, heads: Sequence[str] | None, body: Sequence[Sequence[str]], asked: str) -> int:
    """Return the column of paths.

    Raises:
        ValueError: It can't be told which one it is.

    """
    width = len(body[0])
    if asked:
        return _find(path, heads, width, asked, "path_column")
    named = [number for number, head in enumerate(heads or ()) if _plain(head) in PATH_HEADS]
    if len(named) == 1:
        return named[0]
    sample = body[:_SAMPLED_ROWS]
    holds_paths = [
        number for number in named or range(width) if any(_is_image_cell(path, row[number]) for row in sample)
    ]
    if len(holds_paths) == 1:
        return holds_paths[0]
    if not holds_paths or heads is None:
        return 0
    _ask("path", path, heads)


def _ask(kind: str, path: Path, heads: Sequence[str]) -> NoReturn:
    raise ValueError(
        f"data={path}: several columns may hold the {kind}s ({', '.join(heads)}); say which one with --{kind}-column"
    )


def _label_column(
    path: Path, heads: Sequence[str] | None, width: int, path_number: int, asked: str
) -> tuple[int | None, str]:
    """Return the column of labels and a note on where they come from; (None, why) if there is none or it is unclear."""
    if asked:
        number = _find(path, heads, width, asked, "label_column")
        return number, f"labels: column {heads[number] if heads else number + 1}"
    others = [number for number in range(width) if number != path_number]
    if not others:
        return None, ""
    if heads is None:
        if len(others) == 1:
            return others[0], ""
        return None, f"{width} columns and no header: name the labels' with --label-column 2, for example"
    named = [number for number in others if _plain(heads[number]) in LABEL_HEADS]
    exact = [number for number in named if _plain(heads[number]) in LABEL_HEADS[:4]]
    if len(named) != 1 and len(exact) == 1:
        named = exact
    if len(named) == 1 or len(others) == 1:
        number = (named or others)[0]
        return number, f"labels: column {heads[number]}"
    found = "several columns may hold the labels" if named else "no column is headed label, class, category or target"
    listed = ", ".join(heads[number] for number in (named or others)[:8])
    return None, f"{found} ({listed}{', ...' if len(named or others) > 8 else ''}): name one with --label-column"
