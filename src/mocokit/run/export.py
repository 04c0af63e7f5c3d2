"""An export, put together: backbone -> target -> proof on real images -> card."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mocokit.config.schema import DataConfig
from mocokit.config.toml import from_toml
from mocokit.data.sources.open_source import open_source
from mocokit.data.sources.sources import ImageSource
from mocokit.data.views import ImageReader, PlainViews
from mocokit.engine.backbone_file import LoadedBackbone, load_backbone
from mocokit.engine.run_folder import RunFolder
from mocokit.evaluate.features import draw_indices
from mocokit.export.card import describe, write_card
from mocokit.export.proof import BATCH_SIZES, Proof, prove
from mocokit.export.targets import Exported, load_target
from mocokit.run.demo import sample_path


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export left, and how far it is from ours."""

    exported: Exported
    card_files: tuple[Path, ...]
    """The card, for people and for programs."""
    proof: Proof
    images: str
    """What the difference was taken on."""


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
    export = load_target(to)
    loaded = load_backbone(run)
    pixels, images = _proof_images(loaded, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        exported = export(loaded, path)
        proof = prove(loaded, exported.readers, pixels)
    except BaseException:
        _remove(path)
        raise
    facts = describe(loaded, exported, target=to, proof=proof, images=images)
    return ExportResult(exported=exported, card_files=write_card(path, facts), proof=proof, images=images)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _proof_images(loaded: LoadedBackbone, data: str | Path | None) -> tuple[Tensor, str]:
    """(n, 3, S, S) uint8 images as evaluation reads them, and a word on where they come from."""
    source, name = _open(loaded, data)
    card = loaded.card
    count = sum(BATCH_SIZES)
    reader = ImageReader(source, max_image_px=DataConfig.max_image_px, seed=0)
    views = PlainViews(reader, size_px=card.image_size, crop_ratio=card.eval_crop_ratio)
    pixels, _ = views.make_batch(draw_indices(len(source), 4 * count, seed=0), map)  # some may be unreadable
    if len(pixels) < count:
        raise ValueError(f"data: {len(pixels)} of the images can be read, {count} are needed for the comparison")
    return pixels[:count], f"{count} images of {name}"


def _open(loaded: LoadedBackbone, data: str | Path | None) -> tuple[ImageSource, str]:
    if data is not None:
        return open_source(data), Path(data).name
    folder = RunFolder(loaded.path.parent)
    if folder.config.is_file():
        source = from_toml(folder.read_config()).data.source
        try:
            return open_source(source), Path(source).name
        except ValueError:  # moved since: any real image will do
            pass
    return open_source(sample_path("test")), "mocokit's embedded sample"
