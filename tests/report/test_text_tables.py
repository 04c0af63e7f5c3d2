from mocokit.report.text_tables import markdown_columns, text_columns

HEADER = ("fault", "times", "said")
LINES = [("kill", "20", "resumed"), ("hung rank", "1", "who it is")]


def test_markdown_has_names_to_the_left_and_numbers_to_the_right() -> None:
    assert markdown_columns(HEADER, LINES, words=("said",)) == (
        "| fault | times | said |\n| --- | ---: | --- |\n| kill | 20 | resumed |\n| hung rank | 1 | who it is |\n"
    )


def test_a_terminals_columns_line_up() -> None:
    assert text_columns(HEADER, LINES).splitlines() == [
        "fault       times        said",
        "---------   -----   ---------",
        "kill           20     resumed",
        "hung rank       1   who it is",
    ]
