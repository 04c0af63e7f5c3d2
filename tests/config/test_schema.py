import dataclasses

import pytest

from mocokit.config.presets import PRESETS, SUMMARIES, get_preset
from mocokit.config.schema import Config, OptimConfig
from mocokit.config.toml import from_toml, replace_settings, to_dict, to_toml


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_config_survives_toml(name: str) -> None:
    assert from_toml(to_toml(PRESETS[name])) == PRESETS[name]


def test_local_crops_survive_toml() -> None:
    settings = {"augment.local_crops": 6, "augment.local_size": 80, "augment.local_scale": (0.1, 0.2)}
    config = replace_settings(Config(), settings)
    assert from_toml(to_toml(config)) == config


def test_settings_are_replaced_by_dotted_names() -> None:
    config = replace_settings(Config(), {"optim.epochs": 7, "optim.lr": 1, "data.mean": [0.1, 0.2, 0.3]})
    assert (config.optim.epochs, config.optim.lr, config.data.mean) == (7, 1.0, (0.1, 0.2, 0.3))
    assert Config().optim.epochs == 200, "the original is untouched"


@pytest.mark.parametrize(
    ("setting", "near"),
    [("optim.epoch", "optim.epochs"), ("method.temprature", "method.temperature"), ("lr", "optim.lr")],
)
def test_an_unknown_setting_is_an_error_that_names_the_nearest(setting: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}=3: unknown setting; did you mean {near}"):
        replace_settings(Config(), {setting: 3})


def test_an_unknown_key_in_a_file_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"optim.epoch=3: unknown setting; did you mean optim.epochs"):
        from_toml("[optim]\nepoch = 3\n")


@pytest.mark.parametrize("value", ["fast", True, None])
def test_a_value_of_the_wrong_type_is_an_error(value: object) -> None:
    with pytest.raises(ValueError, match=r"OptimConfig.lr=.*not a value for this setting"):
        replace_settings(Config(), {"optim.lr": value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.global_batch_size": 1}, "data.global_batch_size=1: must be at least 2"),
        ({"data.image_size": 4}, "data.image_size=4"),
        ({"data.mean": ()}, "data.mean=.*needs 3 numbers, and data.std too"),
        ({"data.max_bad_share": 1.5}, "data.max_bad_share=1.5"),
        ({"augment.crop_scale": (0.5, 0.2)}, "augment.crop_scale="),
        ({"augment.local_crops": -1}, "augment.local_crops=-1: must be 0"),
        ({"augment.local_crops": 2, "augment.local_size": 7}, "augment.local_size=7: must be at least 8 pixels"),
        ({"augment.local_crops": 2, "augment.local_scale": (0.0, 0.1)}, r"augment.local_scale=\(0.0, 0.1\): needs 0 <"),
        (
            {"augment.local_crops": 2, "data.image_size": 64},
            r"augment.local_size=96: larger than the views of 64 px; .* \(SwAV: 96 of 224\)",
        ),
        (
            {"augment.local_crops": 2, "data.first_image_size": 64},
            "augment.local_size=96: larger than the views of 64 px",
        ),
        (
            {"augment.local_crops": 2, "method.patch_grid": 2},
            "augment.local_crops=2: not with method.patch_grid=2",
        ),
        ({"augment.blur_p": 2.0}, "augment.blur_p=2.0: must be in 0..1"),
        ({"augment.hue": 0.7}, "augment.hue=0.7"),
        ({"optim.lr": 0.0}, "optim.lr=0.0: must be above 0"),
        ({"optim.epochs": 0}, "optim.epochs=0"),
        ({"optim.warmup_epochs": 500.0}, "optim.warmup_epochs=500.0: must be below epochs"),
        ({"method.queue_size": 255}, "method.queue_size=255: smaller than data.global_batch_size=256"),
        (
            {"method.symmetric": True, "method.queue_size": 511},
            "method.queue_size=511: smaller than data.global_batch_size=256 times 2 views",
        ),
        ({"method.num_negatives": 0}, "method.num_negatives=0"),
        ({"method.name": "byol"}, "method.name='byol': unknown; choose one of"),
        ({"model.head_layers": 4}, "model.head_layers=4: must be 2 or 3"),
        ({"optim.trust_coefficient": 0.0}, "optim.trust_coefficient=0.0"),
        ({"run.seed": -1}, "run.seed=-1"),
        ({"run.keep_last": 0}, "run.keep_last=0"),
    ],
)
def test_values_out_of_range_name_setting_value_and_remedy(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_settings(Config(), settings)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimConfig().epochs = 3  # type: ignore[misc]


IMAGENET: dict[str, dict[str, object]] = {
    "data": {
        "source": "",
        "test": "",
        "label_column": "",
        "path_column": "",
        "image_size": 224,
        "first_image_size": 0,
        "global_batch_size": 256,
        "workers": -1,
        "pipeline": "fast",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "eval_crop_ratio": 0.875,
        "max_bad_share": 0.01,
        "max_image_px": 89478485,
    },
    "augment": {
        "on": "auto",
        "recipe": "moco",
        "aug_plus": True,
        "crop_scale": (0.2, 1.0),
        "jitter_p": None,
        "brightness": None,
        "contrast": None,
        "saturation": None,
        "hue": None,
        "grayscale_p": None,
        "blur_p": None,
        "blur_radius_px": (0.1, 2.0),
        "flip_p": None,
        "local_crops": 0,
        "local_size": 96,
        "local_scale": (0.05, 0.14),
    },
    "model": {
        "arch": "resnet50",
        "stem": "imagenet",
        "mlp": True,
        "dim": 128,
        "head_layers": 2,
        "head_width": 4096,
        "predictor_bn": False,
        "zero_init_residual": False,
        "vit_init": "timm",
        "freeze_patch_embed": False,
    },
    "optim": {
        "name": "sgd",
        "trust_coefficient": 0.001,
        "epochs": 200,
        "lr": 0.03,
        "schedule": "cosine",
        "milestones": (120, 160),
        "lr_by": "epoch",
        "warmup_epochs": 0.0,
        "sgd_momentum": 0.9,
        "weight_decay": 1e-4,
        "clip_norm": 0.0,
    },
    "run": {
        "seed": 0,
        "device": "auto",
        "precision": "fp32",
        "channels_last": True,
        "compile": "auto",
        "shard": False,
        "log_every": 20,
        "save_minutes": 10.0,
        "keep_last": 2,
        "rank_timeout_s": 600.0,
        "alone_timeout_s": 3600.0,
        "knn_every": 10,
        "knn_k": 20,
        "knn_temperature": 0.07,
        "knn_max_images": 10000,
    },
}
"""Every field of moco-v2 but its method's, from recipes and papers, not from the code under test."""

SHARED = {"temperature": 0.2, "bn_groups": 8, "micro_groups": 0, "decoupled": False, "hardness": 0.0}
PATCHES = {"patch_grid": 1, "patches_combined": 2}
METHODS: dict[str, dict[str, object]] = {
    "moco": {
        "queue_size": 65536,
        "key_momentum": 0.999,
        "shuffle": True,
        "mask_same_image": False,
        "symmetric": False,
        **PATCHES,
    },
    "end-to-end": {"shuffle": True},
    "memory-bank": {"num_negatives": 65536, "feature_momentum": 0.5},
    "simclr": {},
    "moco-v3": {"key_momentum": 0.999, "key_momentum_cos": False, **PATCHES},
}
"""Settings of each method, beside those that all share."""

V3_R50: dict[str, object] = {  # moco-v3 CONFIG.md: R50, 100 epochs
    "data.global_batch_size": 4096,
    "augment.recipe": "moco-v3",
    "model.dim": 256,
    "model.zero_init_residual": True,
    "method.name": "moco-v3",
    "method.temperature": 1.0,
    "method.key_momentum": 0.99,
    "method.key_momentum_cos": True,
    "method.bn_groups": 1,
    "optim.name": "lars",
    "optim.epochs": 100,
    "optim.lr": 0.6 * 4096 / 256,
    "optim.lr_by": "step",
    "optim.warmup_epochs": 10.0,
    "optim.weight_decay": 1e-6,
    "run.precision": "fp16",
}
V3_VIT_S: dict[str, object] = {  # the same: ViT-S, 300 epochs
    "data.global_batch_size": 4096,
    "augment.recipe": "moco-v3",
    "augment.crop_scale": (0.08, 1.0),
    "model.arch": "vit_small_patch16_224_h12",
    "model.dim": 256,
    "model.head_layers": 3,
    "model.predictor_bn": True,
    "model.vit_init": "moco-v3",
    "model.freeze_patch_embed": True,
    "method.name": "moco-v3",
    "method.key_momentum": 0.99,
    "method.key_momentum_cos": True,
    "method.bn_groups": 1,
    "optim.name": "adamw",
    "optim.epochs": 300,
    "optim.lr": 1.5e-4 * 4096 / 256,
    "optim.lr_by": "step",
    "optim.warmup_epochs": 40.0,
    "optim.weight_decay": 0.1,
    "run.precision": "fp16",
}
SIMCLR: dict[str, object] = {  # simclr README: ImageNet; v1's head
    "data.global_batch_size": 4096,
    "data.mean": (0.0, 0.0, 0.0),
    "data.std": (1.0, 1.0, 1.0),
    "augment.recipe": "simclr",
    "augment.crop_scale": (0.08, 1.0),
    "method.name": "simclr",
    "method.temperature": 0.1,
    "method.bn_groups": 1,
    "optim.name": "lars-classic",
    "optim.epochs": 100,
    "optim.lr": 0.3 * 4096 / 256,
    "optim.lr_by": "step",
    "optim.warmup_epochs": 10.0,
}
CHANGES: dict[str, dict[str, object]] = {
    "moco-v2": {},
    "moco-v2-800ep": {"optim.epochs": 800},
    "moco-v1": {"augment.aug_plus": False, "model.mlp": False, "method.temperature": 0.07, "optim.schedule": "step"},
    "moco-v2-small": {
        "data.image_size": 32,
        "data.global_batch_size": 512,
        "data.mean": (),
        "data.std": (),
        "data.eval_crop_ratio": 1.0,
        "augment.crop_scale": (0.08, 1.0),
        "augment.blur_p": 0.0,
        "model.arch": "resnet18",
        "model.stem": "small",
        "method.queue_size": 4096,
        "method.temperature": 0.1,
        "method.key_momentum": 0.99,
        "method.mask_same_image": True,
        "optim.lr": 0.06,
        "optim.weight_decay": 5e-4,
        "run.precision": "auto",
    },
    "moco-v2-cifar": {
        "data.image_size": 32,
        "data.global_batch_size": 512,
        "data.mean": (0.4914, 0.4822, 0.4465),
        "data.std": (0.2023, 0.1994, 0.2010),
        "data.eval_crop_ratio": 1.0,
        "augment.crop_scale": (0.08, 1.0),
        "augment.blur_p": 0.0,
        "model.arch": "resnet18",
        "model.stem": "small",
        "model.mlp": False,
        "method.queue_size": 4096,
        "method.temperature": 0.1,
        "method.key_momentum": 0.99,
        "method.symmetric": True,
        "optim.lr": 0.06,
        "optim.weight_decay": 5e-4,
        "run.knn_k": 200,
        "run.knn_temperature": 0.1,
    },
    "end-to-end": {
        "augment.aug_plus": False,
        "model.mlp": False,
        "method.name": "end-to-end",
        "method.temperature": 0.07,
        "optim.schedule": "step",
        "data.global_batch_size": 1024,
        "optim.lr": 0.03 * 1024 / 256,
    },
    "memory-bank": {
        "augment.aug_plus": False,
        "model.mlp": False,
        "method.name": "memory-bank",
        "method.temperature": 0.07,
        "optim.schedule": "step",
    },
    "simclr": SIMCLR,
    "simclr-v2-head": {**SIMCLR, "model.head_layers": 3},
    "simclr-cifar": {
        **SIMCLR,
        "data.image_size": 32,
        "data.global_batch_size": 512,
        "data.eval_crop_ratio": 1.0,
        "augment.brightness": 0.4,
        "augment.contrast": 0.4,
        "augment.saturation": 0.4,
        "augment.hue": 0.1,
        "augment.blur_p": 0.0,
        "model.arch": "resnet18",
        "model.stem": "small",
        "model.head_layers": 3,
        "method.temperature": 0.5,
        "optim.epochs": 1000,
        "optim.lr": 1.0 * 512 / 256,
    },
    "moco-v3-r50-100ep": V3_R50,
    "moco-v3-r50-300ep": {**V3_R50, "optim.epochs": 300, "optim.lr": 0.3 * 4096 / 256},
    "moco-v3-r50-1000ep": {
        **V3_R50,
        "optim.epochs": 1000,
        "optim.lr": 0.3 * 4096 / 256,
        "method.key_momentum": 0.996,
        "optim.weight_decay": 1.5e-6,
    },
    "moco-v3-vit-s": V3_VIT_S,
    "moco-v3-vit-b": {**V3_VIT_S, "model.arch": "vit_base_patch16_224"},
    "fast-moco": {  # orashi/Fast-MoCo fastmoco_e100/config.yaml
        "data.global_batch_size": 16 * 32,
        "model.dim": 256,
        "model.zero_init_residual": True,
        "method.name": "moco-v3",
        "method.temperature": 1.0,
        "method.key_momentum": 0.99,
        "method.key_momentum_cos": True,
        "method.bn_groups": 1,
        "method.patch_grid": 2,
        "optim.epochs": 100,
        "optim.lr": 0.1,
        "optim.lr_by": "step",
        "optim.warmup_epochs": 1.0,
        "optim.clip_norm": 1.0,
    },
}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_preset_field_by_field(name: str) -> None:
    changes = {**CHANGES[name]}
    method = str(changes.pop("method.name", "moco"))
    want: dict[str, dict[str, object]] = {section: {**values} for section, values in IMAGENET.items()}
    want["method"] = {"name": method, **SHARED, **METHODS[method]}
    for setting, value in changes.items():
        section, field = setting.split(".")
        assert want[section][field] != value, "listed as a change but equal"
        want[section][field] = value
    assert to_dict(get_preset(name)) == want


def test_all_presets_are_covered_and_summarised() -> None:
    assert set(CHANGES) == set(PRESETS) == set(SUMMARIES)


def test_an_unknown_preset_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(ValueError, match=r"preset='mocov2': unknown; did you mean moco-v2\? choose one of"):
        get_preset("mocov2")


@pytest.mark.parametrize(
    ("switch", "fields"),
    [
        ({"model.mlp": False}, {("model", "mlp")}),
        ({"augment.aug_plus": False}, {("augment", "aug_plus")}),
        ({"optim.schedule": "step"}, {("optim", "schedule")}),
        ({"method.temperature": 0.07}, {("method", "temperature")}),
    ],
)
def test_each_ablation_column_is_one_switch(switch: dict[str, object], fields: set[tuple[str, str]]) -> None:
    """All four together turn moco-v2 into moco-v1."""
    before = to_dict(get_preset("moco-v2"))
    after = to_dict(replace_settings(get_preset("moco-v2"), switch))
    changed = {(s, f) for s in before for f in before[s] if before[s][f] != after[s][f]}
    assert changed == fields
    all_four = {"model.mlp": False, "augment.aug_plus": False, "optim.schedule": "step", "method.temperature": 0.07}
    assert replace_settings(get_preset("moco-v2"), all_four) == get_preset("moco-v1")


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("simclr", {"method.queue_size": 4096}, "method.queue_size=4096: does nothing with method.name=simclr; leave"),
        ("moco-v3-vit-s", {"method.shuffle": False}, "method.shuffle=False: does nothing with method.name=moco-v3"),
        ("moco-v2", {"model.head_layers": 3}, "model.head_layers=3: does nothing with method.name=moco"),
        (
            "moco-v2",
            {"optim.trust_coefficient": 0.01},
            "optim.trust_coefficient=0.01: does nothing with optim.name=sgd",
        ),
        ("moco-v3-vit-s", {"optim.sgd_momentum": 0.5}, "optim.sgd_momentum=0.5: does nothing with optim.name=adamw"),
        ("simclr", {"augment.aug_plus": False}, "augment.aug_plus=False: does nothing with augment.recipe=simclr"),
        (
            "moco-v2",
            {"augment.local_size": 64},
            "augment.local_size=64: does nothing with augment.local_crops=0; leave",
        ),
        (
            "moco-v2",
            {"augment.local_scale": (0.1, 0.2)},
            r"augment.local_scale=\(0.1, 0.2\): does nothing with augment.local_crops=0",
        ),
        ("memory-bank", {"method.symmetric": True}, "method.symmetric=True: does nothing with method.name=memory-bank"),
        (
            "end-to-end",
            {"method.key_momentum": 0.5},
            "method.key_momentum=0.5: does nothing with method.name=end-to-end",
        ),
    ],
)
def test_a_setting_that_the_choice_ignores_is_an_error(preset: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace_settings(get_preset(preset), settings)


def test_the_toml_of_a_preset_names_only_what_it_uses() -> None:
    for name, absent in (
        ("simclr", ("queue_size", "key_momentum", "shuffle", "mlp", "num_negatives", "aug_plus")),
        ("moco-v2", ("head_layers", "num_negatives", "trust_coefficient", "key_momentum_cos", "local_size")),
        ("moco-v3-vit-s", ("queue_size", "sgd_momentum", "symmetric")),
    ):
        names = [line.split(" = ")[0] for line in to_toml(get_preset(name)).splitlines()]
        assert not set(names) & set(absent)
        assert "temperature" in names
