"""Flags that are read before all others: the method, whose settings become flags, and the paper's column "cos"."""

import pytest
import tyro

from mocokit.cli.arguments import take_option, take_preset
from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, to_toml


def config_of(*arguments: str) -> Config:
    """Return the config that `mocokit pretrain PRESET ...` would use."""
    _, preset, rest = take_preset(list(arguments), "pretrain", "")
    return tyro.cli(Config, args=rest, default=preset)


@pytest.mark.parametrize(
    ("flags", "schedule"),
    [
        (["--no-cos"], "step"),
        (["--cos"], "cosine"),
        (["--optim.no-cos"], "step"),
        (["--schedule", "constant"], "constant"),
        ([], "cosine"),
    ],
)
def test_cos_and_no_cos_are_short_for_schedules(flags: list[str], schedule: str) -> None:
    assert config_of("moco-v2", *flags).optim.schedule == schedule


@pytest.mark.parametrize(("line", "schedule"), [("cos = false", "step"), ("cos = true", "cosine")])
def test_the_config_of_an_older_run_is_read(line: str, schedule: str) -> None:
    text = to_toml(config_of("moco-v2")).replace('schedule = "cosine"', line)
    assert line in text
    assert from_toml(text).optim.schedule == schedule


@pytest.mark.parametrize("flags", [["--method", "simclr"], ["--method=simclr"], ["--method.name", "simclr"]])
def test_the_method_decides_which_flags_there_are(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of("moco-v2", *flags, "--temperature", "0.5", "--bn-groups", "1")
    assert (config.method.name, config.method.temperature) == ("simclr", 0.5)
    with pytest.raises(SystemExit):
        config_of("moco-v2", *flags, "--method.queue-size", "64")
    assert "--method.queue-size" in capsys.readouterr().err


def test_settings_that_both_methods_have_keep_their_values() -> None:
    config = config_of("moco-v2-small", "--method", "moco-v3")  # T 0.1, m 0.99, 8 groups
    assert config.method.temperature == 0.1
    assert getattr(config.method, "key_momentum", None) == 0.99
    assert config.method.bn_groups == 8


def test_an_option_without_a_value_says_so() -> None:
    assert take_option(["a", "--x=1", "b"], "--x") == ("1", ["a", "b"])
    assert take_option(["--x", "1", "--x", "2"], "--x") == ("2", [])
    with pytest.raises(ValueError, match="--method-from: needs a value"):
        take_option(["--method-from"], "--method-from")
