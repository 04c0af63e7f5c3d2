"""What the commands share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mocokit.config.schema import Config


def take_name(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """The first argument, which names `what`, and the rest; its absence is an error that tells `usage`."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in {"-h", "--help"}:
            print(f"usage: mocokit {usage}")
            raise SystemExit(0)
        raise ValueError(f"{what} is missing; usage: mocokit {usage}")
    return arguments[0], arguments[1:]


def take_preset(arguments: list[str], command: str, flags: str) -> "tuple[str, Config, list[str]]":
    """A preset's name and its config, from the first argument, and the rest; `flags` end the usage."""
    from mocokit.config.presets import PRESETS, get_preset

    name, rest = take_name(arguments, "PRESET", f"{command} {{{','.join(PRESETS)}}} {flags}")
    return name, get_preset(name), rest
