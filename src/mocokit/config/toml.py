"""Changing, saving and reading a config: dotted settings and TOML; a saved config gives the same run again."""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from typing import Any, cast, get_type_hints

import tomli_w

from mocokit.config.schema import Config, ignored_settings

MAX_CONFIG_CHARS = 2**20
"""Of a config in TOML; a real one has 2,000."""


def replace_settings(config: Config, settings: Mapping[str, object]) -> Config:
    """A copy with dotted settings replaced, for example {"optim.epochs": 50}.

    Raises:
        ValueError: Unknown setting; the message names the nearest one.

    """
    sections: dict[str, dict[str, object]] = {}
    known = {f"{section}.{name}" for section, values in to_dict(config).items() for name in values}
    for setting, value in settings.items():
        if setting not in known:
            near = difflib.get_close_matches(setting, sorted(known), n=1, cutoff=0.0)[0]
            raise ValueError(f"{setting}={value}: unknown setting; did you mean {near}?")
        section, name = setting.split(".")
        sections.setdefault(section, {})[name] = value
    changed = {
        section: dataclasses.replace(getattr(config, section), **_typed(type(getattr(config, section)), values))
        for section, values in sections.items()
    }
    return dataclasses.replace(config, **changed)


def _typed(section: type, values: dict[str, object]) -> dict[str, Any]:
    """Values as the section's fields want them (lists become tuples, whole numbers floats), or an error."""
    hints = get_type_hints(section)
    typed = {}
    for name, value in values.items():
        wanted = str(hints[name])
        typed[name] = _widen(value, wanted)
        kind = "None" if value is None else type(typed[name]).__name__
        if kind not in wanted and not (kind == "str" and "Literal" in wanted and repr(value) in wanted):
            raise ValueError(f"{section.__name__}.{name}={value!r}: not a value for this setting ({wanted})")
    return typed


def _widen(value: object, wanted: str) -> object:
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and "float" in wanted:
        return float(value)
    return value


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Sections of plain values."""
    return cast(dict[str, dict[str, Any]], dataclasses.asdict(config))


def to_toml(config: Config) -> str:
    """The config as TOML; a setting that is None or does nothing is left out."""
    ignored = ignored_settings(config)
    sections = {
        section: {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and f"{section}.{name}" not in ignored
        }
        for section, values in to_dict(config).items()
    }
    return tomli_w.dumps(sections)


def from_toml(text: str) -> Config:
    """The config that `to_toml` wrote.

    Raises:
        ValueError: Not TOML, an unknown setting, or a value out of its range.

    """
    if len(text) > MAX_CONFIG_CHARS:
        raise ValueError(f"config: {len(text)} characters, more than {MAX_CONFIG_CHARS}")
    try:
        sections = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("config: nested too deeply") from error
    settings = {
        f"{section}.{name}": value
        for section, values in sections.items()
        for name, value in (values.items() if isinstance(values, dict) else {section: values}.items())
    }
    try:
        return replace_settings(Config(), settings)
    except (TypeError, IndexError) as error:  # a list of other length or kind than its setting wants
        raise ValueError(f"config: a setting holds what it can't ({error})") from error


def to_flags(settings: Mapping[str, object]) -> list[str]:
    """Dotted settings as flags of `mocokit pretrain`."""
    flags: list[str] = []
    for setting, value in settings.items():
        section, name = setting.replace("_", "-").split(".")
        if isinstance(value, bool):
            flags.append(f"--{section}.{'' if value else 'no-'}{name}")
        else:
            flags += [f"--{section}.{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags
