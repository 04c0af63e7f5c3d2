"""Fuzz every reader guided by coverage: atheris keeps inputs that reach new lines of mocokit, and changes them further.

    python experiments/fuzz_guided.py --seconds 120        # for each of 25 readers

Readers, valid files and allowed outcomes are those of fuzz.py, which changes files blindly. Each reader runs in a
process of its own. The result file has the number of inputs, the coverage, the memory and the findings.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "fuzz_guided.json"
LIMIT_S = 20
LIMIT_MB = 4096


def fuzz_here(kind: str, corpus: Path, options: list[str]) -> None:
    """Fuzz one reader in this process; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["mocokit"], enable_loader_override=False):
        import fuzz

    reader = fuzz.build_readers()[kind]
    for number, valid in enumerate(reader.seeds):
        (corpus / f"honest_{number}").write_bytes(valid)
    folder = corpus.parent / "files"
    folder.mkdir()
    for listed in fuzz.LISTED:
        (folder / listed).touch()

    def try_one(raw: bytes) -> None:
        fuzz.try_input(reader, reader.mend(raw), folder)

    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one)
    atheris.Fuzz()


def fuzz_reader(kind: str, *, seconds: int) -> dict[str, Any]:
    """Fuzz one reader in a new process; return the statistics that libFuzzer prints at the end."""
    root = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=root) as text:
        corpus = Path(text, "corpus")
        corpus.mkdir()
        command = [sys.executable, __file__, "--reader", kind, "--corpus", str(corpus), "--seconds", str(seconds)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
        kept = len(list(corpus.iterdir()))
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    lines = re.findall(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+)", done.stderr)
    row: dict[str, Any] = {
        "inputs": int(stats.get("number_of_executed_units", lines[-1][0] if lines else 0)),
        "kept": kept,
        "coverage_at_first": int(lines[0][1]) if lines else 0,
        "coverage": int(lines[-1][1]) if lines else 0,
        "peak_mb": int(stats.get("peak_rss_mb", 0)),
        "exit_code": done.returncode,
    }
    if done.returncode:
        row["said"] = done.stderr[-2000:]
    return row


def main() -> None:
    """Fuzz each reader and save after each; the exit code is 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120, help="for each reader")
    parser.add_argument("--only", nargs="+", help="these readers")
    parser.add_argument("--results", type=Path, default=RESULT)
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reader:
        limits = [f"-max_total_time={args.seconds}", f"-timeout={LIMIT_S}", f"-rss_limit_mb={LIMIT_MB}"]
        fuzz_here(args.reader, args.corpus, [*limits, "-print_final_stats=1", f"-artifact_prefix={args.corpus}/"])
    from fuzz import build_readers  # here: a reader's process must import it under atheris, to measure coverage

    rows = json.loads(args.results.read_text(encoding="utf-8"))["readers"] if args.results.exists() else {}
    for kind in args.only or build_readers():
        rows[kind] = fuzz_reader(kind, seconds=args.seconds)
        print(kind, rows[kind], flush=True)
        findings = [name for name, row in rows.items() if row["exit_code"]]
        result = {
            "inputs": sum(row["inputs"] for row in rows.values()),
            "findings": findings,
            "versions": {name: version(name) for name in ("atheris", "torch", "numpy", "Pillow")},
            "readers": rows,
        }
        args.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
