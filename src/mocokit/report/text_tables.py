"""Cells of text as columns of a terminal, and as a Markdown table: names to the left, numbers to the right."""

from collections.abc import Collection, Sequence


def text_columns(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """For a terminal."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    return "\n".join(
        "   ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *lines]
    )


def markdown_columns(header: Sequence[str], lines: Sequence[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """In Markdown, ending in a newline; `words` names the columns that are to the left like the first."""
    rule = ["---" if column == 0 or name in words else "---:" for column, name in enumerate(header)]
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, rule, *lines])
