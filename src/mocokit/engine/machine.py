"""What a number was measured on: hardware, versions and the commit of the code."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import torchvision

PACKAGE = Path(__file__).parent.parent


def describe_machine() -> dict[str, Any]:
    """Names no place, user or command, so that it can be published."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "platform": platform.system(),
        "python": platform.python_version(),
        "mocokit": importlib.metadata.version("mocokit"),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """Short hash of the working tree that the package lies in, with a + when the package was changed; else empty."""

    def git(*command: str) -> str:
        asked = subprocess.run(["git", *command], cwd=PACKAGE, capture_output=True, text=True, check=False)
        return asked.stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):  # installed, perhaps below someone else's repository
            return ""
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except FileNotFoundError:  # no git
        return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    """Of this process."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
