"""Build the views of a run from its config: their size in each epoch, their recipes, and the object that makes them."""

from dataclasses import asdict, replace

from mocokit.config.schema import AugmentConfig, Config
from mocokit.data.augment.recipes import AUG, AUG_PLUS, MOCO_V3_PAIR, SIMCLR, Recipe
from mocokit.data.view_size import ViewSize
from mocokit.data.views import ImageReader, LocalCrops, TwoViews


def view_size(config: Config) -> ViewSize:
    """Return the side of the run's views in each epoch; it reaches its full size in the middle of the run."""
    full_px = config.data.image_size
    return ViewSize(first_px=config.data.first_image_size or full_px, last_px=full_px, epochs=config.optim.epochs // 2)


def build_recipes(augment: AugmentConfig) -> tuple[Recipe, Recipe]:
    """Return the paper's recipes of query and key views with the user's changes."""
    moco = AUG_PLUS if augment.aug_plus else AUG
    pairs = {"moco": (moco, moco), "moco-v3": MOCO_V3_PAIR, "simclr": (SIMCLR, SIMCLR)}
    query, key = pairs[augment.recipe]
    changes = {
        name: value
        for name, value in asdict(augment).items()
        if value is not None and name in Recipe.__dataclass_fields__
    }
    return replace(query, **changes), replace(key, **changes)


def describe_views(augment: AugmentConfig) -> list[str]:
    """Return lines with the augmentation's values as used: the recipe's where a setting is None."""
    query, key = build_recipes(augment)
    views = {"both views": query} if query == key else {"query view": query, "key view": key}
    return [
        f"{view}: {', '.join(f'{name} {_in_words(value)}' for name, value in asdict(recipe).items())}"
        for view, recipe in views.items()
    ]


def _in_words(value: object) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.3g}..{value[1]:.3g}"
    return str(value).lower() if isinstance(value, bool) else f"{value:.3g}"


def build_views(config: Config, reader: ImageReader, *, crops_only: bool) -> TwoViews:
    """Build the object that makes the run's views.

    Local crops use the recipe of the query view, but cover smaller parts of the image.
    """
    augment = config.augment
    recipe, key_recipe = build_recipes(augment)
    local = None
    if augment.local_crops:
        local_recipe = replace(recipe, crop_scale=augment.local_scale)
        local = LocalCrops(num_crops=augment.local_crops, size_px=augment.local_size, recipe=local_recipe)
    return TwoViews(
        reader,
        recipe,
        key_recipe=key_recipe,
        size_px=view_size(config),
        seed=config.run.seed,
        pipeline=config.data.pipeline,
        crops_only=crops_only,
        local=local,
    )
