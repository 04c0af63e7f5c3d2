"""Build the objects of a run from its config: images, method, optimizer, views, monitor. Writes no file.

Only this file, build_images.py and build_views.py take a config apart: the objects that they build get plain arguments.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.data.batch import ViewBatch
from mocokit.data.decode.deep import ValueRanges
from mocokit.data.loading.loader import BatchOrder, build_loader, choose_workers, own_cores, steps_per_epoch
from mocokit.data.sources.sources import ImageSource
from mocokit.data.statistics import measure_mean_std
from mocokit.data.value_range import MeasuredRanges
from mocokit.data.views import ImageReader
from mocokit.distributed.fsdp import shard
from mocokit.engine.backbone_file import OWN, BackboneCard
from mocokit.engine.compilation import should_compile
from mocokit.engine.numerics import NUMERICS
from mocokit.engine.optimizer import build_optimizer
from mocokit.engine.precision import Precision
from mocokit.engine.run_folder import LOGGER
from mocokit.engine.schedules import learning_rate
from mocokit.evaluate.features import EvaluationView
from mocokit.evaluate.knn import KnnProtocol
from mocokit.methods import method_of
from mocokit.methods.contract import Method, MethodInputs, RunFacts
from mocokit.methods.groups import GroupLayout
from mocokit.nets.backbones import (
    build_backbone,
    build_seeded,
    feature_dim,
    require_image_size,
    zero_init_residual,
)
from mocokit.nets.encoder import Encoder
from mocokit.nets.grouped_batchnorm import has_batchnorm
from mocokit.nets.patches import CombinedPatches, require_patches
from mocokit.nets.pixels import PixelNormalize
from mocokit.nets.vit_moco_v3 import freeze_patch_embed, init_as_moco_v3
from mocokit.randomness import Purpose, torch_seed
from mocokit.run.build_images import find_ranges, find_source, find_test_source
from mocokit.run.build_views import build_views, view_size
from mocokit.run.monitor import Monitor, build_monitor
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class Given:
    """Objects that the caller gave instead of naming them in the config."""

    backbone: nn.Module | None = None
    """(N, 3, H, W) -> (N, D); mocokit.nets.backbones.declare_feature_dim gives D."""
    source: ImageSource | None = None
    """Training images."""
    test_source: ImageSource | None = None
    """Images that the monitor classifies, of a run that is resumed; None: see the config."""
    value_ranges: ValueRanges | None = None
    """Value ranges of the run that is resumed; None: measure them."""

    def named_in(self, config: Config) -> Config:
        """Return the config with the names of these objects in place of model.arch and data.source."""
        if self.backbone is not None:
            model = replace(config.model, arch=OWN + type(self.backbone).__name__, stem="imagenet")
            config = replace(config, model=model)
        if self.source is not None:
            config = replace(config, data=replace(config.data, source=OWN + type(self.source).__name__))
        return config


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects of a run, before any file is written."""

    reader: ImageReader
    method: Method[Any]
    optimizer: torch.optim.Optimizer
    precision: Precision
    device: torch.device
    steps_per_epoch: int
    total_steps: int
    card: BackboneCard
    monitor: Monitor | None
    """kNN on labelled images; None without labels, or if run.knn_every is 0."""
    monitor_warnings: tuple[str, ...]
    test_source: ImageSource | None
    """Images that the monitor classifies; None: some of the training images."""
    num_workers: int
    ranges: MeasuredRanges
    """Value ranges of the training images, and what to tell about them."""


def build_run(config: Config, device: torch.device, given: Given | None = None) -> Parts:
    """Build everything that the config describes.

    Raises:
        ValueError: A setting, or the data, does not allow the run.

    """
    given = given or Given()
    data = config.data
    precision = Precision(config.run.precision, device)
    source = find_source(config, given.source)
    test_source = find_test_source(config, source) if given.test_source is None else given.test_source
    ranges = find_ranges(config, source, given.value_ranges)
    reader = ImageReader(source, max_image_px=data.max_image_px, seed=config.run.seed, ranges=ranges.ranges)
    num_steps = steps_per_epoch(len(source), data.global_batch_size)
    total_steps = num_steps * config.optim.epochs
    mean, std = data.mean, data.std
    if not mean:
        mean, std = measure_mean_std(reader, size_px=data.image_size, seed=config.run.seed)
    method, optimizer = build_trained(
        config,
        precision,
        device,
        mean=mean,
        std=std,
        num_images=len(source),
        total_steps=total_steps,
        backbone=given.backbone,
    )
    monitor, monitor_warnings = _build_monitor(config, reader, method, precision, device, given, test_source)
    return Parts(
        reader=reader,
        method=method,
        optimizer=optimizer,
        precision=precision,
        device=device,
        steps_per_epoch=num_steps,
        total_steps=total_steps,
        card=BackboneCard(
            arch=config.model.arch,
            stem=config.model.stem,
            image_size=data.image_size,
            eval_crop_ratio=data.eval_crop_ratio,
            mean=mean,
            std=std,
            step=0,
            numerics=NUMERICS,
            value_ranges=dict(reader.ranges),
        ),
        test_source=test_source,
        monitor=monitor,
        monitor_warnings=monitor_warnings,
        num_workers=choose_workers(data.workers),
        ranges=ranges,
    )


def build_trained(
    config: Config,
    precision: Precision,
    device: torch.device,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_images: int,
    total_steps: int,
    backbone: nn.Module | None = None,
) -> tuple[Method[Any], torch.optim.Optimizer]:
    """Build the method and its optimizer in their first state on `device`.

    Raises:
        ValueError: A setting does not fit the architecture, the method or this number of ranks.

    """
    run = config.run
    encoder_q = build_seeded(lambda: build_encoder(config, backbone), torch_seed(run.seed, Purpose.MODEL_INIT))
    if run.channels_last:
        encoder_q = encoder_q.to(memory_format=torch.channels_last)
    layout = GroupLayout(
        bn_groups=config.method.bn_groups,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_groups=config.method.micro_groups,
    )
    layout.rows_per_group(config.data.global_batch_size)  # raises if the batch does not split
    inputs = MethodInputs(
        encoder_q=encoder_q,
        pixels=PixelNormalize(mean, std, channels_last=run.channels_last),
        layout=layout,
        dim=config.model.dim,
        global_batch_size=config.data.global_batch_size,
        num_images=num_images,
        total_steps=total_steps,
        seed=run.seed,
    )
    method = method_of(config.method).build(config.method, inputs).to(device=device, dtype=precision.dtype)
    _shard_or_compile(config, method, device, total_steps=total_steps)
    optimizer = build_optimizer(
        method,
        name=config.optim.name,
        lr=config.optim.lr,
        sgd_momentum=config.optim.sgd_momentum,
        weight_decay=config.optim.weight_decay,
        trust_coefficient=config.optim.trust_coefficient,
        constant_lr=method.encoder_q.predictor if config.optim.predictor_lr == "constant" else None,
    )
    return method, optimizer


def _shard_or_compile(config: Config, method: Method[Any], device: torch.device, *, total_steps: int) -> None:
    encoders = [module for module in method.children() if isinstance(module, Encoder)]
    if config.run.shard:
        problem = "run.shard needs adamw; the other optimizers need whole layers"
        require(config.optim.name == "adamw", "optim.name", config.optim.name, problem)
    if config.run.shard and distributed.world_size() > 1:
        for encoder in encoders:
            shard(encoder, device)
    elif should_compile(config.run.compile, device, total_steps=total_steps):
        for part in (method.pixels, *encoders):
            part.compile()


def build_encoder(config: Config, backbone: nn.Module | None = None) -> Encoder:
    """Build the query encoder, with weights from torch's generator.

    Args:
        config: The run's settings.
        backbone: Used in place of model.arch; it is copied with its weights. None: build model.arch.

    Raises:
        ValueError: A setting does not fit the architecture.

    """
    model = config.model
    backbone = _build_backbone(config) if backbone is None else copy.deepcopy(backbone)
    for size_px in _view_sizes(config):
        require_image_size(backbone, size_px)
    if config.augment.local_crops:
        require_image_size(backbone, config.augment.local_size, setting="augment.local_size")
    patches = _build_patches(config, backbone)
    if model.zero_init_residual:
        zero_init_residual(backbone)
    if model.vit_init == "moco-v3":
        init_as_moco_v3(backbone)
    if model.freeze_patch_embed:
        freeze_patch_embed(backbone)
    heads = method_of(config.method).heads(feature_dim(backbone), dim=model.dim, model=asdict(model))
    return Encoder(backbone, *heads, patches=patches)


def _build_backbone(config: Config) -> nn.Module:
    arch = config.model.arch
    if arch.startswith(OWN):
        raise ValueError(
            f"model.arch={arch}: the run's backbone was given as a module, which no name can rebuild; give it again: "
            "mocokit.resume(run, backbone=...)"
        )
    return build_backbone(arch, stem=config.model.stem)


def _build_patches(config: Config, backbone: nn.Module) -> CombinedPatches | None:
    grid = getattr(config.method, "patch_grid", 1)
    if grid == 1:
        return None
    combined = config.method.patches_combined  # type: ignore[attr-defined]  # of PatchSettings, like the grid
    for size_px in _view_sizes(config):
        require_patches(grid, combined, size_px)
        require_image_size(backbone, size_px // grid)
    return CombinedPatches(grid, combined)


def _view_sizes(config: Config) -> set[int]:
    return {view_size(config).in_epoch(epoch) for epoch in range(config.optim.epochs)}


def build_batches(
    config: Config,
    parts: Parts,
    *,
    start_step: int,
    total_steps: int,
    on_worker_death: Callable[[str], object] = LOGGER.warning,
) -> Iterable[ViewBatch]:
    """Return this rank's batches from `start_step` on, as finished views, or as crops if the device does the rest.

    `on_worker_death` is called with a sentence for each loader worker that died and was replaced.
    """
    batch_size = config.data.global_batch_size
    order = BatchOrder(
        num_images=len(parts.reader.source),
        global_batch_size=batch_size,
        own_rows=parts.method.layout.own_rows(batch_size),
        start_step=start_step,
        total_steps=total_steps,
        seed=config.run.seed,
    )
    views = build_views(config, parts.reader, crops_only=_leaves_color(config.augment.on, parts.device))
    return build_loader(views, order, num_workers=parts.num_workers, on_worker_death=on_worker_death)


MANY_CORES = 8
"""With this many cores per GPU or more, the cores make whole views faster than the GPU trains on them."""


def _leaves_color(on: str, device: torch.device) -> bool:
    """Return True if color, blur and flip run on the device; "auto" means a GPU with fewer than MANY_CORES cores."""
    if on == "auto":
        return device.type == "cuda" and own_cores() < MANY_CORES
    return on == "device"


def lr_of_step(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Return a function of the optimizer steps done before that returns the learning rate."""
    optim = config.optim
    return partial(
        learning_rate,
        steps_per_epoch=steps_per_epoch,
        epochs=optim.epochs,
        peak_lr=optim.lr,
        schedule=optim.schedule,
        milestones=optim.milestones,
        by=optim.lr_by,
        warmup_epochs=optim.warmup_epochs,
        warmup_from=optim.warmup_from,
        end=optim.lr_end,
    )


def settings_warnings(config: Config, parts: Parts) -> list[str]:
    """Return the method's warnings about these settings on these images."""
    facts = RunFacts(num_images=len(parts.reader.source), has_batchnorm=has_batchnorm(parts.method.encoder_q))
    return method_of(config.method).warnings(config.method, facts)


def _build_monitor(
    config: Config,
    reader: ImageReader,
    method: Method[Any],
    precision: Precision,
    device: torch.device,
    given: Given,
    test_source: ImageSource | None,
) -> tuple[Monitor | None, tuple[str, ...]]:
    """Return the monitor, if there can be one, and what a user should know about it."""
    if reader.source.labels is None or config.run.knn_every == 0:
        return None, ()
    classes = reader.source.class_names
    if len(classes) < 2:
        return None, (f"no kNN monitor: all images are of one class ({', '.join(classes)})",)
    workers = choose_workers(config.data.workers, threads_suffice=device.type == "cpu", location=config.data.source)
    test = None
    if test_source is not None:
        test = ImageReader(test_source, max_image_px=reader.max_image_px, seed=config.run.seed, ranges=reader.ranges)
    monitor = build_monitor(
        method,
        reader,
        test,
        build_encoder=partial(build_encoder, config, given.backbone),
        view=EvaluationView(
            size_px=config.data.image_size, crop_ratio=config.data.eval_crop_ratio, num_workers=workers
        ),
        protocol=KnnProtocol(config.run.knn_k, config.run.knn_temperature),
        max_images=config.run.knn_max_images,
        seed=config.run.seed,
        precision=precision,
        device=device,
        test_location=config.data.test or str(getattr(reader.source, "test_part", "")),
    )
    return monitor, monitor.warnings
