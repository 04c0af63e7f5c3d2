"""The augmentation of `augment.py` after the crop, whole batches at a time on any device, from the same draws.

`pack_params` turns a batch's draws into a short plan on the host: one step is one operation on those images that need
it at that place of their own order. So `augment_batch` never waits for the device to learn what to do. Each operation
repeats Pillow's 8-bit arithmetic, roundings included: on photographs, noise and all 2**24 colors the largest measured
difference from `apply_params` is 0 levels, for each operation alone and for the papers' recipes.

Equality needs multiplication and addition rounded one by one and IEEE division, as in torch's eager mode on CPU and
CUDA and in Pillow on x86-64; a compiler that fuses them may move single pixels by a level or, in hue, a code.

Shapes: n images of a batch, m images and k applications of steps, S image size.
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
"""Images of one step: 64*3*224*224*4 B = 38.5 MB an intermediate, of which hue holds seven at once (measured)."""


class Op(enum.IntEnum):
    """An operation; the first four have their numbers in `Jitter.order`."""

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
    """One operation on some of the images."""

    op: Op
    start: int
    """The step's applications are `start` .. `stop - 1`."""
    stop: int
    box_radius_px: int = 0
    """Pixels that a blur's box reaches to either side with full weight."""


@dataclass(frozen=True, kw_only=True)
class BatchParams:
    """What happens to each image of a batch after its crop: two small tensors for the device, a plan for the host."""

    rows: Tensor
    """(k,) int64, the image of each application; no image twice in a step."""
    values: Tensor
    """(k, 2) float32: a blend's factor, hue's shift in codes of 1/255 turn, or blur's two weights in 2**-24."""
    steps: tuple[Step, ...]
    num_images: int

    def pin_memory(self) -> "BatchParams":
        """The same parameters in page-locked memory; called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def to(self, device: torch.device) -> "BatchParams":
        """The same parameters on `device`, copied without waiting when pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, move: Callable[[Tensor], Tensor]) -> "BatchParams":
        return replace(self, rows=move(self.rows), values=move(self.values))


_Place = tuple[int, Op, int]
"""(stage, operation, box radius): steps run in this order, and what shares a place shares steps."""


def pack_params(params: Sequence[ViewParams]) -> BatchParams:
    """The plan of one view of a batch, `params[i]` being the draw of image i; crops are left to the caller."""
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
    """(place, values) of each operation on one image; stage 0 is an early grayscale, 1 to 4 are the jitter."""
    if view.grayscale:
        yield (0 if view.grayscale_first else 5, Op.GRAYSCALE, 0), 0.0, 0.0
    if view.jitter is not None:
        jitter = view.jitter
        factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for stage, number in enumerate(jitter.order, start=1):
            op = Op(number)
            factor = factors[number]
            if factor != (0.0 if op is Op.HUE else 1.0):  # as in apply_params, "no change" skips the roundings too
                yield (stage, op, 0), float(int(factor * 255)) if op is Op.HUE else factor, 0.0
    if view.blur_radius_px is not None:
        box_radius_px, near, far = _box(view.blur_radius_px)
        yield (6, Op.BLUR, box_radius_px), near, far
    if view.solarize:
        yield (7, Op.SOLARIZE, 0), 0.0, 0.0
    if view.flip:
        yield (8, Op.FLIP, 0), 0.0, 0.0


def _box(blur_radius_px: float) -> tuple[int, int, int]:
    """The box that Pillow applies three times: (radius, weight within it, weight one pixel farther), in 2**-24.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011, eq. 7, 11 and
    14, in Pillow's mixture of float and double.
    """
    sigma = np.full(1, blur_radius_px, np.float32)  # an array stays float32 by the promotion rules of numpy 1 and 2
    variance = sigma * sigma / 3
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole: NDArray[np.float32] = np.floor((length - 1.0) / 2.0)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = whole + part
    box_radius_px = int(radius[0])
    near = int((2**24 / (radius * 2 + 1))[0])
    return box_radius_px, near, (2**24 - (2 * box_radius_px + 1) * near) // 2


def augment_batch(images: Tensor, params: BatchParams) -> Tensor:
    """The views of cropped `images` (n, 3, S, S) uint8 that `params` describes, likewise; both on one device.

    Raises:
        ValueError: `images` are of another kind or number than `params` are made for.

    """
    if images.dtype != torch.uint8 or images.shape[:2] != (params.num_images, 3):
        raise ValueError(
            f"images={tuple(images.shape)} {images.dtype}: must be ({params.num_images}, 3, S, S) uint8; "
            "pack the parameters of the same images"
        )
    images = images.clone(memory_format=torch.contiguous_format)
    for step in params.steps:
        rows = params.rows[step.start : step.stop]  # (m,), (m, 2)
        values = params.values[step.start : step.stop]
        images.index_copy_(0, rows, _apply(step, images.index_select(0, rows), values))
    return images


def _apply(step: Step, images: Tensor, values: Tensor) -> Tensor:
    """(m, 3, S, S) uint8 -> (m, 3, S, S) uint8."""
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
    """Away from `base` for factors above 1, truncated as Pillow does."""
    base = base.float()
    return (base + factor * (images - base)).clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """ITU-R 601-2 brightness, (m, 1, S, S) int32 in 0..255."""
    red, green, blue = images.int().split(1, dim=1)
    luma: Tensor = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return luma


def _mean_luma(images: Tensor) -> Tensor:
    """(m, 1, 1, 1) int64, rounded half up."""
    num_pixels = images.shape[2] * images.shape[3]
    total = _luma(images).sum(dim=(1, 2, 3), keepdim=True)
    mean: Tensor = (2 * total + num_pixels) // (2 * num_pixels)
    return mean


def _turn_hue(images: Tensor, shift: Tensor) -> Tensor:
    """RGB -> HSV, hue + `shift` modulo 256, -> RGB, every stage in 8 bits."""
    hue, saturation, value = _to_hsv(images)
    return _to_rgb((hue + shift) & 255, saturation, value)


def _to_hsv(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hue, saturation, value), (m, 1, S, S) int32 in 0..255 each; the hue of a gray pixel means nothing."""
    red, green, blue = images.split(1, dim=1)
    smaller = torch.minimum(red, green)
    larger = torch.maximum(red, green)
    low = torch.minimum(smaller, blue)
    high = torch.maximum(larger, blue)
    middle = torch.maximum(smaller, torch.minimum(larger, blue))
    chroma = high - low
    below = (high - middle) / chroma.clamp(min=1)  # float32 0..1
    sixths = torch.where(  # -1..5 sixths of a turn
        red == high,
        torch.where(green > blue, 1 - below, below - 1),
        torch.where(
            green == high,
            torch.where(red > blue, 1 + below, 3 - below),
            torch.where(green > red, 3 + below, 5 - below),
        ),
    )
    turn = sixths / sixths.new_full((), 6)  # by a Python number, CUDA would multiply with its rounded inverse
    hue = 255 * torch.where(turn < 0, turn + 1, turn)
    return hue.int(), 255 * chroma.int() // high.clamp(min=1), high.int()


def _to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(m, 3, S, S) uint8; a channel is value * (1 - saturation * share), its share being a trapezoid over hue."""
    offset = 255 * torch.arange(5, 0, -2, device=hue.device, dtype=torch.int32).view(3, 1, 1)  # red, green, blue
    place = (6 * hue + offset) % 1530  # 255 a sextant
    share = torch.minimum(place, 1020 - place).clamp_(0, 255)
    return ((value * (255 * 255 - saturation * share) + 32512) // (255 * 255)).to(torch.uint8)  # rounded: ties can't be


def _blur(images: Tensor, near: Tensor, far: Tensor, box_radius_px: int) -> Tensor:
    """Three boxes along each row, then three along each column, each rounded to 8 bits."""
    for dim in (3, 3, 3, 2, 2, 2):
        images = _box_blur(images, dim, near, far, box_radius_px)
    return images


def _box_blur(images: Tensor, dim: int, near: Tensor, far: Tensor, box_radius_px: int) -> Tensor:
    """Weight `near` up to the box's radius, `far` one pixel beyond, edges repeated; time grows with the radius."""
    size = images.shape[dim]
    reach = box_radius_px + 1
    index = torch.arange(-reach, size + reach, device=images.device).clamp_(0, size - 1)
    padded = images.index_select(dim, index).int()
    left, *inner, right = (padded.narrow(dim, offset, size) for offset in range(2 * reach + 1))
    box = inner[0]
    for pixels in inner[1:]:
        box = box + pixels
    total = near * box + far * (left + right) + 2**23  # up to 255.5 * 2**24: wraps int32, its top byte is right
    return (total >> 24).to(torch.uint8)
