"""The `mocokit` command line. Each command parses its arguments and makes one call into the package.

It holds no tensor code and no default values. May import every other room.
"""

import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence

from mocokit.cli import (
    bench,
    detect,
    evaluate,
    export,
    import_,
    knn,
    pack,
    plan,
    pretrain,
    reproduce,
    slurm,
    verify,
)

HELP = """\
usage: mocokit COMMAND ...

Momentum-contrast visual pre-training that anyone can run and trust.

  pretrain PRESET --data D --out RUN   pre-train a backbone on unlabelled images
  resume RUN                           continue a run that was stopped or killed
  pack DATA OUT [--short-side 512]     pack images into tar shards with an index
  unpack SHARDS OUT                    turn shards back into image files
  knn RUN --data D [--test T]          measure kNN accuracy of a run's frozen backbone
  evaluate RUN --data D [--all]        print kNN, linear and 1 % / 10 % fine-tuning in one table
  linear RUN --data D [--protocol P]   train a linear classifier on a run's frozen backbone
  finetune RUN --data D --fraction F   fine-tune a run's backbone on a part of the labels
  export RUN --to LIBRARY OUT          write the backbone for another library, proven equal there
  import CHECKPOINT OUT                import weights of other projects, or an official run to resume
  detect RUN --data D --out DIR        fine-tune detectors from a backbone, as the papers do
  reproduce TABLE [--scale S]          reproduce a table of the papers, at small scale or on ImageNet
  presets [NAME]                       list the presets, or print one
  verify [TRACE.npz ...]               replay recorded official runs and compare
  bench PRESET --data D                measure what limits a run on this machine and these images
  plan PRESET --devices 8xH100         compute memory, time, energy and money of a run beforehand
  slurm PRESET --data D --out RUN      write an sbatch script that requeues itself and resumes
  demo                                 pre-train on the embedded sample, on the CPU

`mocokit COMMAND --help` lists the flags of a command; `mocokit --version` prints the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 failed, 2 wrong usage, 128+n ended by signal n."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold what the terminal's encoding can't
            stream.reconfigure(errors="backslashreplace")
    if not arguments or arguments[0] in {"-h", "--help"} or arguments in (["help"], ["help", "--help"]):
        return _call(_print_help, arguments) or (0 if arguments else 2)
    command, *rest = arguments
    if command == "help":  # mocokit help knn
        command, rest = rest[0], ["--help"]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(COMMANDS)}"
        return _fail(f"{command}: unknown command{hint}", code=2)
    return _call(COMMANDS[command], rest)


def _call(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command. Errors that a user can fix become one line on stderr; any other error keeps its traceback."""
    try:
        try:
            return command(arguments)
        finally:
            sys.stdout.flush()  # so that a reader that is gone, or a full disk, is found here
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


def _print_help(_arguments: list[str]) -> int:
    print(HELP, end="")
    return 0


def _version(_arguments: list[str]) -> int:
    from mocokit import __version__

    print(f"mocokit {__version__}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "--version": _version,
    "pretrain": pretrain.pretrain_command,
    "resume": pretrain.resume_command,
    "pack": pack.pack_command,
    "unpack": pack.unpack_command,
    "knn": knn.knn_command,
    "evaluate": evaluate.evaluate_command,
    "linear": evaluate.linear_command,
    "finetune": evaluate.finetune_command,
    "export": export.export_command,
    "import": import_.import_command,
    "detect": detect.detect_command,
    "reproduce": reproduce.reproduce_command,
    "presets": pretrain.presets_command,
    "verify": verify.verify_command,
    "bench": bench.bench_command,
    "plan": plan.plan_command,
    "slurm": slurm.slurm_command,
    "demo": pretrain.demo_command,
}
