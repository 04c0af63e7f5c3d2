"""The files of a run: config as asked, what was worked out from it, environment, log, checkpoints, backbone."""

import importlib.metadata
import logging
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import tomli_w
import torch
import torchvision

from mocokit import distributed
from mocokit.config import Config
from mocokit.settings import from_toml, to_toml

LOGGER = logging.getLogger("mocokit")


class RunFolder:
    """Paths within a run folder.

    Args:
        path: The folder.

    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.config = self.path / "config.toml"
        self.resolved = self.path / "resolved.toml"
        self.environment = self.path / "environment.toml"
        self.log = self.path / "log.txt"
        self.checkpoints = self.path / "checkpoints"
        self.backbone = self.path / "backbone.safetensors"
        self.view_sheet = self.path / "views.png"

    def require_free(self) -> None:
        """Raise ValueError when something is there already; the message names `mocokit resume`."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            remedy = f"continue it with `mocokit resume {self.path}` or" if self.config.exists() else "please"
            raise ValueError(f"out={self.path}: exists and is not empty; {remedy} choose another folder")

    def create(self, config: Config) -> None:
        """Make the folder and write the config and the environment into it."""
        self.checkpoints.mkdir(parents=True)
        self.config.write_text(to_toml(config), encoding="utf-8")
        self.environment.write_text(tomli_w.dumps(describe_environment()), encoding="utf-8")

    def load_config(self) -> Config:
        """The config as it was asked for.

        Raises:
            ValueError: Not a run folder.

        """
        if not self.config.is_file():
            raise ValueError(f"run={self.path}: not a run folder (it has no config.toml)")
        return from_toml(self.config.read_text(encoding="utf-8"))

    def record_resolved(self, values: Mapping[str, object]) -> None:
        """Write down numbers that were derived from the config, the data and the machine."""
        self.resolved.write_text(tomli_w.dumps(dict(values)), encoding="utf-8")

    def start_log(self) -> None:
        """Let the package's log messages go to `log.txt` too, on the main rank."""
        if distributed.is_main():
            handler = logging.FileHandler(self.log, encoding="utf-8")
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            LOGGER.addHandler(handler)
            LOGGER.setLevel(logging.INFO)

    def stop_log(self) -> None:
        """Close `log.txt`."""
        for handler in [handler for handler in LOGGER.handlers if isinstance(handler, logging.FileHandler)]:
            LOGGER.removeHandler(handler)
            handler.close()


def describe_environment() -> dict[str, object]:
    """Versions and hardware, for the record."""
    return {
        "mocokit": importlib.metadata.version("mocokit"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "platform": platform.platform(),
        "processor_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "world_size": distributed.world_size(),
        "command": sys.argv,
    }
