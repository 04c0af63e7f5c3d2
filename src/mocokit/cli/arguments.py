"""Read the arguments that commands share: a name, a preset, and the method whose settings become flags."""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mocokit.config.schema import Config

SHORT_FLAGS = {
    "--cos": ["--optim.schedule", "cosine"],
    "--no-cos": ["--optim.schedule", "step"],
    "--optim.cos": ["--optim.schedule", "cosine"],
    "--optim.no-cos": ["--optim.schedule", "step"],
}
"""Flags that stand for others: the paper's column "cos"."""


def tell(line: str) -> None:
    """Print a line about the images on standard error, on the main rank."""
    from mocokit import distributed

    if distributed.started_as_main():
        print(line, file=sys.stderr)


def with_label_column(data: str, test: str, label_column: str, path_column: str) -> tuple[str, str | None]:
    """Return the locations of `data` and `test` with the columns to read; None for an empty `test`.

    The columns count for `test` too if it is a list.
    """
    from mocokit.data.sources.open_source import with_columns

    data = with_columns(data, label_column=label_column, path_column=path_column)
    if test.lower().endswith((".csv", ".tsv")):
        test = with_columns(test, label_column=label_column, path_column=path_column)
    return data, test or None


def take_name(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """Return the first argument, which names `what`, and the rest.

    Raises:
        ValueError: It is missing; the message tells `usage`.

    """
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in {"-h", "--help"}:
            print(f"usage: mocokit {usage}")
            raise SystemExit(0)
        raise ValueError(f"{what} is missing; usage: mocokit {usage}")
    return arguments[0], arguments[1:]


def take_option(arguments: list[str], *names: str) -> tuple[str | None, list[str]]:
    """Return the value of an option (`--name VALUE` or `--name=VALUE`) and the arguments without it."""
    value = None
    rest = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, after = argument.partition("=")
        if name not in names:
            rest.append(argument)
        elif equals:
            value = after
        else:
            value = next(remaining, None)
            if value is None:
                raise ValueError(f"{name}: needs a value")
    return value, rest


def take_preset(arguments: list[str], command: str, flags: str) -> "tuple[str, Config, list[str]]":
    """Return the preset's name, its config with the method that is asked for, and the flags that are left.

    A method has settings of its own, so `--method` and `--method-from` must be read before all other flags.
    """
    from mocokit.config.presets import PRESETS, get_preset
    from mocokit.config.toml import replace_settings

    name, rest = take_name(arguments, "PRESET", f"{command} {{{','.join(PRESETS)}}} {flags}")
    config = get_preset(name)
    method_from, rest = take_option(rest, "--method-from")
    method, rest = take_option(rest, "--method", "--method.name")
    if method_from is not None:
        method = load_method(method_from)
    if method is not None:
        config = replace_settings(config, {"method.name": method})
    return name, config, [word for argument in rest for word in SHORT_FLAGS.get(argument, [argument])]


def load_method(place: str) -> str:
    """Import the method at PACKAGE.MODULE:SPEC, also from the current folder; return its name.

    Raises:
        ValueError: There is none.

    """
    from mocokit.methods import add_method

    module, colon, name = place.partition(":")
    if not colon:
        raise ValueError(f"--method-from={place}: write PACKAGE.MODULE:NAME, for example my_method:SPEC")
    if "" not in sys.path:
        sys.path.insert(0, "")  # `python -m mocokit` has the current folder there, the `mocokit` script has not
    try:
        return add_method(getattr(importlib.import_module(module), name)).name
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--method-from={place}: {error}") from error
