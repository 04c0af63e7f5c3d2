"""Fashion-MNIST: pre-train on 60,000 unlabelled images, then test kNN and logistic regression on 10,000 images.

    python experiments/fashion_mnist.py --data DIR --seeds 0 1 2

DIR holds the four IDX files (Debian's package dataset-fashion-mnist: /usr/share/datasets/fashion-mnist). Settings were
chosen on the last 10,000 training images with the first 50,000 as bank; no test image was used for a choice.
"""

import argparse
from pathlib import Path
from typing import Any

import measure

FLAGS = [
    *("--arch", "resnet10_w32", "--model.stem", "imagenet"),
    *("--global-batch-size", "128", "--bn-groups", "4", "--lr", "0.1", "--temperature", "0.2", "--epochs", "10"),
    *("--augment.crop-scale", "0.6", "1"),
    *("--augment.hue", "0", "--augment.saturation", "0", "--augment.grayscale-p", "0"),  # the images are gray
]


def main() -> None:
    """Train and evaluate each seed, and save the results after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/fashion_mnist"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/fashion_mnist.json"))
    args = parser.parse_args()
    images = {part: str(next(args.data.glob(f"{part}-images-idx3-ubyte*"))) for part in ("train", "t10k")}
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        out = args.out / f"seed{seed}"
        minutes = measure.train("moco-v2-small", ["--data", images["train"], "--seed", str(seed), *FLAGS], out)
        accuracy = measure.evaluate(out, images["train"], images["t10k"], seed=seed, logistic=True)
        runs.append({"seed": seed, **minutes, "accuracy": accuracy})
        measure.save(args.results, {"flags": FLAGS, "runs": runs})
    print(measure.table_of([run["accuracy"] for run in runs]))


if __name__ == "__main__":
    main()
