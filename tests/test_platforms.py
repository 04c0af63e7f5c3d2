"""Names that other platforms lack, removed here: no macOS or Windows machine was at hand.

This shows that nothing of ours needs them to be imported, to train and to evaluate. It can't show how torch, files and
processes behave there.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mocokit.config.schema import Config
from tests.run_process import finish, flags_of, start

WITHOUT = """
import importlib, json, os, pkgutil, signal, sys

modules, names, arguments = json.loads(sys.argv[1])
for name in [name for name in sys.modules if name.partition(".")[0] == "mocokit"]:
    del sys.modules[name]  # imported before this process was forked

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in modules:  # libraries that hold these modules already keep them
    sys.modules.pop(name, None)
for name in names:
    owner, attribute = name.split(".")
    delattr(sys.modules[owner], attribute)
    signal.Signals._member_map_.pop(attribute, None)

import mocokit
for module in pkgutil.walk_packages(mocokit.__path__, "mocokit."):
    if not module.name.endswith(("__main__", "preloaded", "detectron2_train_net")):  # the last is copied by an export
        importlib.import_module(module.name)
from mocokit.cli import main
for command in arguments:
    code = main(command)
    if code:
        sys.exit(code)
"""

MACOS = (["spwd"], ["os.sched_getaffinity", "signal.sigtimedwait", "signal.sigwaitinfo"])
WINDOWS = (
    ["fcntl", "resource", "pwd", "grp", "termios"],
    [
        *("os.sched_getaffinity", "os.getuid", "os.EX_TEMPFAIL", "os.mkfifo", "os.chown", "os.uname"),
        *("signal.SIGKILL", "signal.SIGUSR1", "signal.SIGUSR2", "signal.SIGHUP", "signal.SIGBUS", "signal.SIGCHLD"),
        *("signal.pthread_sigmask", "signal.sigtimedwait", "signal.sigwaitinfo", "signal.SIGALRM"),
    ],
)


@pytest.mark.parametrize(("modules", "names"), [MACOS, WINDOWS], ids=["macos", "windows"])
def test_everything_imports_trains_and_evaluates_without_names_that_a_platform_lacks(
    modules: list[str], names: list[str], tiny: Callable[..., Config], photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "without.py").write_text(WITHOUT)
    run = str(tmp_path / "run")
    commands = [
        ["pretrain", "moco-v2-small", *flags_of(tiny(**{"optim.epochs": 1})), "--out", run],
        ["resume", run],
        ["knn", run, "--data", str(photos)],
    ]
    arguments = json.dumps([modules, names, commands])
    code, output = finish(start([arguments], program=(str(tmp_path / "without.py"),)))
    assert code == 0, output[-3000:]
    assert "done: 5 steps" in output
