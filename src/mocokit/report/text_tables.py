"""Tables of text for a terminal and in Markdown: the first column is aligned left, numbers right."""

from collections.abc import Collection, Sequence


def text_columns(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return the table for a terminal, padded with spaces, without a final newline."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    return "\n".join(
        "   ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [header, ["-" * width for width in widths], *lines]
    )


def markdown_columns(header: Sequence[str], lines: Sequence[Sequence[str]], *, words: Collection[str] = ()) -> str:
    """Return the table in Markdown, with a final newline. Columns named in `words` are aligned left like the first."""
    rule = ["---" if column == 0 or name in words else "---:" for column, name in enumerate(header)]
    return "".join("| " + " | ".join(line) + " |\n" for line in [header, rule, *lines])
