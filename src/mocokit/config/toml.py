"""Change, save and read a config: dotted settings and TOML. A saved config gives the same run again."""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from typing import Any, cast, get_type_hints

import tomli_w

from mocokit.config.schema import Config, ignored_settings
from mocokit.methods import SPECS, find_method
from mocokit.methods.contract import MethodSettings

MAX_CONFIG_CHARS = 2**20
"""Length of a config in TOML; a real one has 2,000."""


def replace_settings(config: Config, settings: Mapping[str, object]) -> Config:
    """Return a copy with dotted settings replaced, for example {"optim.epochs": 50}.

    A new `method.name` brings that method's settings; those that both methods have keep their values.

    Raises:
        ValueError: Unknown setting (the message names the nearest one), or a value out of its range.

    """
    settings = _without_old_names(settings)
    bases: dict[str, Any] = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if "method.name" in settings:
        bases["method"] = switch_method(config.method, str(settings["method.name"]))
    sections: dict[str, dict[str, object]] = {}
    for setting, value in settings.items():
        section, _, name = setting.partition(".")
        if section not in bases or name not in _names(bases[section]):
            raise ValueError(_unknown(setting, value, bases))
        sections.setdefault(section, {})[name] = value
    changed = {
        section: dataclasses.replace(bases[section], **_typed(type(bases[section]), values))
        for section, values in sections.items()
    }
    return dataclasses.replace(config, **changed)


def switch_method(settings: MethodSettings, name: str) -> MethodSettings:
    """Return the settings of the method `name`; those that both methods have keep their values.

    A value that is only the old method's default gives way to the new one's: --method fast-moco brings its patches.

    Raises:
        ValueError: Unknown method.

    """
    kind = find_method(name).settings
    if isinstance(settings, kind):
        return settings
    own = {field.name: field.default for field in dataclasses.fields(settings)}
    shared = (own.keys() & {field.name for field in dataclasses.fields(kind)}) - {"name"}
    return kind(**{field: getattr(settings, field) for field in shared if getattr(settings, field) != own[field]})


def _names(section: object) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}  # type: ignore[arg-type]


def _without_old_names(settings: Mapping[str, object]) -> dict[str, object]:
    """Translate settings of older run folders: optim.cos became optim.schedule."""
    current = dict(settings)
    if "optim.cos" in current:
        current.setdefault("optim.schedule", "cosine" if current.pop("optim.cos") else "step")
    return current


def _unknown(setting: str, value: object, bases: Mapping[str, Any]) -> str:
    section, _, name = setting.partition(".")
    if section == "method" and any(name in spec.settings.__dataclass_fields__ for spec in SPECS.values()):
        return f"{setting}={value}: does nothing with method.name={bases['method'].name}; leave it out"
    known = sorted(f"{section}.{name}" for section, values in bases.items() for name in _names(values))
    near = difflib.get_close_matches(setting, known, n=1, cutoff=0.0)[0]
    return f"{setting}={value}: unknown setting; did you mean {near}?"


def _typed(section: type, values: dict[str, object]) -> dict[str, Any]:
    """Return values as the section's fields want them: lists become tuples, whole numbers floats."""
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
    """Return the sections of a config as plain values."""
    return cast(dict[str, dict[str, Any]], dataclasses.asdict(config))


def to_dotted(config: Config) -> dict[str, Any]:
    """Return every setting by its dotted name, such as `optim.lr`."""
    return {f"{section}.{name}": value for section, values in to_dict(config).items() for name, value in values.items()}


def to_toml(config: Config) -> str:
    """Return the config as TOML, without settings that are None or do nothing."""
    ignored = ignored_settings(config)
    sections: dict[str, dict[str, Any]] = {}
    for section, values in to_dict(config).items():
        sections[section] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and f"{section}.{name}" not in ignored
        }
    return tomli_w.dumps(sections)


def from_toml(text: str) -> Config:
    """Return the config that `to_toml` wrote. No module that the text names is ever imported.

    Raises:
        ValueError: Not TOML, an unknown setting or method, or a value out of its range.

    """
    if len(text) > MAX_CONFIG_CHARS:
        raise ValueError(f"config: {len(text)} characters, more than {MAX_CONFIG_CHARS}")
    try:
        sections = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("config: nested too deeply") from error
    settings: dict[str, object] = {}
    for section, values in sections.items():
        if isinstance(values, dict):
            settings |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            settings[section] = values
    try:
        return replace_settings(Config(), settings)
    except (TypeError, IndexError) as error:  # a list whose length or kind its setting does not want
        raise ValueError(f"config: a setting holds a value of the wrong kind ({error})") from error


def to_flags(settings: Mapping[str, object]) -> list[str]:
    """Return dotted settings as flags of `mocokit pretrain`."""
    flags: list[str] = []
    for setting, value in settings.items():
        section, name = setting.replace("_", "-").split(".")
        if isinstance(value, bool):
            flags.append(f"--{section}.{'' if value else 'no-'}{name}")
        else:
            flags += [f"--{section}.{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags
