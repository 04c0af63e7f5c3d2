"""Export a run: load its backbone, write it for a target, prove it on real images, write its card."""

import copy
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from mocokit.data.sources.left_out import describe_source, log_line
from mocokit.data.sources.limits import MAX_IMAGE_PX
from mocokit.data.sources.open_source import open_source, with_columns
from mocokit.data.sources.sources import ImageSource
from mocokit.data.value_range import measure_ranges
from mocokit.data.views import ImageReader, PlainViews
from mocokit.engine.backbone_file import LoadedBackbone, load_backbone
from mocokit.engine.run_folder import RunFolder
from mocokit.evaluate.features import draw_indices
from mocokit.export.card import describe, write_card
from mocokit.export.proof import BATCH_SIZES, Proof, prove
from mocokit.export.targets import Exported, Target, load_target
from mocokit.run.demo import sample_path
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """Files of an export, and how far their features are from mocokit's."""

    exported: Exported
    card_files: tuple[Path, ...]
    """The card as Markdown and as JSON."""
    proof: Proof
    images: str
    """Description of the images that the features were compared on."""


def export_run(
    run: str | Path,
    *,
    to: str | Target,
    out: str | Path,
    data: str | Path | None = None,
    backbone: nn.Module | None = None,
    on_data: Callable[[str], object] = log_line,
) -> ExportResult:
    """Write a run's backbone for another library, load it there, and compare the features on real images.

    Args:
        run: Run folder or backbone file.
        to: Name of a target (see `mocokit.export.targets`), or a target itself.
        out: File to make; a folder for huggingface and detectron2.
        data: Images to compare on; None: the run's own if they are still there, else the embedded sample.
        backbone: Module that takes the weights, for a run that was pre-trained with a module of your own.
        on_data: Called with a line about these images, and what was left out of them.

    Raises:
        ValueError: The target is unknown, can't hold this backbone, or lacks its library.
        ExportMismatchError: The library computes other features; nothing is kept.

    """
    path = Path(out).expanduser()
    require(not path.exists(), "out", out, "exists; choose another name")
    target = load_target(to) if isinstance(to, str) else to
    name = to if isinstance(to, str) else getattr(to, "__name__", type(to).__name__)
    loaded = load_backbone(run, backbone=backbone)
    pixels, images = _proof_images(loaded, data, on_data)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # A copy: a target that folds or casts layers in place must not change what it is compared with.
        exported = target(replace(loaded, backbone=copy.deepcopy(loaded.backbone)), path)
        proof = prove(loaded, exported.readers, pixels)
        facts = describe(loaded, exported, target=name, proof=proof, images=images)
    except BaseException:
        _remove(path)
        raise
    return ExportResult(exported=exported, card_files=write_card(path, facts), proof=proof, images=images)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _proof_images(
    loaded: LoadedBackbone, data: str | Path | None, on_data: Callable[[str], object]
) -> tuple[Tensor, str]:
    """Return (n, 3, S, S) uint8 images, cropped as for evaluation, and a description of where they come from."""
    source, name = _open(loaded, data, on_data)
    on_data(f"{name}: {describe_source(source)}")
    card = loaded.card
    count = sum(BATCH_SIZES)
    measured = measure_ranges(source, max_image_px=MAX_IMAGE_PX, seed=0, known=card.value_ranges)
    reader = ImageReader(source, max_image_px=MAX_IMAGE_PX, seed=0, ranges=measured.ranges)
    views = PlainViews(reader, size_px=card.image_size, crop_ratio=card.eval_crop_ratio)
    # Four times as many as needed, since some may be unreadable.
    pixels, *_ = views.make_batch(draw_indices(len(source), 4 * count, seed=0), map)
    message = f"{len(pixels)} of its images can be read, the comparison needs {count}; name other images with --data"
    require(len(pixels) >= count, "data", name, message)
    return pixels[:count], f"{count} images of {name}"


def _open(loaded: LoadedBackbone, data: str | Path | None, on_data: Callable[[str], object]) -> tuple[ImageSource, str]:
    """Return the images to compare on and their name: `data`, else the run's own, else the embedded sample."""
    if data is not None:
        return open_source(data), Path(data).name
    folder = RunFolder(loaded.path.parent)
    if folder.config.is_file():
        settings = tomllib.loads(folder.read_config())["data"]
        source = settings["source"]
        try:
            paths = with_columns(source, path_column=settings.get("path_column", ""))
            return open_source(paths), Path(source).name
        except (ValueError, OSError) as error:  # moved or deleted since; the sample proves the same
            on_data(f"{error}; compared on mocokit's embedded sample instead, or name the images with --data")
    return open_source(sample_path("test")), "mocokit's embedded sample"
