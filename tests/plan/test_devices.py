"""Number formats of the devices: what a run computes in on each, and at which rate."""

import pytest

from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.plan.cost_model import plan, step_seconds
from mocokit.plan.count_flops import count_step
from mocokit.plan.devices import DEVICES

TINY = {"model.arch": "resnet10_w16", "data.image_size": 32}

VIT = {
    "model.arch": "vit_tiny_patch16_224",
    "model.stem": "imagenet",
    "data.image_size": 32,
    "run.precision": "fp32",
}


@pytest.mark.parametrize(
    ("device", "want"), [("V100", "fp32"), *((name, "bf16") for name in DEVICES if name != "V100")]
)
def test_auto_is_what_the_device_computes_in(device: str, want: str) -> None:
    """engine/precision.py: bf16 if the hardware has it, which a V100 (compute capability 7.0) has not, else fp32."""
    want = "fp32" if device == "V100" else "bf16"
    made = {
        choice: plan(
            replace_settings(get_preset("moco-v2-small"), {**TINY, "run.precision": choice}),
            device=device,
            world_size=1,
            num_images=10**6,
        )
        for choice in ("auto", want)
    }
    assert made["auto"] == made[want]
    assert made["auto"].precision == want


def test_a_v100_has_fp16_but_no_bf16() -> None:
    config = replace_settings(get_preset("moco-v2-small"), TINY)
    half, single = (
        plan(replace_settings(config, {"run.precision": name}), device="V100", world_size=1, num_images=10**6)
        for name in ("fp16", "fp32")
    )
    assert half.compute_s < single.compute_s
    with pytest.raises(ValueError, match=r"run.precision=bf16: this device computes no bfloat16; plan with auto, fp32"):
        plan(replace_settings(config, {"run.precision": "bf16"}), device="V100", world_size=1, num_images=10**6)


def test_fp64_is_not_planned_as_something_else() -> None:
    config = replace_settings(get_preset("moco-v2-small"), {**TINY, "run.precision": "fp64"})
    with pytest.raises(ValueError, match=r"run.precision=fp64: .* not planned"):
        plan(config, device="H100", world_size=1, num_images=10**6)


def test_fp32_linear_layers_get_no_tf32() -> None:
    """torch allows cuDNN's convolutions TF32, but matrix products not: 67 instead of 494 TFLOPS on an H100."""
    counts = count_step(replace_settings(get_preset("moco-v2-small"), VIT))
    assert counts.conv_flops < 0.1 * counts.flops, "the patch projection alone"
    card = DEVICES["H100"]
    moved = counts.moved_bytes / (card.bandwidth * card.bandwidth_efficiency)
    computing = step_seconds(counts, card, precision="fp32") - moved
    linear = counts.flops - counts.conv_flops
    assert computing * card.compute_efficiency == pytest.approx(linear / 67e12 + counts.conv_flops / 494e12)


def test_fp32_convolutions_get_tf32_where_the_hardware_has_it() -> None:
    counts = count_step(get_preset("moco-v2"), world_size=8)
    assert counts.conv_flops > 0.99 * counts.flops
    assert DEVICES["A100"].rates("fp32") == (156e12, 19.5e12)
    assert DEVICES["V100"].rates("fp32") == (15.7e12, 15.7e12), "before Ampere there is none"
    assert DEVICES["4090"].rates("bf16") == (165e12, 165e12)
