"""A method from outside the package: the worked example, a new setting, and the words when it is missing."""

import dataclasses
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from examples.own_method import SPEC, Queueless, QueuelessSettings, build

import mocokit
from mocokit.cli import main
from mocokit.methods import SPECS
from mocokit.methods.contract import MethodInputs
from tests.conftest import TINY
from tests.run_process import final_state, same

OWN = {name: value for name, value in TINY.items() if name != "method.queue_size"}
FROM = ["--method-from", "examples.own_method:SPEC"]


@pytest.fixture(autouse=True)
def _forget_methods(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = dict(SPECS)
    yield
    SPECS.clear()
    SPECS.update(known)


def test_an_own_method_trains_resumes_bit_equal_and_exports(photos: Path, tmp_path: Path) -> None:
    whole = mocokit.pretrain("moco-v2-small", data=photos, out=tmp_path / "whole", settings=OWN, method=SPEC)
    assert whole.metrics["loss"] < 3.0  # log 16 = 2.77 by chance
    assert "key_momentum = 0.99" in (tmp_path / "whole" / "config.toml").read_text()
    before = final_state(tmp_path / "whole")
    sorted((tmp_path / "whole" / "checkpoints").glob("*.pt"))[-1].unlink()  # as if killed in the last epoch
    SPECS.pop("queueless")
    with pytest.raises(ValueError, match=r"method.name='queueless': unknown; .*--method-from PACKAGE.MODULE:SPEC"):
        mocokit.resume(tmp_path / "whole")
    assert mocokit.resume(tmp_path / "whole", method=SPEC).step == whole.total_steps
    assert same(final_state(tmp_path / "whole")["method"], before["method"])
    SPECS.pop("queueless")  # exporting needs the backbone alone
    mocokit.export_run(tmp_path / "whole", to="safetensors", out=tmp_path / "net.safetensors", data=photos)


def test_the_command_line_has_its_settings_as_flags_and_plans_it(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--arch", "resnet10_w16", "--model.stem", "imagenet", "--image-size", "32", "--epochs", "1"]
    flags = [*FROM, *small, "--global-batch-size", "16", "--bn-groups", "4", "--method.key-momentum", "0.5"]
    run = tmp_path / "run"
    assert main(["pretrain", "moco-v2-small", *flags, "--data", str(photos), "--out", str(run), "--device", "cpu"]) == 0
    assert tomllib.loads((run / "config.toml").read_text())["method"]["key_momentum"] == 0.5
    assert main(["resume", str(run), *FROM]) == 0
    assert main(["plan", "moco-v2-small", *flags, "--devices", "1xH100"]) == 0
    assert "queue or bank" in capsys.readouterr().out
    assert main(["pretrain", "moco-v2-small", "--method-from", "nowhere:SPEC", "--out", str(tmp_path / "x")]) == 1
    assert "--method-from=nowhere:SPEC: No module named 'nowhere'" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalvedSettings(QueuelessSettings):
    """A setting is added in the schema (here), in build (below) and in the code that uses it."""

    name: Literal["halved"] = "halved"  # type: ignore[assignment]
    shrink: float = 0.5
    """Factor of the temperature."""


def build_halved(settings: HalvedSettings, inputs: MethodInputs) -> Queueless:
    method = build(settings, inputs)
    method.temperature *= settings.shrink
    return method


def test_a_setting_is_added_in_three_places(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Flag, TOML, error for a wrong name and the run itself follow."""
    spec = dataclasses.replace(SPEC, settings=HalvedSettings, build=build_halved)
    settings = {**OWN, "method.shrink": 0.25, "data.source": str(tiny().data.source)}
    run = mocokit.pretrain("moco-v2-small", out=tmp_path / "run", settings=settings, method=spec)
    assert tomllib.loads((run.folder / "config.toml").read_text())["method"]["shrink"] == 0.25
    with pytest.raises(ValueError, match=r"method.shrinks=1: unknown setting; did you mean method.shrink\?"):
        mocokit.pretrain("moco-v2-small", out=tmp_path / "x", settings={"method.shrinks": 1}, method=spec)
