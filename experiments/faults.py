"""Inject faults of processes, files, disks, ranks and hosts into real runs, and measure the loss: `make faults`.

Writes experiments/results/faults.json and the table in docs/reliability.md. If a run does not survive a fault as it
should, its row says FAILED and the exit status is 1.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import file_faults
import process_faults
import rank_faults
import two_hosts
from fault_runs import NotPossibleError, Row, Runs
from fault_table import FAILED, write_document

from mocokit.engine.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent

FAULTS: tuple[Callable[..., Row], ...] = (
    process_faults.kill_process,
    process_faults.kill_worker,
    file_faults.cut_checkpoint,
    file_faults.flipped_bit,
    file_faults.half_renamed,
    file_faults.full_disk,
    process_faults.term_while_saving,
    process_faults.bad_gradient,
    process_faults.two_runs,
    file_faults.images_vanish,
    file_faults.blocked_mount,
    process_faults.jumping_clock,
    rank_faults.kill_rank,
    rank_faults.kill_launcher,
    rank_faults.hung_rank,
    rank_faults.different_rank,
    rank_faults.world_sizes,
    two_hosts.short_cut,
    two_hosts.long_cut,
    two_hosts.lost_host,
)

UNEXPECTED = (AssertionError, OSError, LookupError, ValueError, StopIteration, subprocess.SubprocessError)
"""Errors of a fault whose run does something wrong, or nothing within the patience."""


def inject(fault: Callable[..., Row], runs: Runs, *, quick: bool) -> Row:
    """Inject one fault and return its row; `not_run` tells why it cannot be injected here, `said` why it failed."""
    about: Row = {"how": _how(fault)}
    measured = {"steps": runs.steps, "load_before": round(os.getloadavg()[0], 1), "machine": describe_machine()}
    try:
        row = fault(runs, quick=quick)
        return {**about, **measured, **row, "said": row["said"].replace(str(runs.work), "RUNS")}
    except NotPossibleError as error:
        return {**about, "not_run": str(error)}
    except UNEXPECTED as error:
        traceback.print_exc()
        return {**about, **measured, "said": f"{FAILED}: {_reason(error)}".replace(str(runs.work), "RUNS")}
    finally:
        runs.end_all()


def _reason(error: BaseException) -> str:
    """Return the source line of the fault that raised the error, and the last line of its message."""
    tools = {"fault_runs.py", "run_process.py"}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(ROOT))]
    frame = [frame for frame in frames if Path(frame.filename).name not in tools][-1]
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__} in `{frame.line}`: {last}"[:300]


def write_results(rows: dict[str, Row], results: Path, document: Path) -> None:
    """Write the JSON file and the document; faults without a row get `not run yet`."""
    missing = {fault.__name__: {"how": _how(fault), "not_run": "not run yet"} for fault in FAULTS}
    results.write_text(json.dumps({"faults": missing | rows}, indent=1) + "\n", encoding="utf-8")
    write_document(document, results)


def _how(fault: Callable[..., Row]) -> str:
    return (fault.__doc__ or "").rstrip(".")


def main(arguments: list[str] | None = None) -> int:
    """Inject every fault or the named ones, write the results, and return 1 if one failed, else 0."""
    names = [fault.__name__ for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer kills, 2 ranks instead of 4, shorter waits")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="inject only these; rows of others are kept"
    )
    parser.add_argument("--keep", action="store_true", help="reuse the undisturbed runs in --work")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "faults.json")
    parser.add_argument("--document", type=Path, default=ROOT / "docs" / "reliability.md")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # raises, so that mounts are undone
    if not args.keep:
        shutil.rmtree(args.work, ignore_errors=True)
    rows: dict[str, Row] = {}
    if args.results.exists():
        rows = json.loads(args.results.read_text(encoding="utf-8"))["faults"]
    chosen = [fault for fault in FAULTS if fault.__name__ in args.only]
    for fault in chosen:
        many = fault is process_faults.kill_process and not args.quick
        work = args.work.absolute() / ("long" if many else "short")
        work.mkdir(parents=True, exist_ok=True)
        steps = 100 if many else 30
        ranks = 2 if args.quick else 4
        patience_s = 240 if args.quick else 900
        runs = Runs(work, steps=steps, ranks=ranks, patience_s=patience_s)
        rows[fault.__name__] = inject(fault, runs, quick=args.quick)
        print(json.dumps({fault.__name__: rows[fault.__name__]}), flush=True)
        write_results(rows, args.results, args.document)
    return int(any(rows[fault.__name__].get("said", "").startswith(FAILED) for fault in chosen))


if __name__ == "__main__":
    sys.exit(main())
