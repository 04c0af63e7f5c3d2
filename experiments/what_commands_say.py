"""Run the commands on damaged, changed and overlapping data, and write what each says to docs/tables/messages.md.

python experiments/what_commands_say.py

The images are tiles of the embedded sample: five classes of 16, and 8 of each to test on.
"""

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from mocokit.cli import main as mocokit
from mocokit.engine.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from mocokit.run.demo import sample_path

OUT = Path(__file__).parent.parent / "docs" / "tables" / "messages.md"

CLASSES = ("brick", "cat", "coffee", "grass", "rocket")

FLAGS = [
    *("--arch", "resnet10_w16", "--image-size", "32", "--global-batch-size", "16", "--method.queue-size", "64"),
    *("--method.bn-groups", "2", "--epochs", "2", "--workers", "0", "--device", "cpu", "--precision", "fp32"),
]

HEAD = """# What the commands say

Written by `python experiments/what_commands_say.py`: lines of standard error and output, cut to those that tell of the
fault, with the exit code. TRAIN, TEST and RUN stand for the folders.

"""


def make_images(folder: Path) -> None:
    """Fill TRAIN and TEST."""
    with zipfile.ZipFile(sample_path("val")) as archive:
        for name in CLASSES:
            members = [member for member in archive.namelist() if member.startswith(name)]
            for part, chosen in (("TRAIN", members[:16]), ("TEST", members[16:24])):
                for member in chosen:
                    archive.extract(member, folder / part)


def damage(folder: Path, share: float) -> None:
    """Overwrite the first part of each class's files with text."""
    for name in CLASSES:
        files = sorted((folder / name).iterdir())
        for path in files[: round(share * len(files))]:
            path.write_text(f"{path} is not an image")


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and the text of a command, with short names for the folders."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = mocokit(list(arguments))
    return code, text.getvalue().replace(f"{folder}/", "").replace(str(folder), "")


def quote(code: int, text: str, wanted: tuple[str, ...]) -> str:
    """Return the lines that hold one of the `wanted` words, as a block, with the exit code."""
    lines = [line.strip() for line in text.splitlines() if any(word in line for word in wanted)]
    return "\n".join(["```", *dict.fromkeys(lines), f"(exit code {code})", "```", ""])


FAULTS = (
    *("can't be", "left out", "bad image", "mocokit:", "warning", "changed", "also training"),
    *("done:", "kNN", "knn", "pre-trained"),
)


def unreadable(folder: Path, say: Callable[[str], object]) -> None:
    """Say what pre-training and evaluation do with 0 to 40 % unreadable images."""
    run(folder, "pretrain", "moco-v2-small", "--data", str(folder / "TRAIN"), "--out", str(folder / "RUN"), *FLAGS)
    for share in (0.0, 0.1, 0.25, 0.4):
        data = Path(shutil.copytree(folder / "TRAIN", folder / f"TRAIN{share:.0%}"))
        test = Path(shutil.copytree(folder / "TEST", folder / f"TEST{share:.0%}"))
        damage(data, share)
        damage(test, share)
        say(f"## {share:.0%} unreadable\n")
        places = ["--data", str(data), "--test", str(test)]
        out = str(folder / f"RUN{share:.0%}")
        commands = {
            "pretrain": ["pretrain", "moco-v2-small", "--data", str(data), "--out", out, *FLAGS],
            "pretrain --data.max-bad-share 0.5": [
                *("pretrain", "moco-v2-small", "--data", str(data), "--data.max-bad-share", "0.5"),
                *("--out", out + "b", *FLAGS),
            ],
            "knn": ["knn", str(folder / "RUN"), *places],
            "knn --max-bad-share 0.5": ["knn", str(folder / "RUN"), *places, "--max-bad-share", "0.5"],
            "linear": ["linear", str(folder / "RUN"), *places],
        }
        for name, arguments in commands.items():
            say(f"`mocokit {name}`\n\n{quote(*run(folder, *arguments), FAULTS)}")


def changed(folder: Path, say: Callable[[str], object]) -> None:
    """Say what `resume` does on other images than the run began with."""
    say("## Data that changed before `resume`\n")

    def remove(data: Path) -> None:
        next(iter(sorted((data / "cat").iterdir()))).unlink()

    def rename(data: Path) -> None:
        path = next(iter(sorted((data / "brick").iterdir())))
        path.rename(path.with_name("aaa.jpg"))

    def replace(data: Path) -> None:
        first, second = sorted((data / "grass").iterdir())[:2]
        first.write_bytes(second.read_bytes())

    def relabel(data: Path) -> None:
        (data / "rocket").rename(data / "zebra")

    for change in (remove, rename, replace, relabel):
        data = Path(shutil.copytree(folder / "TRAIN", folder / f"data_{change.__name__}"))
        out = folder / f"RUN_{change.__name__}"
        run(folder, "pretrain", "moco-v2-small", "--data", str(data), "--out", str(out), *FLAGS)
        list_checkpoints(out / "checkpoints")[-1].unlink()
        change(data)
        say(f"{change.__name__}: `mocokit resume RUN`\n\n{quote(*run(folder, 'resume', str(out)), FAULTS)}")
    accepted = run(folder, "resume", str(folder / "RUN_replace"), "--accept-changes")
    say(f"replace: `mocokit resume RUN --accept-changes`\n\n{quote(*accepted, FAULTS)}")


def overlapping(folder: Path, say: Callable[[str], object]) -> None:
    """Say what evaluation does if test images are training images."""
    say("## Test images among the training images\n")
    mixed = Path(shutil.copytree(folder / "TEST", folder / "MIXED"))
    for name in CLASSES:
        for path in sorted((folder / "TRAIN" / name).iterdir())[:8]:
            shutil.copy(path, mixed / name / f"copy_{path.name}")
    for test in (folder / "TRAIN", mixed):
        places = ["--data", str(folder / "TRAIN"), "--test", str(test)]
        said = run(folder, "knn", str(folder / "RUN"), *places)
        say(f"`mocokit knn RUN --data TRAIN --test {test.name}`\n\n{quote(*said, FAULTS)}")


def older(folder: Path, say: Callable[[str], object]) -> None:
    """Say what the commands do with a run of an older numerics version."""
    say("## A run of an older `numerics` version\n")
    out = folder / "RUN"
    newest = list_checkpoints(out / "checkpoints")[-1]
    state = load_checkpoint(newest)
    del state["numerics"]
    torch.manual_seed(0)
    save_checkpoint(newest.parent, state, step=state["step"], keep_last=9)
    commands = {
        "resume RUN": ["resume", str(out)],
        "resume RUN --accept-changes": ["resume", str(out), "--accept-changes"],
        "knn RUN": ["knn", str(out), "--data", str(folder / "TRAIN")],
        "export RUN --to safetensors": ["export", str(out), "--to", "safetensors", str(folder / "a.safetensors")],
    }
    for name, arguments in commands.items():
        say(f"`mocokit {name}`\n\n{quote(*run(folder, *arguments), FAULTS)}")


def main() -> None:
    """Write the page."""
    parts: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        make_images(folder)
        for situation in (unreadable, changed, overlapping, older):
            situation(folder, parts.append)
    OUT.write_text(HEAD + "\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
