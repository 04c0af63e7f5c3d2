"""Decide on a run folder that exists: an error, the run goes on, or a new run takes its place."""

from typing import Literal, TypeAlias, get_args

from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, to_dotted, to_toml
from mocokit.engine.run_folder import RunFolder
from mocokit.settings import require

Exist: TypeAlias = Literal["error", "resume", "overwrite"]
"""Treatment of a run folder that exists."""

MOST_NAMED = 8
"""Settings that a message names."""


def goes_on(folder: RunFolder, config: Config, exist: Exist) -> bool:
    """Return True if the run in the folder goes on, False if a new one starts there. Changes nothing.

    Args:
        folder: The folder that `pretrain` is to fill.
        config: The settings that are asked for.
        exist: error: a run must not be there yet; resume: it goes on if its settings are `config`; overwrite: a new one
            takes its place.

    Raises:
        ValueError: No run may start or go on there; the message says what to do.

    """
    require(exist in get_args(Exist), "exist", exist, f"choose one of {', '.join(get_args(Exist))}")
    if exist == "error" or not folder.has_run:
        folder.require_free()
        return False
    folder.require_unused()
    if exist == "resume":
        _require_same_settings(folder, config)
    return exist == "resume"


def _require_same_settings(folder: RunFolder, config: Config) -> None:
    """Raise ValueError, which names the settings that differ, unless the run in the folder has this config."""
    saved = to_dotted(from_toml(folder.read_config()))
    asked = to_dotted(from_toml(to_toml(config)))  # as it would be read again: without what TOML can't tell apart
    names = [name for name in {**saved, **asked} if saved.get(name) != asked.get(name)]
    shown = [f"{name}={_shown(asked.get(name))} (its own: {_shown(saved.get(name))})" for name in names[:MOST_NAMED]]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    require(
        not names,
        "out",
        folder.path,
        f"the run in it has other settings than those asked for: {', '.join(shown)}{more}; go on with its own by "
        f"`mocokit resume {folder.path}`, choose another folder, or begin anew by `mocokit pretrain ... --exist "
        "overwrite`",
    )


def _shown(value: object) -> str:
    """Return a setting's value for a message."""
    return "none" if value is None or value == "" else str(value)
