"""From a config to its method: encoder, head and mechanism by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocokit.config.schema import Config
from mocokit.data.view_size import ViewSize
from mocokit.engine.schedules import cosine_key_momentum
from mocokit.losses import NegativeTerm
from mocokit.methods.end_to_end import EndToEnd
from mocokit.methods.group_forward import ShuffleOrder
from mocokit.methods.groups import GroupLayout
from mocokit.methods.memory_bank import MemoryBank
from mocokit.methods.moco import MoCo
from mocokit.methods.moco_v3 import MoCoV3
from mocokit.methods.simclr import SimClr
from mocokit.nets.backbones import build_backbone, build_seeded, feature_dim, require_image_size, zero_init_residual
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head, build_simclr_head, build_v3_mlp
from mocokit.nets.patches import CombinedPatches, require_patches
from mocokit.nets.pixels import PixelNormalize
from mocokit.nets.vit_moco_v3 import freeze_patch_embed, init_as_moco_v3
from mocokit.randomness import Purpose, generator, permutation, torch_seed

AnyMethod = MoCo | EndToEnd | MemoryBank | SimClr | MoCoV3


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a method is built from, beside the config."""

    encoder_q: Encoder
    pixels: PixelNormalize
    layout: GroupLayout
    num_images: int
    """Of the data set."""
    total_steps: int
    """Of the run."""


def build_method(
    config: Config, *, layout: GroupLayout, pixels: PixelNormalize, num_images: int, total_steps: int
) -> AnyMethod:
    """The config's method in its first state.

    Raises:
        ValueError: A setting does not fit the architecture or the method.

    """
    encoder_q = build_seeded(lambda: build_encoder(config), torch_seed(config.run.seed, Purpose.MODEL_INIT))
    if config.run.channels_last:
        encoder_q = encoder_q.to(memory_format=torch.channels_last)
    setting = Setting(encoder_q=encoder_q, pixels=pixels, layout=layout, num_images=num_images, total_steps=total_steps)
    return BUILDERS[config.method.name](config, setting)


def build_encoder(config: Config) -> Encoder:
    """The config's query encoder, with weights from torch's generator.

    Raises:
        ValueError: A setting does not fit the architecture.

    """
    model = config.model
    backbone = build_backbone(model.arch, stem=model.stem)
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
    return Encoder(backbone, *_build_heads(config, feature_dim(backbone)), patches=patches)


def view_size(config: Config) -> ViewSize:
    """The side of the run's views, epoch by epoch."""
    full_px = config.data.image_size
    return ViewSize(first_px=config.data.first_image_size or full_px, last_px=full_px, epochs=config.optim.epochs // 2)


def _view_sizes(config: Config) -> set[int]:
    """All that occur."""
    size = view_size(config)
    return {size.in_epoch(epoch) for epoch in range(config.optim.epochs)}


def _build_patches(config: Config, backbone: nn.Module) -> CombinedPatches | None:
    grid = config.method.patch_grid
    combined = config.method.patches_combined
    if grid == 1:
        return None
    for size_px in _view_sizes(config):
        require_patches(grid, combined, size_px)
        require_image_size(backbone, size_px // grid)
    return CombinedPatches(grid, combined)


def _build_heads(config: Config, width: int) -> tuple[nn.Module, nn.Module | None]:
    """The method's head and, for MoCo v3, predictor."""
    model = config.model
    match config.method.name:
        case "simclr":
            return build_simclr_head(width, model.dim, num_layers=model.head_layers), None
        case "moco-v3":
            projector = build_v3_mlp(
                width, model.dim, width=model.head_width, num_layers=model.head_layers, ends_in_bn=True
            )
            predictor = build_v3_mlp(
                model.dim, model.dim, width=model.head_width, num_layers=2, ends_in_bn=model.predictor_bn
            )
            return projector, predictor
    return build_head(width, model.dim, mlp=model.mlp), None


def _shuffle_order(config: Config) -> ShuffleOrder | None:
    def order(step: int, size: int) -> Tensor:
        return torch.from_numpy(permutation(config.run.seed, Purpose.KEY_SHUFFLE, size, step))

    return order if config.method.shuffle else None


def _term(config: Config) -> NegativeTerm:
    return NegativeTerm(decoupled=config.method.decoupled, hardness=config.method.hardness)


def _moco(config: Config, given: Setting) -> MoCo:
    method = config.method
    return MoCo(
        given.encoder_q,
        dim=config.model.dim,
        queue_size=method.queue_size,
        temperature=method.temperature,
        key_momentum=method.key_momentum,
        layout=given.layout,
        pixels=given.pixels,
        shuffle_order=_shuffle_order(config),
        mask_same_image=method.mask_same_image,
        symmetric=method.symmetric,
        seed=torch_seed(config.run.seed, Purpose.QUEUE_INIT),
        term=_term(config),
    )


def _end_to_end(config: Config, given: Setting) -> EndToEnd:
    return EndToEnd(
        given.encoder_q,
        global_batch_size=config.data.global_batch_size,
        temperature=config.method.temperature,
        layout=given.layout,
        pixels=given.pixels,
        shuffle_order=_shuffle_order(config),
        term=_term(config),
    )


def _memory_bank(config: Config, given: Setting) -> MemoryBank:
    method = config.method
    seed = config.run.seed

    def sample(step: int) -> Tensor:
        draws = generator(seed, Purpose.BANK_SAMPLE, step)
        return torch.from_numpy(draws.integers(given.num_images, size=method.num_negatives))

    return MemoryBank(
        given.encoder_q,
        dim=config.model.dim,
        num_images=given.num_images,
        num_negatives=method.num_negatives,
        temperature=method.temperature,
        feature_momentum=method.feature_momentum,
        layout=given.layout,
        sample=sample,
        pixels=given.pixels,
        seed=torch_seed(seed, Purpose.QUEUE_INIT),
        term=_term(config),
    )


def _simclr(config: Config, given: Setting) -> SimClr:
    return SimClr(
        given.encoder_q,
        global_batch_size=config.data.global_batch_size,
        temperature=config.method.temperature,
        layout=given.layout,
        pixels=given.pixels,
        term=_term(config),
    )


def _moco_v3(config: Config, given: Setting) -> MoCoV3:
    method = config.method

    def key_momentum(step: int) -> float:
        """m at that step."""
        if not method.key_momentum_cos:
            return method.key_momentum
        return cosine_key_momentum(step / given.total_steps, start=method.key_momentum)

    return MoCoV3(
        given.encoder_q,
        global_batch_size=config.data.global_batch_size,
        temperature=method.temperature,
        key_momentum=key_momentum,
        layout=given.layout,
        pixels=given.pixels,
        term=_term(config),
    )


BUILDERS: dict[str, Callable[[Config, Setting], AnyMethod]] = {
    "moco": _moco,
    "end-to-end": _end_to_end,
    "memory-bank": _memory_bank,
    "simclr": _simclr,
    "moco-v3": _moco_v3,
}
