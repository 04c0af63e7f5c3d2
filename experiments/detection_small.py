"""Detection at small scale: five trials from random weights and from a run, on clip art pasted on photographs.

    python experiments/detection_small.py --objects DIR [--run RUN]

DIR holds one folder a class, with PNG files that have transparency (Debian's package openclipart-png:
/usr/share/openclipart/png). Backgrounds are tiles of the embedded sample's photographs. The recipe is VOC's at 128 px,
batch 2 and 600 iterations, with the learning rate of batch 16 and fewer regions. Its length was chosen on the training
images; nothing was chosen on the test images. RUN must have the same architecture. Finished trials in --out are not
repeated.
"""

import argparse
import io
import json
import shutil
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import measure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for tests.pasted_objects

from tests.pasted_objects import write_pasted_voc

from mocokit.detection.data_sets import open_voc
from mocokit.detection.recipes import VOC_C4_24K, DetectionRecipe
from mocokit.detection.trials import Trial, TrialPlan, run_trials
from mocokit.run.demo import sample_path

BACKGROUNDS = ("grass", "brick", "gravel", "coffee")
PICTURES_PER_CLASS = 4


def recipe_of(iterations: int) -> DetectionRecipe:
    """Return VOC's recipe, made small enough for a CPU."""
    return replace(
        VOC_C4_24K.rescaled(2).at_short_side(128).shortened(iterations),
        lr=0.02,
        warmup_iterations=20,
        rpn_before_nms=(200, 200),
        rpn_after_nms=(64, 64),
        regions_per_image=16,
        precise_bn_iterations=30,
    )


def cutouts(folder: Path) -> list[Image.Image]:
    """Return the first PICTURES_PER_CLASS pictures of a folder with transparency and a side ratio of 0.6 to 1.6."""
    found = list[Image.Image]()
    for path in sorted(folder.glob("*.png")):
        picture = Image.open(path).convert("RGBA")
        box = picture.getchannel("A").getbbox()
        if box is None or picture.getchannel("A").getextrema()[0] == 255:
            continue
        width = box[2] - box[0]
        height = box[3] - box[1]
        if 0.6 < width / height < 1.6:
            found.append(picture.crop(box).resize((96, round(96 * height / width))))
        if len(found) == PICTURES_PER_CLASS:
            return found
    raise ValueError(f"objects={folder}: fewer than {PICTURES_PER_CLASS} usable PNG files with transparency")


def photographs(part: str) -> list[Image.Image]:
    """Return the background tiles of one part of the embedded sample."""
    with zipfile.ZipFile(sample_path(part)) as archive:
        names = [name for name in archive.namelist() if name.startswith(BACKGROUNDS)]
        return [Image.open(io.BytesIO(archive.read(name))) for name in names]


def make_set(root: Path, objects: Path, classes: list[str], *, num_train: int, num_test: int) -> None:
    """Write the data set as VOC folders. Training and test images share the objects but not the backgrounds."""
    shutil.rmtree(root, ignore_errors=True)
    pictures = {name: cutouts(objects / name) for name in classes}
    for part, split, count, seed in (("train", "2007_trainval", num_train, 0), ("test", "2007_test", num_test, 1)):
        write_pasted_voc(
            root, split, objects=pictures, photographs=photographs(part), num_images=count, size_px=128, seed=seed
        )


def table_of(results: dict[str, list[Trial]]) -> str:
    """Return a Markdown table: one row a backbone, mean and standard deviation over its trials."""
    names = list(next(iter(results.values()))[0].metrics)
    columns = [f"{name} on {part}" for part in ("training images", "test images") for name in names]
    lines = ["| backbone | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for backbone, trials in results.items():
        values = [[trial.train_metrics[name] for trial in trials] for name in names]
        values += [[trial.metrics[name] for trial in trials] for name in names]
        lines.append(f"| {backbone} | " + " | ".join(map(measure.mean_and_spread, values)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the data set, run the trials, and save the results after each backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=Path, required=True)
    parser.add_argument("--classes", nargs="+", default=["food", "transportation"])
    parser.add_argument("--run", help="run folder or backbone file of the same architecture")
    parser.add_argument("--arch", default="resnet10_w16")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--images", type=int, nargs=2, default=[8, 16], help="training and test images")
    parser.add_argument("--out", type=Path, default=Path("runs/detection_small"))
    parser.add_argument("--results", type=Path, default=Path("experiments/results/detection_small.json"))
    args = parser.parse_args()
    data = args.out / "voc"
    make_set(data, args.objects, args.classes, num_train=args.images[0], num_test=args.images[1])
    train = open_voc(data, ["2007_trainval"])
    recipe = recipe_of(args.iterations)
    test = open_voc(data, ["2007_test"], class_names=train.class_names)
    results = dict[str, list[Trial]]()
    for name, run in (("random", "random"), ("pre-trained", args.run)):
        if run is None:
            continue
        plan = TrialPlan(
            run=run,
            arch=args.arch,
            train=train.for_training(),
            test=test,
            recipe=recipe,
            seed=0,
            judge_training_images=True,
            device_name="cpu",
            num_workers=0,
        )
        results[name] = run_trials(plan, num_trials=args.trials, out=args.out / name, on_iteration=_report)
        measure.save(
            args.results,
            {
                "arch": args.arch,
                "classes": args.classes,
                "recipe": json.loads(json.dumps(asdict(recipe))),
                "num_images": args.images,
                "table": table_of(results).splitlines(),
                "trials": {key: [asdict(trial) for trial in rows] for key, rows in results.items()},
            },
        )
    print(table_of(results))


def _report(trial: int, done: int, loss: float) -> None:
    if done % 50 == 0:
        print(f"trial {trial + 1}: iteration {done}, loss {loss:.3f}", flush=True)


if __name__ == "__main__":
    main()
