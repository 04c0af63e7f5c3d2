"""From a config to the objects of a run: images, method, optimizer, monitor. Writes no file."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.data.augment.recipes import AUG, AUG_PLUS, MOCO_V3_PAIR, SIMCLR, Recipe
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.loader import BatchOrder, build_loader, choose_workers, own_cores, steps_per_epoch
from mocokit.data.sources.open_source import open_source
from mocokit.data.statistics import measure_mean_std
from mocokit.data.views import ImageReader, LocalCrops, TwoViews
from mocokit.distributed.fsdp import gathered, shard, sharded_modules
from mocokit.engine.backbone_file import BackboneCard
from mocokit.engine.compilation import should_compile
from mocokit.engine.optimizer import build_optimizer
from mocokit.engine.precision import Precision
from mocokit.evaluate.features import EvaluationView, choose_images, draw_indices, embed_with
from mocokit.evaluate.knn import KnnProtocol, knn_of
from mocokit.methods.groups import GroupLayout
from mocokit.nets.backbones import build_seeded
from mocokit.nets.pixels import PixelNormalize
from mocokit.run.build_method import AnyMethod, build_encoder, build_method, view_size

LOGGER = logging.getLogger("mocokit")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of, before any file is written."""

    reader: ImageReader
    method: AnyMethod
    optimizer: torch.optim.Optimizer
    precision: Precision
    device: torch.device
    layout: GroupLayout
    steps_per_epoch: int
    card: BackboneCard
    gather: Callable[[], None]
    """Puts together, on all ranks, what `evaluate` needs."""
    evaluate: Callable[[], dict[str, float]] | None
    num_workers: int


def assemble(config: Config, device: torch.device) -> Parts:
    """Build everything that the config describes.

    Raises:
        ValueError: A setting, or the data, does not allow the run.

    """
    data = config.data
    precision = Precision(config.run.precision, device)
    if not data.source:
        raise ValueError("data: say where the images are, for example --data my_photos/")
    source = open_source(data.source)
    reader = ImageReader(source, max_image_px=data.max_image_px, seed=config.run.seed)
    per_epoch = steps_per_epoch(len(source), data.global_batch_size)
    mean = data.mean
    std = data.std
    if not mean:
        mean, std = measure_mean_std(reader, size_px=data.image_size, seed=config.run.seed)
    method, optimizer, layout = build_trained(
        config,
        precision,
        device,
        mean=mean,
        std=std,
        num_images=len(source),
        total_steps=per_epoch * config.optim.epochs,
    )
    evaluated, gather = _evaluated_backbone(config, method, precision, device, labelled=source.labels is not None)
    card = BackboneCard(
        arch=config.model.arch,
        stem=config.model.stem,
        image_size=data.image_size,
        eval_crop_ratio=data.eval_crop_ratio,
        mean=mean,
        std=std,
        step=0,
    )
    monitoring = choose_workers(data.workers, threads_suffice=device.type == "cpu", location=data.source)
    return Parts(
        reader=reader,
        method=method,
        optimizer=optimizer,
        precision=precision,
        device=device,
        layout=layout,
        steps_per_epoch=per_epoch,
        card=card,
        num_workers=choose_workers(data.workers),
        gather=gather,
        evaluate=_build_monitor(
            config, reader, embed_with(evaluated, method.pixels, precision), device=device, num_workers=monitoring
        ),
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
) -> tuple[AnyMethod, torch.optim.Optimizer, GroupLayout]:
    """The config's method and optimizer in their first state on `device`, and this rank's part of a batch.

    Raises:
        ValueError: A setting does not allow the run.

    """
    layout = GroupLayout(
        bn_groups=config.method.bn_groups,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_groups=config.method.micro_groups,
    )
    layout.rows_per_group(config.data.global_batch_size)
    method = build_method(
        config,
        layout=layout,
        pixels=PixelNormalize(mean, std, channels_last=config.run.channels_last),
        num_images=num_images,
        total_steps=total_steps,
    ).to(device=device, dtype=precision.dtype)
    encoders = list(dict.fromkeys([method.encoder_q, getattr(method, "encoder_k", method.encoder_q)]))
    if config.run.shard and config.optim.name != "adamw":
        raise ValueError(f"optim.name={config.optim.name!r}: run.shard needs adamw, the others take no parts of layers")
    if config.run.shard and distributed.world_size() > 1:
        for encoder in encoders:
            shard(encoder, device)
    elif should_compile(config.run.compile, device, total_steps=total_steps):
        for part in (method.pixels, *encoders):
            part.compile()
    optim = config.optim
    optimizer = build_optimizer(
        method,
        name=optim.name,
        lr=optim.lr,
        sgd_momentum=optim.sgd_momentum,
        weight_decay=optim.weight_decay,
        trust_coefficient=optim.trust_coefficient,
    )
    return method, optimizer, layout


def build_recipes(config: Config) -> tuple[Recipe, Recipe]:
    """The paper's recipes of query and key views with the user's changes."""
    augment = asdict(config.augment)
    pairs = {"moco-v3": MOCO_V3_PAIR, "simclr": (SIMCLR, SIMCLR)}
    moco = AUG_PLUS if config.augment.aug_plus else AUG
    query, key = pairs.get(config.augment.recipe, (moco, moco))
    for name in ("on", "recipe", "aug_plus", "local_crops", "local_size", "local_scale"):
        augment.pop(name)
    changes = {name: value for name, value in augment.items() if value is not None}
    return replace(query, **changes), replace(key, **changes)


def build_views(config: Config, reader: ImageReader, *, crops_only: bool) -> TwoViews:
    """What makes the run's views; local crops are drawn as queries are, but from smaller parts of the image."""
    augment = config.augment
    (recipe, key_recipe) = build_recipes(config)
    local = LocalCrops(
        num_crops=augment.local_crops,
        size_px=augment.local_size,
        recipe=replace(recipe, crop_scale=augment.local_scale),
    )
    return TwoViews(
        reader,
        recipe,
        key_recipe=key_recipe,
        size_px=view_size(config),
        seed=config.run.seed,
        pipeline=config.data.pipeline,
        crops_only=crops_only,
        local=local if augment.local_crops else None,
    )


def build_batches(
    config: Config,
    parts: Parts,
    *,
    start_step: int,
    total_steps: int,
    on_worker_death: Callable[[str], object] = LOGGER.warning,
) -> Iterable[ViewBatch]:
    """Batches of this rank from `start_step` on; each starts as crops when the device does the rest.

    `on_worker_death` is called with a sentence for each loader worker that died and was replaced.
    """
    data = config.data
    order = BatchOrder(
        num_images=len(parts.reader.source),
        global_batch_size=data.global_batch_size,
        own_rows=parts.layout.own_rows(data.global_batch_size),
        start_step=start_step,
        total_steps=total_steps,
        seed=config.run.seed,
    )
    views = build_views(config, parts.reader, crops_only=_leaves_color(config, parts.device))
    return build_loader(views, order, num_workers=parts.num_workers, on_worker_death=on_worker_death)


MANY_CORES = 8
"""Cores a GPU from which they make whole views faster than it trains on them."""


def _leaves_color(config: Config, device: torch.device) -> bool:
    """Whether color, blur and flip are left to the device; auto: to a GPU that has few cores beside it."""
    if config.augment.on == "auto":
        return device.type == "cuda" and own_cores() < MANY_CORES
    return config.augment.on == "device"


def _evaluated_backbone(
    config: Config, method: AnyMethod, precision: Precision, device: torch.device, *, labelled: bool
) -> tuple[nn.Module, Callable[[], None]]:
    """The query backbone, or where ranks hold parts of it and there are labels, a whole one on the main rank; and what
    brings that up to date, called on all ranks.
    """
    backbone = method.encoder_q.backbone
    if not (sharded_modules(method) and labelled):
        return backbone, lambda: None
    whole = backbone  # on other ranks, which are not asked
    if distributed.is_main():
        whole = build_seeded(lambda: build_encoder(config), 0).backbone.to(device=device, dtype=precision.dtype)

    def gather() -> None:
        """Put the trained weights together in the main rank's copy."""
        state = gathered(backbone.state_dict())
        if distributed.is_main():
            whole.load_state_dict(state)

    return whole, gather


def _build_monitor(
    config: Config,
    reader: ImageReader,
    embed: Callable[[Tensor], Tensor],
    *,
    device: torch.device,
    num_workers: int,
) -> Callable[[], dict[str, float]] | None:
    """kNN on the backbone's features: bank from the training images, queries from data.test or a held-out tenth."""
    if reader.source.labels is None:
        if config.data.test:
            raise ValueError(f"data.test={config.data.test}: the training images have no labels to vote with")
        return None
    view = EvaluationView(
        size_px=config.data.image_size,
        crop_ratio=config.data.eval_crop_ratio,
        num_workers=num_workers,
    )
    size = config.run.knn_max_images
    seed = config.run.seed
    drawn = draw_indices(len(reader.source), size, seed=seed)
    if config.data.test:
        test = ImageReader(open_source(config.data.test), max_image_px=reader.max_image_px, seed=seed)
        asked = draw_indices(len(test.source), size // 5, seed=seed)
        queries = choose_images(test, view, indices=asked, class_names=reader.source.class_names)
        bank = choose_images(reader, view, indices=drawn)
    else:
        queries = choose_images(reader, view, indices=drawn[::10])
        bank = choose_images(reader, view, indices=[index for row, index in enumerate(drawn) if row % 10])
    protocol = KnnProtocol(config.run.knn_k, config.run.knn_temperature)

    def evaluate() -> dict[str, float]:
        return {"knn_acc": knn_of(embed, bank, queries, [protocol], device=device)[protocol]}

    return evaluate
