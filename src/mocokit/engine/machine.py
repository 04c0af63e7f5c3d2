"""Description of the hardware, the versions and the commit that a number was measured with."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision

from mocokit.data.loading.loader import count_cores

PACKAGE = Path(__file__).parent.parent


def describe_machine() -> dict[str, Any]:
    """Return the description; it names no path, user or host, so that it can be published."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": count_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "platform": platform.system(),
        "python": platform.python_version(),
        "mocokit": importlib.metadata.version("mocokit"),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """Return the short hash of the package's git commit, with a + if the package has changes; "" outside a checkout."""

    def git(*command: str) -> str:
        asked = subprocess.run(["git", *command], cwd=PACKAGE, capture_output=True, text=True, check=False)
        return asked.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):  # an installed package, which may lie inside another repository
            return ""
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except FileNotFoundError:  # no git
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
