"""The `mocokit` command: parse -> one call -> close. No tensor code, no defaults of its own."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence

from mocokit.cli import (
    bench,
    detect,
    evaluate,
    export,
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
  pack DATA OUT [--short-side 512]     images into tar shards with an index
  unpack SHARDS OUT                    shards back into image files
  knn RUN --data D [--test T]          kNN accuracy of a run's frozen backbone
  evaluate RUN --data D [--all]        kNN, linear and 1 % / 10 % fine-tuning in one table
  linear RUN --data D [--protocol P]   linear classification on a run's frozen backbone
  finetune RUN --data D --fraction F   fine-tuning on a part of the labels
  export RUN --to LIBRARY OUT          the backbone for another library, proven equal there
  import CHECKPOINT OUT                weights of other projects, or an official run to resume
  detect RUN --data D --out DIR        fine-tune detectors from a backbone, as the papers do
  reproduce TABLE [--scale S]          a table of the papers, in small or on ImageNet
  presets [NAME]                       list the presets, or print one
  verify [TRACE.npz ...]               replay recorded official runs and compare
  bench PRESET --data D                what bounds a run on this machine and these images
  plan PRESET --devices 8xH100         memory, time, energy and money of a run, computed beforehand
  slurm PRESET --data D --out RUN      an sbatch script that requeues itself and resumes
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
    "import": export.import_command,
    "detect": detect.detect_command,
    "reproduce": reproduce.reproduce_command,
    "presets": pretrain.presets_command,
    "verify": verify.verify_command,
    "bench": bench.bench_command,
    "plan": plan.plan_command,
    "slurm": slurm.slurm_command,
    "demo": pretrain.demo_command,
}
