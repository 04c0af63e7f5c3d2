"""Compare training with the fast and the reference pipeline, 3 seeds each, on three data sets.

    python experiments/fast_path.py --fashion-mnist DIR

The fast pipeline decodes large JPEG files at a fraction of their size. Where it never does so (the embedded sample,
Fashion-MNIST), views are bit-equal, so the weights must be too; the script checks that. In the
third data set, the embedded sample enlarged 8x as JPEG files, it does so for nearly every image.
"""

import argparse
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import measure
import torch
from fashion_mnist import FLAGS as FASHION_FLAGS
from PIL import Image
from safetensors.torch import load_file

from mocokit.config.toml import to_flags
from mocokit.data.pipelines import PIPELINES
from mocokit.run.demo import SETTINGS, sample_path


def enlarge(folder: Path) -> Path:
    """Write the sample's train part as JPEG files of 384 px in class folders, and return the folder."""
    with zipfile.ZipFile(sample_path("train")) as archive:
        for name in archive.namelist():
            path = (folder / name).with_suffix(".jpg")
            if not path.exists() and not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                tile = Image.open(BytesIO(archive.read(name))).convert("RGB")
                tile.resize((384, 384), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def compare(
    name: str, data: str, bank: str, test: str, flags: list[str], *, seeds: list[int], out: Path
) -> list[dict[str, Any]]:
    """Train and evaluate each pipeline with each seed."""
    runs: list[dict[str, Any]] = []
    for seed in seeds:
        weights: dict[str, dict[str, torch.Tensor]] = {}
        for pipeline in PIPELINES:
            run = out / f"{name}_{pipeline}_seed{seed}"
            extra = ["--data", data, "--seed", str(seed), "--data.pipeline", pipeline]
            minutes = measure.train("moco-v2-small", [*flags, *extra], run)
            weights[pipeline] = load_file(run / "backbone.safetensors")
            accuracy = measure.evaluate(run, bank, test, seed=seed, logistic=False)["pre-trained"]
            runs.append({"pipeline": pipeline, "seed": seed, **minutes, "accuracy": accuracy})
        fast = weights["fast"]
        reference = weights["reference"]
        equal = all(torch.equal(fast[key], reference[key]) for key in reference)
        for row in runs[-2:]:
            row["weights_bit_equal"] = equal
        print(f"{name}, seed {seed}: weights bit-equal: {equal}", flush=True)
    return runs


def table_of(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return a Markdown table: one row for each data set and pipeline."""
    protocols = list(next(iter(results.values()))[0]["accuracy"])
    lines = [f"| data | pipeline | {' | '.join(protocols)} | weights bit-equal |", "|---" * (len(protocols) + 3) + "|"]
    for name, runs in results.items():
        for pipeline in PIPELINES:
            own = [run for run in runs if run["pipeline"] == pipeline]
            cells = [measure.mean_and_spread([run["accuracy"][protocol] for run in own]) for protocol in protocols]
            equal = "yes" if all(run["weights_bit_equal"] for run in own) else "no"
            lines.append(f"| {name} | {pipeline} | {' | '.join(cells)} | {equal} |")
    return "\n".join(lines)


def main() -> None:
    """Run the three comparisons and save the results after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--fashion-epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/fast_path"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/fast_path.json"))
    args = parser.parse_args()
    train = str(sample_path("train"))
    test = str(sample_path("test"))
    demo = [*to_flags(SETTINGS), "--epochs", str(args.epochs)]
    cases = {
        "sample enlarged 8x": (str(enlarge(args.out / "enlarged")), train, test, demo),
        "sample": (train, train, test, demo),
    }
    if args.fashion_mnist:
        images = [str(next(args.fashion_mnist.glob(f"{part}-images-idx3-ubyte*"))) for part in ("train", "t10k")]
        cases["Fashion-MNIST"] = (
            images[0],
            images[0],
            images[1],
            [*FASHION_FLAGS, "--epochs", str(args.fashion_epochs)],
        )
    results: dict[str, list[dict[str, Any]]] = {}
    for name, (data, bank, queries, flags) in cases.items():
        results[name] = compare(name.replace(" ", "_"), data, bank, queries, flags, seeds=args.seeds, out=args.out)
        measure.save(args.results, {"epochs": args.epochs, "fashion_epochs": args.fashion_epochs, "results": results})
    print(table_of(results))


if __name__ == "__main__":
    main()
