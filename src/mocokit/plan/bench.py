"""Measure what limits a run on this machine and these images: making views, the training step, or both.

Three measurements: the parts of making two views, on one core; the parts of a step, on a batch that is already on the
device; and loader and step together for some seconds, as in a run that writes no files.
"""

import contextlib
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mocokit.config.schema import Config
from mocokit.data.augment.recipes import ViewParams
from mocokit.data.batch import ViewBatch
from mocokit.data.decode.decode import DecodeError, decode
from mocokit.data.loading.allocator import keep_freed_memory
from mocokit.data.loading.loader import count_cores
from mocokit.data.loading.prefetch import on_device
from mocokit.data.pipelines import decode_for_views
from mocokit.data.sources.left_out import describe_source, log_line
from mocokit.data.views import TwoViews, draw_views
from mocokit.distributed.gradients import GradientSum, gradient_sum
from mocokit.engine.device import pick_device
from mocokit.engine.precision import Precision
from mocokit.engine.train import train_step
from mocokit.losses import info_nce
from mocokit.methods.contract import Rows
from mocokit.methods.moco import MoCo
from mocokit.randomness import Purpose, permutation
from mocokit.run.build import Parts, build_batches, build_run
from mocokit.run.build_views import build_views

SAMPLE_IMAGES = 64
WARM_UP_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Costs and rates of one config on one machine."""

    device: str
    cores: int
    workers: int
    precision: str
    global_batch_size: int
    median_megapixels: float
    pixels_ms: dict[str, float]
    """Milliseconds per image, on one core, of each part: read, decode, crop and resize, color and blur."""
    step_ms: dict[str, float]
    """Milliseconds per global batch of each part of the step, in order."""
    loss_ms: float
    """Milliseconds of the loss of a global batch, forward and backward; they are part of `step_ms`."""
    step_images_per_s: float
    """Speed of the step alone, as engine/train.py runs it. On a GPU, `step_ms` adds up to more, because its timer waits
    for the GPU after each part."""
    loader_images_per_s: float
    """Speed of the loader alone."""
    images_per_s: float
    """Speed of loader and step together, as in a run."""
    data_wait_share: float
    """Share of the run's time spent waiting for a batch."""
    advice: tuple[str, ...] = ()

    @property
    def pixels_share(self) -> float:
        """Return the share, 0..1, of making views in the time of views and step done one after the other."""
        pixels = 1 / self.loader_images_per_s
        step = 1 / self.step_images_per_s
        return pixels / (pixels + step)

    @property
    def bound(self) -> str:
        """Return the part that limits the run: "pixels", "step", or "both" if they share the same cores."""
        if 0.1 < self.pixels_share < 0.9 and self.device == "cpu":
            return "both"
        return "pixels" if self.pixels_share > 0.5 else "step"


def bench(config: Config, *, seconds: float = 10.0, on_data: Callable[[str], object] = log_line) -> BenchResult:
    """Measure the step, the loader and both together, each for about `seconds`.

    `on_data` is called with a line about the images: how many, of which classes, what was left out.

    Raises:
        ValueError: A setting, or the data, does not allow the run.

    """
    device = pick_device(config.run.device, local_rank=0)
    keep_freed_memory(device)
    parts = build_run(config, device)
    on_data(f"data: {describe_source(parts.reader.source)}")
    pixels_ms, megapixels = _time_pixels(config, parts)
    first = next(on_device(itertools.islice(build_batches(config, parts, start_step=0, total_steps=1), 1), device))
    step_ms = _time_step(parts, first, seconds)
    rates, waited = _rates(config, parts, first, seconds)
    result = BenchResult(
        device=str(device),
        cores=count_cores(),
        workers=parts.num_workers,
        precision=parts.precision.name,
        global_batch_size=config.data.global_batch_size,
        median_megapixels=megapixels,
        pixels_ms=pixels_ms,
        step_ms=step_ms,
        loss_ms=_time_loss(parts, config.data.global_batch_size),
        step_images_per_s=rates["step"],
        loader_images_per_s=rates["loader"],
        images_per_s=rates["run"],
        data_wait_share=waited,
    )
    return replace(result, advice=tuple(advise(config, result)))


def _time_pixels(config: Config, parts: Parts) -> tuple[dict[str, float], float]:
    """Return the median milliseconds of each part on one core, over SAMPLE_IMAGES images, and the median megapixels."""
    views = build_views(config, parts.reader, crops_only=False)
    costs = list[list[float]]()
    areas = list[float]()
    for index in permutation(config.run.seed, Purpose.SUBSET, len(parts.reader.source))[:SAMPLE_IMAGES].tolist():
        with contextlib.suppress(DecodeError, OSError):  # bad images are counted by the run itself
            milliseconds, area = _time_image(config, views, index)
            costs.append(milliseconds)
            areas.append(area)
    if not costs:
        raise ValueError(f"data={config.data.source}: none of {SAMPLE_IMAGES} images can be read")
    names = ("read", "decode", "crop and resize", "color and blur")
    medians = (statistics.median(column) for column in zip(*costs, strict=True))
    return dict(zip(names, medians, strict=True)), statistics.median(areas)


def _time_image(config: Config, views: TwoViews, index: int) -> tuple[list[float], float]:
    """Return ([read, decode, crop, color] in ms, megapixels) of one image.

    Decoding, cropping and color are one call, so the work is done up to each of them, and the differences are taken.
    """
    limit = config.data.max_image_px
    ranges = views.reader.ranges
    areas = list[float]()
    targets = [rows[0].numpy() for rows in views.empty(1, epoch=config.optim.epochs)]
    drawn = draw_views(views.recipes, config.run.seed, 0, index)

    def draw(height: int, width: int) -> Sequence[ViewParams]:
        areas.append(height * width / 1e6)
        return drawn(height, width)

    marks = [time.perf_counter()]
    raw = views.reader.source.read(index)
    marks.append(time.perf_counter())
    if config.data.pipeline == "fast":
        decode_for_views(raw, draw, *targets, max_image_px=limit, ranges=ranges)
    else:
        decode(raw, max_image_px=limit, ranges=ranges)
    marks.append(time.perf_counter())
    for crops_only in (True, False):
        views.pipeline(raw, draw, *targets, max_image_px=limit, ranges=ranges, crops_only=crops_only)
        marks.append(time.perf_counter())
    read, decoded, cropped, whole = (1000 * (after - before) for before, after in itertools.pairwise(marks))
    return [read, decoded, max(0.0, cropped - decoded), max(0.0, whole - cropped)], areas[0]


def _time_step(parts: Parts, batch: ViewBatch, seconds: float) -> dict[str, float]:
    """Return the median milliseconds of each part of a step, in order."""
    stages: dict[str, list[float]] = {}
    end = time.perf_counter() + seconds
    for step in itertools.count():
        timer = StepTimer(parts.device)
        train_step(
            parts.method,
            batch,
            step,
            gradients=GradientSum(),
            optimizer=parts.optimizer,
            precision=parts.precision,
            lap=timer.lap,
        )
        for name, milliseconds in timer.spent_ms.items():
            stages.setdefault(name, []).append(milliseconds)
        if step >= 2 * WARM_UP_STEPS and time.perf_counter() > end:
            break
    return {name: statistics.median(values[WARM_UP_STEPS:]) for name, values in stages.items()}


class StepTimer:
    """Stopwatch for the parts of a step. On a GPU, a part ends when all work launched so far is done."""

    def __init__(self, device: torch.device) -> None:
        self.spent_ms: dict[str, float] = {}
        self._device = device
        self._last_s = _now(device)

    def lap(self, part: str) -> None:
        """Add the time since the last call to `part`."""
        now_s = _now(self._device)
        self.spent_ms[part] = self.spent_ms.get(part, 0.0) + 1000 * (now_s - self._last_s)
        self._last_s = now_s


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _time_loss(parts: Parts, num_rows: int) -> float:
    """Return the median milliseconds of the loss of a global batch, forward and backward; 0 without a queue."""
    if not isinstance(parts.method, MoCo):
        return 0.0
    queue = parts.method.queue
    times = list[float]()
    q = queue.newest(num_rows).clone().requires_grad_()
    for _ in range(7):
        start = _now(parts.device)
        loss = info_nce(q, queue.newest(num_rows), queue.negatives, temperature=parts.method.temperature)
        loss.row_losses.sum().backward()
        times.append(1000 * (_now(parts.device) - start))
    return statistics.median(times)


def trainer(parts: Parts) -> Callable[[ViewBatch, int], tuple[Rows, Tensor]]:
    """Return `train_step` as a function of a batch and its step alone."""
    return functools.partial(
        train_step,
        parts.method,
        gradients=gradient_sum(parts.method),
        optimizer=parts.optimizer,
        precision=parts.precision,
    )


def _rates(config: Config, parts: Parts, batch: ViewBatch, seconds: float) -> tuple[dict[str, float], float]:
    """Return images per second of the step, the loader and the run (both), and the share of the run spent waiting."""
    train = trainer(parts)
    device = parts.device
    first_batches = 1 + parts.num_workers  # workers make their first batches side by side, so these arrive at once
    step, _ = _consume(itertools.repeat(batch), train, seconds, device)
    alone, _ = _consume(_loader(config, parts), lambda batch, step: None, seconds, device, warm_up=first_batches)
    together, waited = _consume(
        on_device(_loader(config, parts), device),
        train,
        seconds,
        device,
        warm_up=1 if device.type == "cpu" else first_batches,
    )
    return {"step": step, "loader": alone, "run": together}, waited


def _loader(config: Config, parts: Parts) -> Iterator[ViewBatch]:
    """Return a new loader for each measurement: workers run at the pace of the one who reads their batches."""
    return iter(build_batches(config, parts, start_step=0, total_steps=10**9))


def _consume(
    batches: Iterator[ViewBatch],
    use: Callable[[ViewBatch, int], object],
    seconds: float,
    device: torch.device,
    *,
    warm_up: int = 1,
) -> tuple[float, float]:
    """Return (images per second, share of the time spent waiting for a batch).

    Measures for `seconds`, and for one batch at least; the first `warm_up` batches don't count.
    """
    for step in range(warm_up):
        use(next(batches), step)
    num_images = 0
    waited = 0.0
    start = _now(device)
    for step in itertools.count(warm_up):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        use(batch, step)
        num_images += len(batch.image_ids)
        if time.perf_counter() - start > seconds:
            break
    elapsed = _now(device) - start
    return num_images / elapsed, waited / elapsed


def advise(config: Config, result: BenchResult) -> list[str]:
    """Return advice on settings that would speed the run up, most useful first."""
    pixels = result.pixels_ms
    advice = list[str]()
    whole = sum(pixels.values())
    if result.bound == "pixels" or (result.bound == "both" and result.pixels_share > 0.2):
        if config.data.pipeline == "reference":
            advice.append("--data.pipeline fast makes the same views several times as fast")
        if pixels["decode"] > whole / 2 and result.median_megapixels * 1e6 > 6 * config.data.image_size**2:
            short = 64 * math.ceil(2 * config.data.image_size / 64)
            advice.append(
                f"decoding is {pixels['decode'] / whole:.0%} of the pixel work: `mocokit pack {config.data.source} OUT "
                f"--short-side {short}` once, then --data OUT"
            )
        if pixels["read"] > whole / 3:
            advice.append(f"reading is {pixels['read'] / whole:.0%} of the pixel work: `mocokit pack` to a local disk")
        if result.workers < result.cores:
            advice.append(f"--workers {result.cores}: {result.workers} of {result.cores} cores make views")
        if not result.device.startswith("cpu") and config.augment.on == "cpu":
            advice.append("--augment-on device leaves color and blur to the GPU")
    if (
        result.bound != "pixels"
        and result.precision == "fp32"
        and Precision("auto", torch.device(result.device)).name == "bf16"
    ):
        advice.append(
            "try --precision bf16: this hardware has it (not what the papers used; small networks gain little)"
        )
    if result.bound == "step" and config.run.compile == "off" and not result.device.startswith("cpu"):
        advice.append("try --run.compile on: fewer, larger kernels")
    return advice or ["nothing here: the step is at what this device does with these settings"]
