"""Read another project's checkpoint file without running code from it."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from mocokit.data.sources.limits import is_pointer_file
from mocokit.engine.checkpoint import LFS_ADVICE, UNREADABLE
from mocokit.foreign.pickled import DangerousPickleError, Inert
from mocokit.foreign.torch_file import read_torch_file
from mocokit.settings import require


def read_checkpoint(path: Path) -> dict[Any, Any]:
    """Return the file's dictionary, with tensors on the CPU, and a record for each object of a class (`Inert`).

    Raises:
        ValueError: The file is missing, a git-lfs pointer, cut, damaged, no dictionary, or names something that runs
            code.

    """
    require(not path.is_dir(), "checkpoint", path, "a folder; give the file of weights in it")
    require(path.is_file(), "checkpoint", path, "no such file")
    require(not is_pointer_file(path), "checkpoint", path, LFS_ADVICE)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except DangerousPickleError as error:
        raise ValueError(
            f"checkpoint={path}: refused: loading it would run {error}, and mocokit runs no code from a file; "
            "in the program that wrote it, save the state dict alone: "
            "torch.save({'state_dict': model.state_dict()}, 'plain.pth')"
        ) from error
    except (*UNREADABLE, SafetensorError) as error:
        first = str(error).splitlines()[0].split(". ")[0] if str(error) else "it ends too early"
        raise ValueError(f"checkpoint={path}: cut, damaged, or not a checkpoint ({first[:300]})") from error
    if isinstance(content, Inert):  # a whole module, or an unknown kind of dictionary
        return {"model": content}
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint={path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content
