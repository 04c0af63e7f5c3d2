"""What the commands' parsers share."""


def take_name(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The first argument, which names `what`, and the rest; its absence is an error that tells `usage`."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in {"-h", "--help"}:
            print(f"usage: mocokit {usage}")
            raise SystemExit(0)
        raise ValueError(f"{what} is missing; usage: mocokit {usage}")
    return arguments[0], arguments[1:]
