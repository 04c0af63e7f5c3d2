"""The COCO library that is installed: faster-coco-eval, or else pycocotools; both have the same interface."""

from typing import Any, NamedTuple


class CocoLibrary(NamedTuple):
    """What is used of it."""

    coco: Any
    """Class of a set of annotations."""
    evaluation: Any
    """Class of an evaluation."""
    mask: Any
    """Module that draws and packs masks."""


def load_coco_library(name: str | None = None) -> CocoLibrary:
    """The first that is installed, or the one of that name.

    Raises:
        ValueError: None is; the message names the extra.

    """
    for known, load in (("faster-coco-eval", _faster_coco_eval), ("pycocotools", _pycocotools)):
        if name in (None, known):
            try:
                return load()
            except ModuleNotFoundError:
                continue
    raise ValueError("layout=coco: COCO masks and AP need a COCO library; pip install 'mocokit[detection]'")


def _faster_coco_eval() -> CocoLibrary:
    from faster_coco_eval import COCO, COCOeval_faster, mask

    return CocoLibrary(COCO, COCOeval_faster, mask)


def _pycocotools() -> CocoLibrary:
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return CocoLibrary(COCO, COCOeval, mask)
