"""The places of a run's images: absolute ones in its config, and new ones after the images moved."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.data.sources.open_source import absolute_location
from mocokit.engine.backbone_file import OWN
from mocokit.engine.run_folder import RunFolder
from mocokit.run.build import Given
from mocokit.run.build_images import find_source, find_test_source
from mocokit.settings import require

FLAGS = {"data.source": "--data", "data.test": "--test"}
"""Settings that hold places, and the flags of `mocokit resume` that name new ones."""


def locate_data(config: Config) -> Config:
    """Return the config with absolute paths of its images, so that `resume` works from any folder."""
    return with_places(config, {"data.source": config.data.source, "data.test": config.data.test})


def with_places(config: Config, places: dict[str, str]) -> Config:
    """Return the config with other places of its images, as absolute paths; an empty one stays empty.

    Raises:
        ValueError: A path is not UTF-8, which config.toml can't hold.

    """
    absolute = {name: absolute_location(place) if place else "" for name, place in places.items()}
    for name, place in absolute.items():
        shown = place.encode("utf-8", "backslashreplace").decode()
        require(shown == place, name, shown, "not UTF-8, which config.toml can't hold; rename it, or link to it")
    return replace_settings(config, absolute)


def open_again(config: Config, folder: RunFolder, given: Given) -> Given:
    """Return `given` with the images of a run that goes on.

    Raises:
        ValueError: They can't be opened. If the run's own places do not hold any more, the message says how to name new
            ones.

    """
    saved = from_toml(folder.read_config()).data
    with _told_how_to_name_it(folder, "data.source", is_new=config.data.source != saved.source):
        source = find_source(config, given.source)
    with _told_how_to_name_it(folder, "data.test", is_new=config.data.test != saved.test):
        test_source = find_test_source(config, source)
    return replace(given, source=source, test_source=test_source)


@contextlib.contextmanager
def _told_how_to_name_it(folder: RunFolder, setting: str, *, is_new: bool) -> Iterator[None]:
    """Context manager that adds to an error that the images may have moved, and how to go on."""
    try:
        yield
    except (ValueError, OSError) as error:
        if is_new or OWN in str(error):
            raise
        raise ValueError(
            f"{error}; if the run's images moved, say where they are now: "
            f"mocokit resume {folder.path} {FLAGS[setting]} PLACE"
        ) from error


def record_places(config: Config, folder: RunFolder) -> list[str]:
    """Write new places of a run's images into its config.toml; return a line about each. For the main rank."""
    saved = from_toml(folder.read_config()).data
    pairs = {"data.source": (saved.source, config.data.source), "data.test": (saved.test, config.data.test)}
    moved = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if moved:
        folder.replace_config(to_toml(config))
    return [f"{name}: now {now or 'none'}, until now {before or 'none'}" for name, (before, now) in moved.items()]
