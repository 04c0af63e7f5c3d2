"""Augment whole batches after the crop, on any device, with the parameters that recipes.py draws.

`pack_params` turns the drawn parameters of a batch into a short list of steps on the host. A step is one operation on
the images that need it at the same position of their own sequence. So the host never waits for the device in
`augment_batch`. Each operation repeats Pillow's 8-bit arithmetic, including rounding: on photographs, noise and all
2**24 colors, the largest measured difference from `apply_params` is 0 levels, for single operations and whole recipes.

Equality requires that products and sums are rounded one by one and that division is IEEE's. This holds in torch's eager
mode on CPU and CUDA, and for Pillow on x86-64. A compiler that fuses products and sums may change single pixels by one
level or, in hue, by one code.

Shapes: n images of a batch, m images of a step, k applications (image, operation) of all steps, S image size.
"""

import enum
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mocokit.data.augment.recipes import SOLARIZE_FROM, ViewParams

MAX_STEP_IMAGES = 64
"""Largest number of images in a step. An intermediate of 64 images at 224 px takes 64*3*224*224*4 B = 38.5 MB, and the
hue operation holds seven of them at once (measured)."""


class Op(enum.IntEnum):
    """An operation; `Jitter.order` uses the numbers of the first four."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3
    GRAYSCALE = 4
    BLUR = 5
    FLIP = 6
    SOLARIZE = 7


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation on some images of the batch."""

    op: Op
    start: int
    """First application of the step."""
    stop: int
    """Last application of the step plus one."""
    box_radius_px: int = 0
    """Pixels to each side of the center that a blur's box covers with full weight."""


@dataclass(frozen=True, kw_only=True)
class BatchParams:
    """Parameters of a batch's augmentation after the crop: small tensors for the device, steps for the host."""

    rows: Tensor
    """(k,) int64, image of each application. An image occurs at most once in a step."""
    values: Tensor
    """(k, 2) float32: factor of a blend, shift of the hue in 1/255 turns, or the two weights of a blur in 2**-24."""
    steps: tuple[Step, ...]
    num_images: int

    def pin_memory(self) -> "BatchParams":
        """Return the parameters in page-locked memory; torch's DataLoader calls this."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "BatchParams":
        """Return the parameters on `device`; the copy is asynchronous if they are in page-locked memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, move: Callable[[Tensor], Tensor]) -> "BatchParams":
        return replace(self, rows=move(self.rows), values=move(self.values))


_Place = tuple[int, Op, int]
"""(stage, operation, box radius). Steps run in this order; applications with the same place share steps."""


def pack_params(params: Sequence[ViewParams]) -> BatchParams:
    """Return the steps for one view of each image; `params[i]` belongs to image i. The crop is not part of them."""
    places = defaultdict[_Place, list[tuple[int, float, float]]](list)
    for row, view in enumerate(params):
        for place, first, second in _applications(view):
            places[place].append((row, first, second))
    rows = list[int]()
    values = list[tuple[float, float]]()
    steps = list[Step]()
    for (_, op, box_radius_px), applications in sorted(places.items()):
        for start in range(0, len(applications), MAX_STEP_IMAGES):
            chunk = applications[start : start + MAX_STEP_IMAGES]
            stop = len(rows) + len(chunk)
            steps.append(Step(op=op, start=len(rows), stop=stop, box_radius_px=box_radius_px))
            rows += [row for row, _, _ in chunk]
            values += [(first, second) for _, first, second in chunk]
    return BatchParams(
        rows=torch.tensor(rows, dtype=torch.int64),
        values=torch.tensor(values, dtype=torch.float32).view(-1, 2),
        steps=tuple(steps),
        num_images=len(params),
    )


def _applications(view: ViewParams) -> Iterator[tuple[_Place, float, float]]:
    """Yield (place, first value, second value) of each operation on one image.

    Stage 0 is a grayscale before the jitter, 1 to 4 are the jitter, and 5 is a grayscale after it.
    """
    if view.grayscale:
        yield (0 if view.grayscale_first else 5, Op.GRAYSCALE, 0), 0.0, 0.0
    if view.jitter is not None:
        jitter = view.jitter
        factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for stage, number in enumerate(jitter.order, start=1):
            op = Op(number)
            factor = factors[number]
            if factor != (
                0.0 if op is Op.HUE else 1.0
            ):  # as in apply_params: an operation that changes nothing must not round either
                yield (stage, op, 0), float(int(factor * 255)) if op is Op.HUE else factor, 0.0
    if view.blur_radius_px is not None:
        box_radius_px, near, far = _box(view.blur_radius_px)
        yield (6, Op.BLUR, box_radius_px), near, far
    if view.solarize:
        yield (7, Op.SOLARIZE, 0), 0.0, 0.0
    if view.flip:
        yield (8, Op.FLIP, 0), 0.0, 0.0


def _box(blur_radius_px: float) -> tuple[int, int, int]:
    """Return the box filter that Pillow applies three times: (radius, weight inside, weight one pixel beyond).

    Weights are in units of 2**-24. Source: Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended
    box filtering", 2011, eq. 7, 11 and 14, with the same mixture of float and double as Pillow.
    """
    sigma = np.full(1, blur_radius_px, np.float32)  # an array: numpy 1 would promote a float32 scalar to float64
    variance = sigma * sigma / 3
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole: NDArray[np.float32] = np.floor((length - 1.0) / 2.0)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = whole + part
    box_radius_px = int(radius[0])
    near = int((2**24 / (radius * 2 + 1))[0])
    return box_radius_px, near, (2**24 - (2 * box_radius_px + 1) * near) // 2


def augment_batch(images: Tensor, params: BatchParams) -> Tensor:
    """Return the augmented views (n, 3, S, S) uint8 of cropped `images` (n, 3, S, S) uint8 on the same device.

    Raises:
        ValueError: `images` have another shape or type than the images that `params` were packed for.

    """
    if images.dtype != torch.uint8 or images.shape[:2] != (params.num_images, 3):
        raise ValueError(
            f"images={tuple(images.shape)} {images.dtype}: must be ({params.num_images}, 3, S, S) uint8; "
            "pack the parameters of the same images"
        )
    images = images.clone(memory_format=torch.contiguous_format)
    for step in params.steps:
        rows = params.rows[step.start : step.stop]  # (m,)
        values = params.values[step.start : step.stop]  # (m, 2)
        images.index_copy_(0, rows, _apply(step, images.index_select(0, rows), values))
    return images


def _apply(step: Step, images: Tensor, values: Tensor) -> Tensor:
    """Return `images` (m, 3, S, S) uint8 after one operation, with values (m, 2)."""
    first, second = values[:, :, None, None, None].unbind(1)  # (m, 1, 1, 1) each
    match step.op:
        case Op.BRIGHTNESS:
            images = _blend(torch.zeros_like(first), images, first)
        case Op.CONTRAST:
            images = _blend(_mean_luma(images), images, first)
        case Op.SATURATION:
            images = _blend(_luma(images), images, first)
        case Op.HUE:
            images = _turn_hue(images, first.int())
        case Op.GRAYSCALE:
            images = _luma(images).to(torch.uint8).expand_as(images)
        case Op.BLUR:
            images = _blur(images, first.int(), second.int(), step.box_radius_px)
        case Op.SOLARIZE:
            images = torch.where(images < SOLARIZE_FROM, images, 255 - images)
        case Op.FLIP:
            images = images.flip(3)
    return images


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Interpolate from `base` (factor 0) to `images` (factor 1) or beyond; clip and truncate as Pillow does."""
    base = base.float()
    return (base + factor * (images - base)).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Return the ITU-R 601-2 brightness, (m, 1, S, S) int32 in 0..255."""
    red, green, blue = images.int().split(1, dim=1)
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return luma


def _mean_luma(images: Tensor) -> Tensor:
    """Return the mean brightness of each image, (m, 1, 1, 1) int64, rounded half up."""
    num_pixels = images.shape[2] * images.shape[3]
    total = _luma(images).sum(dim=(1, 2, 3), keepdim=True)
    mean: Tensor = (2 * total + num_pixels) // (2 * num_pixels)
    return mean


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Convert RGB to HSV, add `shift` to the hue modulo 256, and convert back, with 8 bits at every stage."""
    hue, saturation, value = _to_hsv(images)
    return _to_rgb((hue + shift) & 255, saturation, value)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (hue, saturation, value), each (m, 1, S, S) int32 in 0..255; the hue of a gray pixel is arbitrary."""
    red, green, blue = images.split(1, dim=1)
    smaller = torch.minimum(red, green)
    larger = torch.maximum(red, green)
    low = torch.minimum(smaller, blue)
    high = torch.maximum(larger, blue)
    middle = torch.maximum(smaller, torch.minimum(larger, blue))
    chroma = high - low
    below = (high - middle) / chroma.clamp(min=1)  # float32 0..1
    sixths = torch.where(  # hue in sixths of a turn, -1..5
        red == high,
        torch.where(green > blue, 1 - below, below - 1),
        torch.where(
            green == high,
            torch.where(red > blue, 1 + below, 3 - below),
            torch.where(green > red, 3 + below, 5 - below),
        ),
    )
    turn = sixths / sixths.new_full(
        (), 6
    )  # a tensor: CUDA would replace division by a Python number with a product by its rounded inverse
    hue = 255 * torch.where(turn < 0, turn + 1, turn)
    return hue.int(), 255 * chroma.int() // high.clamp(min=1), high.int()


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Return RGB (m, 3, S, S) uint8: a channel is value * (1 - saturation * share), its share a trapezoid over hue."""
    offset = 255 * torch.arange(5, 0, -2, device=hue.device, dtype=torch.int32).view(3, 1, 1)  # red, green, blue
    place = (6 * hue + offset) % 1530  # 255 units per sixth of the circle
    share = torch.minimum(place, 1020 - place).clamp_(0, 255)
    return ((value * (255 * 255 - saturation * share) + 32512) // (255 * 255)).to(
        torch.uint8
    )  # rounded to nearest; ties cannot occur


def _blur(images: Tensor, near: Tensor, far: Tensor, box_radius_px: int) -> Tensor:
    """Apply three box blurs along rows and three along columns, each rounded to 8 bits."""
    for dim in (3, 3, 3, 2, 2, 2):
        images = _box_blur(images, dim, near, far, box_radius_px)
    return images


def _box_blur(images: Tensor, dim: int, near: Tensor, far: Tensor, box_radius_px: int) -> Tensor:
    """Blur along `dim`: weight `near` up to the box's radius, `far` one pixel beyond, edge pixels repeated.

    The time grows with the radius.
    """
    size = images.shape[dim]
    reach = box_radius_px + 1
    index = torch.arange(-reach, size + reach, device=images.device).clamp_(0, size - 1)
    padded = images.index_select(dim, index).int()
    left, *inner, right = (padded.narrow(dim, offset, size) for offset in range(2 * reach + 1))
    box = inner[0]
    for pixels in inner[1:]:
        box = box + pixels
    total = near * box + far * (left + right) + 2**23  # up to 255.5 * 2**24: int32 overflows, but its top byte is right
    return (total >> 24).to(torch.uint8)
