"""An export, put together: backbone -> target -> proof on real images -> card."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mocokit.data.open_source import open_source
from mocokit.data.sources import ImageSource
from mocokit.data.views import ImageReader, PlainViews
from mocokit.demo import sample_path
from mocokit.engine.run_folder import RunFolder
from mocokit.evaluate.features import draw_indices
from mocokit.evaluate.report_knn import MAX_IMAGE_PX
from mocokit.export.backbone import LoadedBackbone, load_backbone
from mocokit.export.card import describe, write_card
from mocokit.export.proof import BATCH_SIZES, largest_differences
from mocokit.export.targets import Exported, load_target


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export left, and how far it is from ours."""

    files: tuple[Path, ...]
    """The exported files, then the card."""
    largest_difference: dict[str, float]
    """Library and version that read the files -> largest absolute difference of any feature."""
    images: str
    """What the difference was taken on."""
    usage: str
    """A few lines that load it."""
    notes: tuple[str, ...]


def export_run(run: str | Path, *, to: str, out: str | Path, data: str | Path | None = None) -> ExportResult:
    """Write a run's backbone for another library, read it there, and compare the features on real images.

    Args:
        run: Run folder or backbone file.
        to: Target; see `mocokit.export.targets.TARGETS`.
        out: File (or folder, for huggingface) to make.
        data: Images to compare on; None: the run's own where they still are, else the embedded sample.

    Raises:
        ValueError: The target can't hold this backbone, or lacks its library.
        ExportMismatchError: The library computes something else; nothing is kept.

    """
    path = Path(out).expanduser()
    if path.exists():
        raise ValueError(f"out={out}: exists; choose another name")
    export, loaded = load_target(to), load_backbone(run)
    pixels, images = _proof_images(loaded, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        exported = export(loaded, path)
        differences = largest_differences(loaded, exported.readers, pixels)
    except BaseException:
        _remove(path)
        raise
    return _close(loaded, exported, path, target=to, differences=differences, images=images)


def _close(
    loaded: LoadedBackbone, exported: Exported, path: Path, *, target: str, differences: dict[str, float], images: str
) -> ExportResult:
    facts = describe(loaded, exported, target=target, differences=differences, images=images)
    return ExportResult(
        files=(*exported.files, *write_card(path, facts)), largest_difference=differences, images=images,
        usage=exported.usage, notes=exported.notes,
    )  # fmt: skip


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _proof_images(loaded: LoadedBackbone, data: str | Path | None) -> tuple[Tensor, str]:
    """(n, 3, S, S) uint8 images as evaluation reads them, and a word on where they come from."""
    source, name = _open(loaded, data)
    card, count = loaded.card, sum(BATCH_SIZES)
    reader = ImageReader(source, max_image_px=MAX_IMAGE_PX, seed=0)
    views = PlainViews(reader, size_px=card.image_size, crop_ratio=card.eval_crop_ratio)
    pixels, _ = views.__getitems__(draw_indices(len(source), 4 * count, seed=0))  # some may be unreadable
    if len(pixels) < count:
        raise ValueError(f"data: {len(pixels)} of the images can be read, {count} are needed for the comparison")
    return pixels[:count], f"{count} images of {name}"


def _open(loaded: LoadedBackbone, data: str | Path | None) -> tuple[ImageSource, str]:
    if data is not None:
        return open_source(data), Path(data).name
    folder = RunFolder(loaded.path.parent)
    if folder.config.is_file():
        source = folder.load_config().data.source
        try:
            return open_source(source), Path(source).name
        except ValueError:  # moved since: any real image will do
            pass
    return open_source(sample_path("test")), "mocokit's embedded sample"
