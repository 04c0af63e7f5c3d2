"""Read the arguments that commands share: a name, a preset, and the method whose settings become flags."""

import contextlib
import difflib
import importlib
import inspect
import io
import re
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mocokit.config.schema import Config

T = TypeVar("T")

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


RUN_NOTE = "RUN is a run folder, or a backbone file such as runs/a/backbone.safetensors."

DEFAULT_PRESET = "moco-v2"
"""Preset whose settings `mocokit COMMAND --help` shows as defaults, before one is named."""


@dataclass(frozen=True, kw_only=True)
class OwnMethod:
    """Flags that are read before all others; they stand here to be listed by --help."""

    method_from: str = ""
    """A method of your own, as PACKAGE.MODULE:SPEC, for example my_method:SPEC."""


def parse(
    target: Callable[..., T],
    arguments: list[str],
    *,
    prog: str,
    example: str,
    description: str = "",
    note: str = "",
    default: T | None = None,
) -> T:
    """Call `target`, or build it if it is a dataclass, with the values that tyro reads from the flags.

    Args:
        target: Its parameters are the flags.
        arguments: The flags.
        prog: Start of the command line, for messages.
        example: A command line that does something useful, for --help.
        description: Text for --help; empty: the first paragraph of the target's docstring.
        note: A further sentence for --help.
        default: Values of the flags that are not given.

    Raises:
        SystemExit: With 0 after --help, with 2 for flags that are missing, unknown or wrong; the message is printed.

    """
    import tyro

    text = description or (inspect.getdoc(target) or "").partition("\n\n")[0]
    page = "\n\n".join(part for part in (text, note, f"example:\n  {example}") if part)
    settings: dict[str, Any] = {"prog": prog, "description": page}
    if default is not None:
        settings["default"] = default
    try:
        result: T = tyro.cli(target, args=arguments, **settings)
        return result
    except SystemExit as ended:
        if ended.code == 2:
            known = _flags_in(lambda: tyro.cli(target, args=["--help"], **settings))
            for flag in unknown_flags(arguments, known):
                print(f"mocokit: {flag}: unknown flag; {nearest(flag, known, prog)}", file=sys.stderr)
        raise


def _flags_in(print_help: Callable[[], object]) -> set[str]:
    """Return the flags that a help page lists."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        print_help()
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.getvalue()))


def unknown_flags(arguments: list[str], known: Collection[str]) -> list[str]:
    """Return the flags among the arguments that are not known."""
    given = [argument.partition("=")[0] for argument in arguments if re.match(r"--?[A-Za-z]", argument)]
    return [flag for flag in given if flag.replace("_", "-") not in {*known, "-h", "--help"}]


def nearest(flag: str, known: Collection[str], prog: str) -> str:
    """Return a sentence that names the known flag nearest to an unknown one, or tells where all are listed."""
    near = difflib.get_close_matches(flag.replace("_", "-"), sorted(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"`{prog} --help` lists all"


def asks_for_help(arguments: list[str]) -> bool:
    """Return True if -h or --help is among the arguments."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def take_name(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """Return the first argument, which names `what`, and the rest; `what` itself if there is --help in its place.

    Raises:
        ValueError: It is missing; the message tells `usage`.

    """
    if not arguments:
        raise ValueError(f"{what} is missing; usage: mocokit {usage}")
    if arguments[0].startswith("-"):
        if asks_for_help(arguments):
            return what, ["--help"]
        raise ValueError(f"{what} is missing; it comes before {arguments[0]}; usage: mocokit {usage}")
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

    A method has settings of its own, so `--method` and `--method-from` must be read before all other flags. If --help
    stands in place of the preset, the name is "PRESET" and the config that of DEFAULT_PRESET.
    """
    from mocokit.config.presets import PRESETS, get_preset
    from mocokit.config.toml import replace_settings

    name, rest = take_name(arguments, "PRESET", f"{command} {{{','.join(PRESETS)}}} {flags}")
    config = get_preset(DEFAULT_PRESET if name == "PRESET" else name)
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
