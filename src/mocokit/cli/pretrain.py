"""The commands `mocokit pretrain`, `resume`, `presets` and `demo`."""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from mocokit.cli.arguments import (
    DEFAULT_PRESET,
    OwnMethod,
    asks_for_help,
    load_method,
    parse,
    take_name,
    take_option,
    take_preset,
)
from mocokit.cli.knn import print_knn

if TYPE_CHECKING:
    from mocokit.run.pretrain import RunResult

RESUME_HELP = """\
usage: mocokit resume RUN [--data NEW] [--test NEW] [--accept-changes] [--method-from PACKAGE.MODULE:SPEC]

Continue a run that was stopped or killed from its newest readable checkpoint, with its own settings.

  RUN                 folder of the run
  --data NEW          new place of its images, if they moved; they must be the same images
  --test NEW          new place of the images of data.test, if they moved
  --accept-changes    continue although the images changed, or an older mocokit with other numbers began the run
  --method-from STR   the method of your own that the run was started with, for example my_method:SPEC
  -h, --help          show this page

example:
  mocokit resume runs/a --data /new_disk/photos
"""

PRESETS_HELP = """\
usage: mocokit presets [NAME]

List the presets with a line on each, or print all settings of one as TOML.

  NAME         preset to print; none: list all
  -h, --help   show this page

example:
  mocokit presets moco-v2
"""


def pretrain_command(arguments: list[str]) -> int:
    """Pre-train a backbone into a new run folder."""
    import tyro

    from mocokit.config.presets import SUMMARIES
    from mocokit.config.schema import Config
    from mocokit.methods import SPECS

    flags = "--data D --out RUN [--epochs N ...]   (--help after a preset: all flags)"
    name, preset, rest = take_preset(arguments, "pretrain", flags)

    @dataclass(frozen=True, kw_only=True)
    class Pretrain(OwnMethod):
        config: Annotated[Config, tyro.conf.arg(name="")]
        out: str
        """Run folder to make."""
        exist: Literal["error", "resume", "overwrite"] = "error"
        """If there is a run in the folder: error; resume: go on with it, if its settings are these; overwrite: remove
        what it made and begin anew."""

    shown = name if name in SUMMARIES else DEFAULT_PRESET
    asked = parse(
        Pretrain,
        rest,
        default=Pretrain(config=preset, out=tyro.MISSING),
        prog=f"mocokit pretrain {name}",
        description=f"Pre-train with preset {shown}: {SUMMARIES[shown]}. Defaults below are the preset's;\n"
        "`mocokit presets` lists all presets. --method NAME, one of " + ", ".join(SPECS) + ", changes\n"
        "the settings of the method.",
        example=f"mocokit pretrain {shown} --data photos --out runs/a --epochs 100",
    )

    from mocokit.run.pretrain import pretrain

    return _close(pretrain(asked.config, out=asked.out, exist=asked.exist))


def resume_command(arguments: list[str]) -> int:
    """Continue a run with its own settings."""
    run, rest = take_name(arguments, "RUN", "resume RUN [--data NEW] [--test NEW] [--accept-changes]")
    if asks_for_help(rest):
        _print_page(RESUME_HELP)
    method_from, rest = take_option(rest, "--method-from")
    data, rest = take_option(rest, "--data")
    test, rest = take_option(rest, "--test")
    accept_changes = "--accept-changes" in rest
    rest = [argument for argument in rest if argument != "--accept-changes"]
    if method_from is not None:
        load_method(method_from)
    if rest:
        known = ["--data", "--test", "--method-from", "--accept-changes"]
        near = difflib.get_close_matches(rest[0].partition("=")[0], known, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"resume: {' '.join(rest)} is not understood; a run is continued with its own settings{hint}")
    from mocokit.run.pretrain import resume

    return _close(resume(run, data=data, test=test, accept_changes=accept_changes))


def _print_page(text: str) -> NoReturn:
    print(text, end="")
    raise SystemExit(0)


def _close(result: "RunResult") -> int:
    """Print the outcome of a run on the main rank; return the exit code."""
    from mocokit import distributed

    if result.signal is not None:
        if distributed.started_as_main():
            print(
                f"stopped at step {result.step} of {result.total_steps}; continue with: mocokit resume {result.folder}"
            )
        return 128 + result.signal
    if distributed.started_as_main():
        backbone = result.folder / "backbone.safetensors"
        print(f"done: {result.step} steps; backbone: {backbone}; next: {result.next_command}")
    return 0


def presets_command(arguments: list[str]) -> int:
    """List the presets, or print one."""
    if asks_for_help(arguments):
        _print_page(PRESETS_HELP)
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise ValueError(f"presets: {' '.join(arguments)} is not understood; usage: mocokit presets [NAME]")

    from mocokit.config.presets import SUMMARIES, get_preset
    from mocokit.config.toml import to_toml
    from mocokit.run.build_views import describe_views

    if arguments:
        preset = get_preset(arguments[0])
        print(to_toml(preset), end="")
        print("\n# Augmentation with all values, the recipe's where a setting is left out:")
        for line in describe_views(preset.augment):
            print(f"# {line}")
        return 0
    for name, summary in SUMMARIES.items():
        print(f"{name:19} {summary}")
    print("\n`mocokit presets NAME` prints one as TOML; `mocokit pretrain NAME --help` explains each setting.")
    return 0


def demo_command(arguments: list[str]) -> int:
    """Pre-train and evaluate on the embedded sample."""

    def demo(*, out: str = "runs/demo", epochs: int | None = None, seed: int = 0) -> int:
        """Pre-train on the embedded sample with the CPU, then compare kNN accuracies on its test part.

        Args:
            out: Run folder to make; the default is numbered when it exists.
            epochs: Length of the schedule; None: the one measured in RECIPES.md.
            seed: Seed of the run.

        """
        from mocokit.run.demo import EPOCHS, evaluate_demo, free_folder, run_demo

        result = run_demo(free_folder(out), epochs=epochs or EPOCHS, seed=seed)
        code = _close(result)
        if result.signal is None:
            print()
            print_knn(evaluate_demo(result.folder, seed=seed))
            print(f"\nview pairs: {result.folder / 'views.png'}; metrics: {result.folder / 'metrics.jsonl'}")
        return code

    return parse(demo, arguments, prog="mocokit demo", example="mocokit demo --epochs 10 --out runs/demo")
