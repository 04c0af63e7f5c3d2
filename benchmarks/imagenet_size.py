"""Measure what 1,281,167 images in 1,000 classes cost before training: as small files, and as tar shards.

The files are hard links to 25 small JPEGs, so they take no space but 1.3 million directory entries. Each measurement
is a process of its own. CPU seconds are of user and system; wall-clock seconds depend on what else the machine does.

    python benchmarks/imagenet_size.py --before CHECKOUT

CHECKOUT is a checkout of another commit, which is measured beside this one. Needs 6 GB of disk below --work.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")

NUM_IMAGES = 1_281_167
NUM_CLASSES = 1000
NUM_ORIGINALS = 25  # ext4 allows 65,000 links to a file
NUM_SHARDS = 10
NUM_WORKERS = 16
STEP_SETTINGS = (  # a step as small as can be: the start is measured
    *("--data.workers", "2", "--data.image-size", "32", "--data.global-batch-size", "32", "--method.queue-size", "256"),
    *("--method.bn-groups", "1", "--model.arch", "resnet18", "--run.log-every", "1", "--run.knn-every", "0"),
)


def make_files(work: Path) -> None:
    """Make the folder, and shards of the same images, unless they are there."""
    if (work / "complete").exists():
        return
    shutil.rmtree(work, ignore_errors=True)
    (work / "originals").mkdir(parents=True)
    random = np.random.default_rng(0)
    originals = []
    for number in range(NUM_ORIGINALS):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "JPEG")
        originals.append(buffer.getvalue())
        (work / f"originals/{number}.JPEG").write_bytes(buffer.getvalue())
    names = []
    for number in range(NUM_CLASSES):
        name = f"n{1_440_764 + 12_345 * number:08d}"
        (work / "train" / name).mkdir(parents=True)
        count = NUM_IMAGES // NUM_CLASSES + (number < NUM_IMAGES % NUM_CLASSES)
        names += [f"{name}/{name}_{7 * row + 3}.JPEG" for row in random.permutation(count).tolist()]
    for row, name in enumerate(names):
        os.link(work / f"originals/{row % NUM_ORIGINALS}.JPEG", f"{work}/train/{name}")
    (work / "shards").mkdir()
    for shard in range(NUM_SHARDS):
        with tarfile.open(work / f"shards/shard-{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for row in range(shard, NUM_IMAGES, NUM_SHARDS):
                member = tarfile.TarInfo(names[row])
                member.size = len(originals[row % NUM_ORIGINALS])
                archive.addfile(member, io.BytesIO(originals[row % NUM_ORIGINALS]))
    (work / "complete").touch()


def timed(call: Callable[[], T]) -> tuple[dict[str, float], T]:
    """Return the seconds of a call and the peak memory of this process after it, and what the call returns."""
    start = time.perf_counter()
    cpu = time.process_time()
    result = call()
    row = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    return {**row, "peak_mb": peak_mb("self")}, result


def peak_mb(pid: str) -> float:
    """Return the peak memory of a process; getrusage would count its parent's too, if it was forked from it."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def measure_torchvision(work: Path) -> dict[str, Any]:
    """Return the cost of torchvision's scan."""
    from torchvision.datasets import ImageFolder

    ready = peak_mb("self")
    row, _ = timed(lambda: ImageFolder(str(work / "train")))
    return {"scan": row, "ready_mb": ready}


def measure_source(location: str) -> dict[str, Any]:
    """Return the cost of each part of opening a data set."""
    from mocokit.data.sources.identity import hash_names, identify, image_names
    from mocokit.data.sources.left_out import describe_source
    from mocokit.data.sources.open_source import open_source
    from mocokit.data.value_range import measure_ranges
    from mocokit.randomness import Purpose, permutation

    rows: dict[str, Any] = {"ready_mb": peak_mb("self")}
    rows["scan"], source = timed(lambda: open_source(location))
    rows["identity"], identity = timed(lambda: identify(source))
    rows["digest"], rows["identity_digest"] = timed(lambda: identity.digest)
    rows["description"], rows["text"] = timed(lambda: describe_source(source))
    rows["names"], rows["names_sha256"] = timed(lambda: hash_names(image_names(source)))
    rows["value ranges"], _ = timed(lambda: measure_ranges(source, max_image_px=10**8, seed=0, known={}))
    rows["order of an epoch"], _ = timed(lambda: permutation(0, Purpose.EPOCH_ORDER, len(source), 7))
    return rows


def measure_workers(location: str) -> dict[str, Any]:
    """Return the memory that 16 forked workers add in an epoch, of which each uses the names of a sixteenth."""
    from mocokit.data.sources.open_source import open_source

    source = open_source(location)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work(number: int) -> None:
        before = own_mb()
        for index in np.random.default_rng(number).integers(len(source), size=len(source) // NUM_WORKERS).tolist():
            source.name(index)
        results.put(own_mb() - before)

    processes = [context.Process(target=work, args=(number,)) for number in range(NUM_WORKERS)]
    for process in processes:
        process.start()
    added = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {"added_mb_by_each": added, "added_mb_by_all": sum(added), "main_mb": own_mb()}


def own_mb() -> float:
    """Return the memory that this process shares with none, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1024


def measure_features(dim: int) -> dict[str, Any]:
    """Return the cost of kNN with 200 queries on the whole bank, and of the fast linear protocol on a part of it."""
    import torch

    from mocokit.evaluate.fast_linear import fast_linear
    from mocokit.evaluate.features import Features
    from mocokit.evaluate.knn import PROTOCOLS, knn_accuracy
    from mocokit.evaluate.protocols import FAST_LINEAR

    device = torch.device("cpu")

    def features(count: int) -> Features:
        return Features(rows=torch.randn(count, dim), labels=torch.randint(NUM_CLASSES, (count,)))

    bank = features(NUM_IMAGES)
    rows: dict[str, Any] = {"ready_mb": peak_mb("self")}
    rows["knn, 200 queries"], _ = timed(lambda: knn_accuracy(bank, features(200), PROTOCOLS, device=device))
    part = Features(rows=bank.rows[:12_812], labels=bank.labels[:12_812])
    protocol = replace(FAST_LINEAR, schedule=replace(FAST_LINEAR.schedule, epochs=1))
    rows["fast linear, 12,812 rows, 1 epoch"], _ = timed(
        lambda: fast_linear(part, features(500), protocol, num_classes=NUM_CLASSES, device=device, seed=0)
    )
    return rows


def measure_run(command: list[str], run: Path) -> dict[str, float]:
    """Return the seconds and the peak memory of a command up to its first step; stop it then, so that it saves."""
    metrics = run / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (metrics.exists() and metrics.stat().st_size > size):
        if process.poll() is not None:
            raise RuntimeError(f"{command} ended with {process.returncode} before its first step")
        time.sleep(0.05)
    wall = time.perf_counter() - start
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    peak = peak_mb(str(process.pid))
    process.send_signal(signal.SIGTERM)
    process.wait()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak}


def measure_start(work: Path, name: str) -> dict[str, Any]:
    """Return the cost of a start and of a resume, each up to the first step."""
    run = work / f"run_{name}"
    shutil.rmtree(run, ignore_errors=True)
    mocokit = [sys.executable, "-m", "mocokit"]
    rows = {
        "start": measure_run(
            [*mocokit, "pretrain", "moco-v2", "--data", str(work / "train"), "--out", str(run), *STEP_SETTINGS], run
        ),
        "resume": measure_run([*mocokit, "resume", str(run)], run),
    }
    shutil.rmtree(run)
    return rows


def measure_here(case: str, work: Path) -> dict[str, Any]:
    """Return the result of a case, measured in this process."""
    folder = str(work / "train")
    shards = str(work / f"shards/shard-{{00000..{NUM_SHARDS - 1:05d}}}.tar")
    cases: dict[str, Callable[[], dict[str, Any]]] = {
        "torchvision": lambda: measure_torchvision(work),
        "folder": lambda: measure_source(folder),
        "shards": lambda: measure_source(shards),
        "index": lambda: measure_source(str(work / "shards")),
        "workers": lambda: measure_workers(folder),
        "workers, index": lambda: measure_workers(str(work / "shards")),
        "features, D=128": lambda: measure_features(128),
        "features, D=512": lambda: measure_features(512),
    }
    return cases[case]()


def measure(case: str, work: Path, source: Path, cache: Path) -> dict[str, Any]:
    """Return the result of a case in a fresh process that imports mocokit from `source`."""
    environment = {**os.environ, "PYTHONPATH": str(source), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "2"}
    if case == "start":
        os.environ.update(environment)
        return measure_start(work, source.parent.name)
    command = [sys.executable, __file__, "--here", case, "--work", str(work)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def write_index(work: Path) -> None:
    """Write the index of the shards as `mocokit pack` does, with the checksum of each image."""
    from mocokit.data.sources.shard_index import INDEX_NAME
    from mocokit.data.sources.shards import open_shards

    place = work / "shards" / INDEX_NAME
    if place.exists():
        return
    index = open_shards(str(work / f"shards/shard-{{00000..{NUM_SHARDS - 1:05d}}}.tar")).index
    checksums = [zlib.crc32((work / f"originals/{n}.JPEG").read_bytes()) for n in range(NUM_ORIGINALS)]
    rows = np.concatenate([np.arange(shard, NUM_IMAGES, NUM_SHARDS) for shard in range(NUM_SHARDS)])
    index.members[3] = np.array(checksums)[rows % NUM_ORIGINALS]
    with place.open("wb") as file:
        index.save(file)


def prepare(name: str, work: Path, cache: Path) -> None:
    """Bring index and remembered list into the state that a measurement needs."""
    if "index" in name:
        write_index(work)
    if name == "shards":
        (work / "shards/shard-index.npz").unlink(missing_ok=True)
    if not name.endswith("remembered"):
        shutil.rmtree(cache, ignore_errors=True)
    elif not cache.exists():  # the files must be ten minutes old, and a run before must have listed them
        time.sleep(max(0.0, (work / "complete").stat().st_mtime + 610 - time.time()))
        measure("folder", work, Path(__file__).parents[1] / "src", cache)


def plan(before: Path | None) -> Iterator[tuple[str, str, dict[str, Path]]]:
    """Yield (name, case, sources of the sides) of each measurement, in order."""
    after = {"after": Path(__file__).parents[1] / "src"}
    both = {"before": before.absolute() / "src", **after} if before else after
    yield "torchvision", "torchvision", after
    for case in ("folder", "start", "workers"):
        yield case, case, both
    for case in ("folder", "start"):
        yield f"{case}, remembered", case, after
    for case in ("features, D=128", "features, D=512"):
        yield case, case, after
    for case in ("index", "workers, index", "shards"):
        yield case, case, both


def main() -> None:
    """Make the files, measure each case on both sides, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="checkout of another commit")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks/imagenet_size"))
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="names of measurements; the others stay in the results")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "imagenet_size.json")
    args = parser.parse_args()
    work = args.work.absolute()
    if args.here:
        print(json.dumps(measure_here(args.here, work)))
        return
    import measuring

    make_files(work)
    cache = work / "cache"
    table: dict[str, dict[str, Any]] = {}
    if args.only and args.results.exists():
        table = json.loads(args.results.read_text(encoding="utf-8"))["measured"]
    for name, case, sides in plan(args.before):
        if args.only and name not in args.only:
            continue
        prepare(name, work, cache)
        for side, source in sides.items():
            table.setdefault(name, {})[side] = measure(case, work, source, cache)
            print(name, side, json.dumps(table[name][side]), flush=True)
            measuring.save_result(args.results, {"images": NUM_IMAGES, "measured": table})
    if not args.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
