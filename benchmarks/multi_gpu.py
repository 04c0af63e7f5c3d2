"""Prove and time the step on several GPUs: the same trajectory, scaling, overlap, an error and a hang.

    python benchmarks/multi_gpu.py                    2, 4 and 8 GPUs, as far as the machine has them
    python benchmarks/multi_gpu.py --device cpu       its twin on 2 gloo ranks, small

Takes under 10 minutes. Each part starts torchrun as a user would:

* trajectory: 20 steps in float64 on one device and on all, from the same images: largest relative difference of a loss,
  in the first step and in any;
* scaling: images per second of the step alone, at the paper's global batch (256), on 1 to all devices;
* overlap: share of the time of NCCL's kernels in which another kernel computes, from a trace of torch.profiler;
* error: rank 1 raises in the middle; its own message must be shown, and all must end within 30 s;
* hang: rank 1 is stopped; the others must name it and end.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import measuring
import torch
from torch.profiler import ProfilerActivity, profile

from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.data.batch import ViewBatch
from mocokit.engine.device import pick_device
from mocokit.engine.precision import Precision
from mocokit.plan.bench import trainer
from mocokit.report.text_tables import markdown_columns
from mocokit.run.build import build_run
from mocokit.run.demo import sample_path

FIRST_STEP_TOLERANCE = 1e-11
"""Largest relative difference of the first float64 loss; only the order of sums differs, and 12 digits are logged."""
TOLERANCE = 1e-9
"""Largest relative difference of any loss, after roundings have grown with the steps."""
IMAGE_PX = 64
"""Image size. At 32 px the last BatchNorm layers see 4 values a channel (groups of 4 images, 1 x 1 pixel), and
roundings grow: 2 ranks agree with a process of as many threads to 3e-12, but one process with 2 threads agrees with
itself on 1 thread only to 2e-7 after 20 steps. At 64 px all 12 digits are equal."""
END_S = 30.0
"""Time in which all ranks must have ended after one raised an error."""
HANG_S = 10
"""run.rank_timeout_s of the hang."""
ERROR = "planted error of rank 1"

PLANTED = f"""
import os, sys
import mocokit.engine.train as engine
step_of = engine.train_step
def train_step(method, views, step, **rest):
    if step == 10 and os.environ.get("RANK") == "1":
        raise ValueError("{ERROR}")
    return step_of(method, views, step, **rest)
engine.train_step = train_step
from mocokit.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(ranks: int, *command: str) -> subprocess.Popen[str]:
    """Start `command`, after python, on `ranks` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen([*launcher, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def make_images(work: Path) -> None:
    """Fill the folder `images` with 64 images of the embedded sample: 2 steps an epoch."""
    with zipfile.ZipFile(sample_path("val")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        archive.extractall(work / "images", names[:64])


def pretrain_flags(device: str, out: Path, *more: str) -> list[str]:
    """Return the flags of a small run of 20 steps, each of which is logged."""
    return [
        *("pretrain", "moco-v2", "--data", str(out.parent / "images"), "--out", str(out), "--device", device),
        *("--arch", "resnet10_w16", "--image-size", str(IMAGE_PX), "--global-batch-size", "32", "--epochs", "10"),
        *("--method.queue-size", "1024", "--run.log-every", "1", "--run.knn-every", "0", "--workers", "1", *more),
    ]


def trajectory(work: Path, device: str, ranks: int) -> dict[str, Any]:
    """Compare the float64 losses of one device and of `ranks`."""
    losses = []
    for count in (1, ranks):
        out = work / f"trajectory{count}"
        flags = pretrain_flags(device, out, "--precision", "fp64", "--run.compile", "off")
        output = start(count, "-m", "mocokit", *flags).communicate()[0]
        assert (out / "metrics.jsonl").exists(), output
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    apart = [abs(many / one - 1) for one, many in zip(*losses, strict=True)]
    return {
        "steps": len(apart),
        "first_relative_difference": apart[0],
        "largest_relative_difference": max(apart),
        "good": apart[0] < FIRST_STEP_TOLERANCE and max(apart) < TOLERANCE,
    }


def step_config(device: str) -> Config:
    """Return the paper's run on a GPU, or a small one on a CPU."""
    settings: dict[str, object] = {"data.source": str(sample_path("val")), "run.device": device, "data.workers": 0}
    if device == "cpu":
        small = {"model.arch": "resnet18", "data.image_size": 32, "data.global_batch_size": 64, "run.precision": "fp32"}
        settings |= {**small, "method.queue_size": 4096}
    else:
        settings |= {"run.precision": "bf16", "run.compile": "on"}
    return replace_settings(get_preset("moco-v2"), settings)


def measure_rank(device_name: str, out: Path, *, steps: int) -> None:
    """Time steps on this rank's rows of random pixels; the main rank writes the seconds and the overlap to `out`."""
    config = step_config(device_name)
    device = pick_device(device_name, local_rank=distributed.local_rank())
    with distributed.session(device.type):
        parts = build_run(config, device)
        rows = len(parts.method.layout.own_rows(config.data.global_batch_size))
        shape = (rows, 3, config.data.image_size, config.data.image_size)
        ids = torch.arange(rows, device=device)
        query, key = (torch.randint(0, 256, shape, dtype=torch.uint8, device=device) for _ in range(2))
        views = ViewBatch(query=query, key=key, image_ids=ids)
        assert isinstance(parts.precision, Precision)
        step = trainer(parts)
        seconds = []
        for number in range(3 + steps):
            distributed.barrier()
            start = time.perf_counter()
            step(views, number)
            wait(device)
            seconds.append(time.perf_counter() - start)
        share = overlap(lambda: step(views, 0), device)
        if distributed.is_main():
            rate = config.data.global_batch_size / statistics.median(seconds[3:])
            out.write_text(json.dumps({"images_per_s": rate, "overlap": share}), encoding="utf-8")


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def overlap(step: Any, device: torch.device) -> float | None:
    """Return the share of the time of NCCL's kernels in which others run too; None on a CPU, which has no kernels."""
    if device.type != "cuda" or distributed.world_size() == 1:
        step()
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step()
        wait(device)
    with tempfile.TemporaryDirectory() as folder:
        trace.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    travel = [(event["ts"], event["ts"] + event["dur"]) for event in kernels if "nccl" in event["name"].lower()]
    compute = [(event["ts"], event["ts"] + event["dur"]) for event in kernels if "nccl" not in event["name"].lower()]
    return covered_share(travel, compute)


def covered_share(spans: list[tuple[float, float]], by: list[tuple[float, float]]) -> float:
    """Return the share of the time of `spans` that the union of the spans `by` covers; 0 without spans."""
    merged: list[tuple[float, float]] = []
    for first, last in sorted(by):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    total = sum(last - first for first, last in spans)
    hidden = sum(max(0.0, min(last, end) - max(first, begin)) for first, last in spans for begin, end in merged)
    return hidden / total if total else 0.0


def scaling(work: Path, device: str, counts: list[int], *, steps: int) -> dict[str, Any]:
    """Return the step's images per second, and its overlap, for each number of devices."""
    found = {}
    for count in counts:
        out = work / f"scaling{count}.json"
        command = [__file__, "--device", device, "--as-rank", str(out), "--steps", str(steps)]
        output = start(count, *command).communicate()[0]
        assert out.exists(), output
        found[str(count)] = json.loads(out.read_text(encoding="utf-8"))
    return found


def planted_error(work: Path, device: str, ranks: int) -> dict[str, Any]:
    """Let rank 1 raise an error: is its message shown, and how long do all take to end?"""
    script = work / "planted.py"
    script.write_text(PLANTED, encoding="utf-8")
    out = work / "error"
    process = start(ranks, str(script), *pretrain_flags(device, out))
    wait_for_step(out, 10)
    begun = time.monotonic()
    output = process.communicate()[0]
    ended_s = time.monotonic() - begun
    ours = [line for line in output.splitlines() if line.startswith("mocokit: ")]
    good = any(ERROR in line for line in ours) and process.returncode != 0 and ended_s < END_S
    return {"ended_s": ended_s, "said": ours, "good": good}


def hang(work: Path, device: str, ranks: int) -> dict[str, Any]:
    """Stop rank 1: do the others name it, and end?"""
    out = work / "hang"
    process = start(ranks, "-m", "mocokit", *pretrain_flags(device, out, "--run.rank-timeout-s", str(HANG_S)))
    wait_for_step(out, 5)
    os.kill(pid_of_rank(process.pid, 1), signal.SIGSTOP)
    begun = time.monotonic()
    output = process.communicate()[0]  # torchrun gives the stopped rank 30 s to end, then kills it
    line = next((line for line in output.splitlines() if "rank 1 did not arrive" in line), "")
    return {"ended_s": time.monotonic() - begun, "said": line, "good": bool(line) and process.returncode != 0}


def wait_for_step(run: Path, step: int) -> None:
    """Wait until the run has logged `step`."""
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (log.exists() and log.read_text(encoding="utf-8").count('"loss"') >= step):
        assert time.monotonic() < deadline, f"{run}: no step {step} within 300 s"
        time.sleep(0.05)


def pid_of_rank(launcher: int, rank: int) -> int:
    """Return the process id of a rank that torchrun started (Linux)."""
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="ascii").split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace"):
            return int(pid)
    raise ProcessLookupError(f"rank {rank} is not running")


def main() -> None:
    """Run all parts, print and write JSON; exit with code 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of the scaling")
    parser.add_argument("--as-rank", type=Path, help="used by this script itself")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    if args.as_rank:
        measure_rank(args.device, args.as_rank, steps=args.steps)
        return
    available = torch.cuda.device_count() if args.device == "cuda" else 2
    counts = [count for count in (1, 2, 4, 8) if count <= available]
    if len(counts) < 2:
        sys.exit("benchmarks/multi_gpu.py: torch sees fewer than 2 GPUs here; --device cpu runs its twin")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_images(work)
        result: dict[str, Any] = {
            "trajectory": trajectory(work, args.device, counts[-1]),
            "scaling": scaling(work, args.device, counts, steps=args.steps),
            "error": planted_error(work, args.device, counts[-1]),
            "hang": hang(work, args.device, counts[-1]),
        }
    rates = {count: result["scaling"][str(count)]["images_per_s"] for count in counts}
    rows = [
        (str(count), f"{rates[count]:,.0f}", f"{rates[count] / rates[1] / count:.0%}", shown(result, count))
        for count in counts
    ]
    print(markdown_columns(("devices", "step alone, img/s", "of linear scaling", "overlap"), rows), "\n")
    for part in ("trajectory", "error", "hang"):
        print(f"{part}: {result[part]}")
    name = "multi_gpu" if args.device == "cuda" else "multi_gpu_twin"
    target = args.results or Path(__file__).parent / "results" / f"{name}.json"
    measuring.save_result(target, {**measuring.describe_sides(), "devices": counts, **result})
    sys.exit(0 if all(result[part]["good"] for part in ("trajectory", "error", "hang")) else 1)


def shown(result: dict[str, Any], count: int) -> str:
    """Return the overlap of a number of devices as text."""
    share = result["scaling"][str(count)]["overlap"]
    return "not measured" if share is None else f"{share:.0%}"


if __name__ == "__main__":
    main()
