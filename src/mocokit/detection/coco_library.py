"""Load the installed COCO library: faster-coco-eval or, if it is missing, pycocotools. Both have the same interface."""

from typing import Any, NamedTuple


class CocoLibrary(NamedTuple):
    """The three parts of a COCO library that we use."""

    coco: Any
    """Class that holds a set of annotations."""
    evaluation: Any
    """Class that runs an evaluation."""
    mask: Any
    """Module that converts masks to run lengths and back."""


def load_coco_library(name: str | None = None) -> CocoLibrary:
    """Return the library called `name`; None: the first one that is installed.

    Raises:
        ValueError: It is not installed.

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
