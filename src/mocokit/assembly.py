"""From a config to the objects of a run: images, method, optimizer, monitor. Writes no file."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.config import Config
from mocokit.data.augment import AUG, AUG_PLUS, Recipe
from mocokit.data.loader import BatchOrder, build_loader, choose_workers, steps_per_epoch
from mocokit.data.open_source import open_source
from mocokit.data.statistics import measure_mean_std
from mocokit.data.views import ImageReader, TwoViews, ViewBatch
from mocokit.engine.optim import build_sgd
from mocokit.engine.precision import Precision
from mocokit.evaluate.features import EvaluationView, choose_images, draw_indices, embed_with
from mocokit.evaluate.knn import KnnProtocol, knn_of
from mocokit.export.backbone import BackboneCard
from mocokit.methods.groups import GroupLayout
from mocokit.methods.moco import MoCo
from mocokit.nets.backbones import build_backbone, build_seeded, feature_dim, require_image_size
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head
from mocokit.nets.pixels import PixelNormalize
from mocokit.randomness import Purpose, permutation, torch_seed


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of, before any file is written."""

    reader: ImageReader
    method: MoCo
    optimizer: torch.optim.SGD
    precision: Precision
    device: torch.device
    layout: GroupLayout
    steps_per_epoch: int
    card: BackboneCard
    evaluate: Callable[[], dict[str, float]] | None
    num_workers: int


def assemble(config: Config, device: torch.device) -> Parts:
    """Build everything that the config describes.

    Raises:
        ValueError: A setting, or the data, does not allow the run.

    """
    data, precision = config.data, Precision(config.run.precision, device)
    if not data.source:
        raise ValueError("data: say where the images are, for example --data my_photos/")
    source = open_source(data.source)
    reader = ImageReader(source, max_image_px=data.max_image_px, seed=config.run.seed)
    per_epoch = steps_per_epoch(len(source), data.global_batch_size)
    mean, std = data.mean, data.std
    if not mean:
        mean, std = measure_mean_std(reader, size_px=data.image_size, seed=config.run.seed)
    layout = GroupLayout(
        bn_groups=config.method.bn_groups,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        micro_groups=config.method.micro_groups,
    )
    layout.rows_per_group(data.global_batch_size)
    card = BackboneCard(
        arch=config.model.arch, stem=config.model.stem, image_size=data.image_size,
        eval_crop_ratio=data.eval_crop_ratio, mean=mean, std=std, step=0,
    )  # fmt: skip
    method = build_method(config, layout, card).to(device=device, dtype=precision.dtype)
    optimizer = build_sgd(
        method,
        lr=config.optim.lr,
        sgd_momentum=config.optim.sgd_momentum,
        weight_decay=config.optim.weight_decay,
    )
    num_workers = choose_workers(data.workers, on_cpu=device.type == "cpu", location=data.source)
    return Parts(
        reader=reader, method=method, optimizer=optimizer, precision=precision, device=device, layout=layout,
        steps_per_epoch=per_epoch, card=card, num_workers=num_workers,
        evaluate=_build_monitor(config, reader, method, precision, device, num_workers),
    )  # fmt: skip


def build_method(config: Config, layout: GroupLayout, card: BackboneCard) -> MoCo:
    """The method as configured, for one rank of `layout`, on images as `card` says."""
    model, method, seed = config.model, config.method, config.run.seed

    def encoder() -> Encoder:
        backbone = build_backbone(model.arch, stem=model.stem)
        require_image_size(backbone, card.image_size)
        return Encoder(backbone, build_head(feature_dim(backbone), model.dim, mlp=model.mlp))

    def shuffle_order(step: int, size: int) -> Tensor:
        return torch.from_numpy(permutation(seed, Purpose.KEY_SHUFFLE, size, step))

    encoder_q = build_seeded(encoder, torch_seed(seed, Purpose.MODEL_INIT))
    if config.run.channels_last:
        encoder_q = encoder_q.to(memory_format=torch.channels_last)
    moco = MoCo(
        encoder_q,
        dim=model.dim,
        queue_size=method.queue_size,
        temperature=method.temperature,
        key_momentum=method.key_momentum,
        layout=layout,
        pixels=PixelNormalize(card.mean, card.std, channels_last=config.run.channels_last),
        shuffle_order=shuffle_order if method.shuffle else None,
        mask_same_image=method.mask_same_image,
        seed=torch_seed(seed, Purpose.QUEUE_INIT),
    )
    if config.run.compile:
        moco.encoder_q.compile()
        moco.encoder_k.compile()
    return moco


def build_recipe(config: Config) -> Recipe:
    """The paper's recipe with the user's changes."""
    base, augment = (AUG_PLUS if config.augment.aug_plus else AUG), asdict(config.augment)
    for name in ("on", "aug_plus"):
        augment.pop(name)
    return Recipe(**{**asdict(base), **{name: value for name, value in augment.items() if value is not None}})


def build_batches(config: Config, parts: Parts, *, start_step: int, total_steps: int) -> Iterable[ViewBatch]:
    """Batches of this rank from `start_step` on; each starts as two crops when the device does the rest."""
    data, seed, on_gpu = config.data, config.run.seed, parts.device.type == "cuda"
    order = BatchOrder(
        num_images=len(parts.reader.source), global_batch_size=data.global_batch_size,
        own_rows=parts.layout.own_rows(data.global_batch_size), start_step=start_step, total_steps=total_steps,
        seed=seed,
    )  # fmt: skip
    views = TwoViews(
        parts.reader, build_recipe(config), size_px=data.image_size, seed=seed, pipeline=data.pipeline,
        crops_only=config.augment.on == "device" or (config.augment.on == "auto" and on_gpu),
    )  # fmt: skip
    return build_loader(views, order, num_workers=parts.num_workers, pin_memory=on_gpu)


def _build_monitor(
    config: Config,
    reader: ImageReader,
    method: MoCo,
    precision: Precision,
    device: torch.device,
    num_workers: int,
) -> Callable[[], dict[str, float]] | None:
    """kNN on the backbone's features: bank from the training images, queries from data.test or a held-out tenth."""
    if reader.source.labels is None:
        if config.data.test:
            raise ValueError(f"data.test={config.data.test}: the training images have no labels to vote with")
        return None
    view = EvaluationView(
        size_px=config.data.image_size, crop_ratio=config.data.eval_crop_ratio,
        num_workers=num_workers,
    )  # fmt: skip
    size, seed = config.run.knn_max_images, config.run.seed
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
    embed = embed_with(method.encoder_q.backbone, method.pixels, precision)

    def evaluate() -> dict[str, float]:
        return {"knn_acc": knn_of(embed, bank, queries, [protocol], device=device)[protocol]}

    return evaluate
