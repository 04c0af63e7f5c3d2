"""Draw the picture of the README from a finished demo run: nearest neighbours, and kNN accuracies beside baselines.

mocokit demo --out runs/demo
python experiments/readme_picture.py runs/demo docs/pictures/readme.png
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocokit import load_backbone
from mocokit.data.sources.open_source import open_source
from mocokit.data.views import ImageReader, PlainViews
from mocokit.reproduction.figures import new_figure, save_figure
from mocokit.run.demo import evaluate_demo, sample_path

QUERIES = ("brick", "retina", "grass", "cat")
"""One test tile of each of these photographs is shown with its neighbours."""

NEIGHBOURS = 5


def read(part: str, size_px: int, crop_ratio: float) -> tuple[Tensor, list[str]]:
    """Return the tiles (n, 3, S, S) uint8 of a part of the embedded sample, and the name of each one's photograph."""
    source = open_source(sample_path(part))
    assert source.labels is not None
    views = PlainViews(ImageReader(source, max_image_px=10**6, seed=0), size_px=size_px, crop_ratio=crop_ratio)
    pixels, *_ = views.make_batch(range(len(source)), map)
    return pixels, [source.class_names[label] for label in source.labels]


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    loaded = load_backbone(asked.run)
    bank, _ = read("train", loaded.card.image_size, loaded.card.eval_crop_ratio)
    tests, names = read("test", loaded.card.image_size, loaded.card.eval_crop_ratio)
    with torch.no_grad():
        rows = [torch.nn.functional.normalize(loaded.backbone(loaded.pixels(part)), dim=1) for part in (tests, bank)]
    nearest = (rows[0] @ rows[1].T).topk(NEIGHBOURS).indices  # (tests, NEIGHBOURS)
    figure = new_figure(9.6, 3.1)
    halves: Any = figure.subfigures(1, 2, width_ratios=[1.7, 1.0])  # an array; the stubs say one
    left, right = halves
    left.suptitle("A test tile, and the nearest training tiles by pre-trained features", fontsize=9)
    grid = left.subplots(len(QUERIES), 1 + NEIGHBOURS)
    for line, query in zip(grid, QUERIES, strict=True):
        number = [row for row, name in enumerate(names) if name == query][3]
        for axes, tile in zip(line, [tests[number], *bank[nearest[number]]], strict=True):
            axes.imshow(tile.permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].spines[:].set(visible=True, linewidth=2, color="#2a6fbb")
    right.suptitle("kNN accuracy (%) after 2 minutes on 2 CPU cores", fontsize=9)
    axes = right.subplots()
    table = evaluate_demo(asked.run)
    first = next(iter(table[0].accuracy))
    values = [100 * row.accuracy[first] for row in table]
    axes.barh([row.features for row in table], values, color=["#bbbbbb", "#bbbbbb", "#2a6fbb"])
    for place, value in enumerate(values):
        axes.text(value - 1, place, f"{value:.1f}", va="center", ha="right", color="white" if place == 2 else "black")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, asked.out)


if __name__ == "__main__":
    main()
