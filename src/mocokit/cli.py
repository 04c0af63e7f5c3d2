"""The `mocokit` command: parse -> one call -> close. No tensor code, no defaults of its own."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from mocokit.evaluate.report_knn import KnnRow
    from mocokit.pretraining import RunResult

HELP = """\
usage: mocokit COMMAND ...

Momentum-contrast visual pre-training that anyone can run and trust.

  pretrain PRESET --data D --out RUN   pre-train a backbone on unlabelled images
  resume RUN                           continue a run that was stopped or killed
  knn RUN --data D [--test T]          kNN accuracy of a run's frozen backbone
  presets [NAME]                       list the presets, or print one
  verify [TRACE.npz ...]               replay recorded official runs and compare
  demo                                 pre-train on the embedded sample, on the CPU

`mocokit COMMAND --help` tells the flags of a command; `mocokit --version` the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 wrong usage, 128+n ended by signal n)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(HELP, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(COMMANDS)}"
        return _fail(f"{command}: unknown command{hint}", code=2)
    return _call(COMMANDS[command], rest)


def _call(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; what its user can mend becomes one line, anything else stays a traceback."""
    try:
        return command(arguments)
    except BrokenPipeError:  # `mocokit presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except (ValueError, ArithmeticError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted", code=130)


def _fail(message: str, *, code: int = 1) -> int:
    print(f"mocokit: {message}", file=sys.stderr)
    return code


def _take_name(arguments: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in {"-h", "--help"}:
            print(f"usage: mocokit {usage}")
            raise SystemExit(0)
        raise ValueError(f"{what} is missing; usage: mocokit {usage}")
    return arguments[0], arguments[1:]


def _pretrain(arguments: list[str]) -> int:
    import tyro

    from mocokit.config import Config
    from mocokit.presets import PRESETS, get_preset

    usage = f"pretrain {{{','.join(PRESETS)}}} --data D --out RUN [--epochs N ...]   (--help after a preset: all flags)"
    name, rest = _take_name(arguments, "PRESET", usage)

    @dataclass(frozen=True, kw_only=True)
    class Pretrain:
        config: Annotated[Config, tyro.conf.arg(name="")]
        out: str
        """Run folder to make."""

    default = Pretrain(config=get_preset(name), out=tyro.MISSING)
    asked = tyro.cli(Pretrain, args=rest, default=default, prog=f"mocokit pretrain {name}", description=_one_line(name))

    from mocokit.pretraining import pretrain

    return _close(pretrain(asked.config, out=asked.out))


def _one_line(preset: str) -> str:
    from mocokit.presets import SUMMARIES

    return f"Pre-train with preset {preset}: {SUMMARIES[preset]}. Defaults below are the preset's."


def _resume(arguments: list[str]) -> int:
    run, rest = _take_name(arguments, "RUN", "resume RUN")
    if rest:
        raise ValueError(f"resume: {' '.join(rest)} is not understood; a run is continued with its own settings")
    from mocokit.pretraining import resume

    return _close(resume(run))


def _close(result: "RunResult") -> int:
    """Say how a run ended, on the main rank."""
    from mocokit import distributed

    if result.signal is not None:
        if distributed.started_as_main():
            print(
                f"stopped at step {result.step} of {result.total_steps}; continue with: mocokit resume {result.folder}"
            )
        return 128 + result.signal
    if distributed.started_as_main():
        print(f"done: {result.step} steps; backbone: {result.folder / 'backbone.safetensors'}")
    return 0


def _knn(arguments: list[str]) -> int:
    import tyro

    run, rest = _take_name(arguments, "RUN", "knn RUN --data D [--test T] [--baselines]")

    def knn(
        *,
        data: str,
        test: str = "",
        baselines: bool = False,
        workers: int = 2,
        device: str = "auto",
        seed: int = 0,
    ) -> int:
        """kNN accuracy of a run's frozen backbone.

        Args:
            data: Labelled images that vote.
            test: Labelled images to classify; empty: a tenth of `data`, held out.
            baselines: Also judge raw pixels and the same network with random weights.
            workers: Loader processes.
            device: auto, cpu, cuda or cuda:N.
            seed: Seed of the random weights and of the held-out tenth.

        """
        from mocokit.evaluate.report_knn import compare_with_baselines

        rows = compare_with_baselines(
            run, bank=data, queries=test or None, baselines=baselines, num_workers=workers, device_name=device,
            seed=seed,
        )  # fmt: skip
        _print_knn(rows)
        return 0

    return int(tyro.cli(knn, args=rest, prog=f"mocokit knn {run}"))


def _print_knn(rows: "list[KnnRow]") -> None:
    protocols = list(rows[0].accuracy)
    print("kNN accuracy (%)".ljust(18) + "".join(f"{protocol!s:>14}" for protocol in protocols))
    for row in rows:
        print(row.features.ljust(18) + "".join(f"{100 * row.accuracy[protocol]:14.1f}" for protocol in protocols))


def _presets(arguments: list[str]) -> int:
    from mocokit.presets import SUMMARIES, get_preset
    from mocokit.settings import to_toml

    if arguments:
        print(to_toml(get_preset(arguments[0])), end="")
        return 0
    for name, summary in SUMMARIES.items():
        print(f"{name:15} {summary}")
    print("\n`mocokit presets NAME` prints one as TOML; `mocokit pretrain NAME --help` explains each setting.")
    return 0


def _verify(arguments: list[str]) -> int:
    import tyro

    def verify(traces: Annotated[tuple[str, ...], tyro.conf.Positional] = (), *, rtol: float = 1e-12,
               micro_groups: int = 0) -> int:  # fmt: skip
        """Replay recorded official runs in float64 and compare every recorded quantity.

        Args:
            traces: Trace files; none: the golden traces that come with mocokit.
            rtol: Largest relative error that passes.
            micro_groups: BatchNorm groups that go through the network at once; 0: all.

        """
        from mocokit import distributed
        from mocokit.verification import verify as replay_all

        rows = replay_all(traces, micro_groups=micro_groups)
        wrong = sum(not row.relative_error <= rtol for row in rows)
        if distributed.started_as_main():
            print(f"{'trace':18}{'quantity':32}{'relative error':>16}")
            for row in rows:
                mark = "" if row.relative_error <= rtol else "  WRONG"
                print(f"{row.trace:18}{row.quantity:32}{row.relative_error:16.1e}{mark}")
            print(f"{len(rows) - wrong} of {len(rows)} quantities within {rtol:g} of the official run")
        return 1 if wrong else 0

    return int(tyro.cli(verify, args=arguments, prog="mocokit verify"))


def _demo(arguments: list[str]) -> int:
    import tyro

    def demo(*, out: str = "runs/demo", epochs: int | None = None, seed: int = 0) -> int:
        """Pre-train on the embedded sample with the CPU, then compare kNN accuracies on its test part.

        Args:
            out: Run folder to make; the default is numbered when it exists.
            epochs: Length of the schedule; None: the one measured in RECIPES.md.
            seed: Seed of the run.

        """
        from mocokit.demo import EPOCHS, free_folder, judge, run_demo

        result = run_demo(free_folder(out), epochs=epochs or EPOCHS, seed=seed)
        code = _close(result)
        if result.signal is None:
            print()
            _print_knn(judge(result.folder, seed=seed))
            print(f"\nview pairs: {result.folder / 'views.png'}; metrics: {result.folder / 'metrics.jsonl'}")
        return code

    return int(tyro.cli(demo, args=arguments, prog="mocokit demo"))


def _version(_arguments: list[str]) -> int:
    from mocokit import __version__

    print(f"mocokit {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "--version": _version,
    "pretrain": _pretrain,
    "resume": _resume,
    "knn": _knn,
    "presets": _presets,
    "verify": _verify,
    "demo": _demo,
}
