"""Source of images that are in memory already: PIL images and uint8 arrays."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mocokit.data.decode.decode import is_deep, to_rgb
from mocokit.data.sources.limits import PILLOW_ERRORS
from mocokit.data.sources.sources import RawImage, describe_kind, is_pixels


class ImageList:
    """Images in memory, named "0", "1", and so on; `labels` and `class_names` as in ImageSource.

    uint8 arrays (H, W) or (H, W, 3), RGB, are used as they are. PIL images are turned upright and converted to RGB like
    image files, at the start; each then takes 3 * H * W bytes. Those of mode I;16, I or F keep their samples. Forked
    workers share this memory, spawned ones copy it.

    Raises:
        ValueError: An item is of another kind or can't be read.

    """

    def __init__(
        self,
        images: Sequence[Image.Image | NDArray[np.uint8]],
        *,
        labels: tuple[int, ...] | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        self.pixels = tuple(_to_pixels(image, index) for index, image in enumerate(images))
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the index as text."""
        return str(index)

    def read(self, index: int) -> RawImage:
        """Return the pixels, (H, W) or (H, W, 3); a file for an image of more than 8 bits."""
        return self.pixels[index]


def _to_pixels(image: object, index: int) -> RawImage:
    if isinstance(image, Image.Image):
        try:
            upright = ImageOps.exif_transpose(image)
            if is_deep(upright):  # mapped to 8 bits when it is read, by the value range of all images
                return _tiff(upright)
            # A palette with alpha exists in memory only; `to_rgb` sees transparency as files store it.
            image = np.asarray(to_rgb(upright.convert("RGBA") if upright.has_transparency_data else upright))
        except PILLOW_ERRORS as error:  # opened from a damaged file, whose pixels are read only now
            raise ValueError(f"data=[...]: image {index} can't be read ({error})") from error
    if not is_pixels(image):
        raise ValueError(
            f"data=[...]: image {index} is {describe_kind(image)}; give PIL images or uint8 arrays (H, W) or (H, W, 3)"
        )
    return np.ascontiguousarray(image)


def _tiff(image: Image.Image) -> bytes:
    """Return an image of more than 8 bits as a file, which keeps its samples for the value range of all images."""
    file = BytesIO()
    image.save(file, "TIFF")
    return file.getvalue()
