"""The planner against numbers that others measured, and counts against the real thing."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

from mocokit.cli import main
from mocokit.config.presets import get_preset
from mocokit.config.toml import replace_settings
from mocokit.data.batch import ViewBatch
from mocokit.engine.precision import Precision
from mocokit.plan.cost_model import Surroundings, backward_share, memory_by_part, plan
from mocokit.plan.count_flops import count_step
from mocokit.plan.devices import DEVICES
from mocokit.run.build import build_trained
from tests.methods.small import passes

CPU = torch.device("cpu")

TINY = {"model.arch": "resnet10_w16", "data.image_size": 32, "run.precision": "fp32"}


def test_resnet50_counts_are_the_known_ones() -> None:
    """4.09 G multiply-adds and 25.6 M parameters (torchvision's table), of which 2.05 M are fc's; forward twice,
    backward twice as much as one forward, the first convolution without a gradient of its input."""
    counts = count_step(get_preset("moco-v2"), world_size=8)
    assert counts.num_images == 32
    body = sum(parameter.numel() for parameter in resnet50().parameters()) - 2_049_000
    assert counts.num_parameters == body + 2048 * 2048 + 2048 + 2048 * 128 + 128
    assert counts.flops / 32 == pytest.approx(4 * 2 * 4.09e9, rel=0.02)


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("moco-v2-small", {"method.queue_size": 64}),
        ("moco-v2-small", {"method.queue_size": 64, "method.symmetric": True}),
        ("end-to-end", {}),
        ("end-to-end", {"method.micro_groups": 1}),
        ("memory-bank", {"method.num_negatives": 16}),
        ("simclr", {"method.bn_groups": 2}),
        ("simclr", {"method.bn_groups": 2, "method.micro_groups": 1}),
        ("moco-v3-r50-100ep", {"model.head_width": 64}),
    ],
)
def test_every_method_is_counted_as_its_real_step(preset: str, settings: dict[str, object]) -> None:
    """Operations but the loss's (a few rows of 16 numbers), weights, and what takes a gradient."""
    narrow = {**TINY, "data.global_batch_size": 32, "model.dim": 16}
    groups = {} if preset.startswith(("simclr", "moco-v3")) else {"method.bn_groups": 4}
    config = replace_settings(get_preset(preset), {**narrow, **groups, **settings})
    method, _ = build_trained(
        config,
        Precision("fp32", CPU),
        CPU,
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        num_images=100,
        total_steps=10,
    )
    query, key = torch.randint(256, (2, 32, 3, 32, 32), dtype=torch.uint8)
    with FlopCounterMode(display=False) as flops:
        passes(method, ViewBatch(query=query, key=key, image_ids=torch.arange(32)))
    counts = count_step(config)
    assert counts.flops == pytest.approx(flops.get_total_flops(), rel=0.005)
    assert counts.num_trained == sum(p.numel() for p in method.parameters() if p.grad is not None)
    states = [tensor for name, tensor in method.state_dict().items() if name.startswith(("encoder_q.", "encoder_k."))]
    assert counts.weight_bytes == sum(tensor.numel() * tensor.element_size() for tensor in states)


def test_a_memory_bank_grows_with_the_data_set() -> None:
    """MoCo v1 sec. 3.2: a feature of each image; ImageNet's 1,281,167 of 128 numbers."""
    counts = count_step(config := replace_settings(get_preset("memory-bank"), TINY))
    parts = memory_by_part(config, counts, world_size=8, num_images=1_281_167, device_type="cuda")
    assert parts["queue or bank"] == 1_281_167 * (128 * 4 + 1)
    assert memory_by_part(config, counts, world_size=8, num_images=0, device_type="cuda")["queue or bank"] == 0


def test_resnet50_of_moco_v3_has_the_paper_s_projector_and_predictor() -> None:
    """Chen et al. 2021, sec. 4.1: MLPs of width 4096 to 256; one view forward is 4.1 G multiply-adds."""
    counts = count_step(get_preset("moco-v3-r50-100ep"), world_size=128)
    body = sum(parameter.numel() for parameter in resnet50().parameters()) - 2_049_000
    projector = 2048 * 4096 + 4096 * 256 + 2 * 4096
    predictor = 256 * 4096 + 4096 * 256 + 2 * 4096
    assert counts.num_parameters == pytest.approx(body + projector + predictor, rel=1e-3)
    assert counts.flops / counts.num_images == pytest.approx((2 + 2 * 3) * 2 * 4.09e9, rel=0.03)


def test_saved_activations_grow_with_the_micro_batch_alone() -> None:
    config = replace_settings(get_preset("moco-v2-small"), TINY)
    whole = count_step(config)
    eighth = count_step(replace_settings(config, {"method.micro_groups": 1}))
    assert eighth.flops == whole.flops
    assert eighth.activation_bytes == pytest.approx(whole.activation_bytes / 8, rel=0.1)


def test_half_precision_halves_what_is_held() -> None:
    config = replace_settings(get_preset("moco-v2-small"), TINY)
    half = count_step(replace_settings(config, {"run.precision": "bf16"}))
    assert half.activation_bytes == pytest.approx(count_step(config).activation_bytes / 2, rel=0.25)


def test_local_crops_are_counted_as_queries_of_their_size() -> None:
    """A forward and a backward pass of the query, twice a forward's work, and no key: 3 quarters of the 4 of a step;
    four crops of half the side have the pixels of one view."""
    settings = {**TINY, "data.image_size": 64, "data.global_batch_size": 16, "method.bn_groups": 1}
    config = replace_settings(get_preset("moco-v2-small"), settings)
    with_crops = replace_settings(config, {"augment.local_crops": 4, "augment.local_size": 32})
    plain = count_step(config)
    more = count_step(with_crops)
    assert more.flops == pytest.approx(1.75 * plain.flops, rel=0.02)
    assert more.activation_bytes == pytest.approx(2 * plain.activation_bytes, rel=0.1)
    held = [
        memory_by_part(each, plain, world_size=1, num_images=0, device_type="cpu")["views"]
        for each in (config, with_crops)
    ]
    assert held[1] - held[0] == 16 * 4 * 3 * 32**2


def test_a_vision_transformer_can_be_counted() -> None:
    settings = {**TINY, "model.arch": "vit_tiny_patch16_224", "model.stem": "imagenet"}
    counts = count_step(replace_settings(get_preset("moco-v2-small"), settings))
    assert counts.flops > 0
    assert counts.activation_bytes > 0


def test_eight_v100_take_about_as_long_as_officially() -> None:
    """facebookresearch/moco README: 53 hours of pre-training for 200 epochs on 8 V100."""
    config = replace_settings(get_preset("moco-v2"), {"run.compile": "off"})
    made = plan(config, device="V100", world_size=8, num_images=1_281_167)
    assert made.hours == pytest.approx(53, rel=0.15)
    assert made.fits


@pytest.mark.parametrize(("choice", "measured_ms"), [("off", 98.7), ("on", 70.2)])
def test_one_h100_takes_about_what_it_took(choice: str, measured_ms: float) -> None:
    """Eager with one BatchNorm group and compiled with 8; 11,399 and 11,085 MiB of torch's memory at most."""
    config = replace_settings(get_preset("moco-v2"), {"run.precision": "bf16", "run.compile": choice})
    made = plan(config, device="H100", world_size=1, num_images=1_281_167)
    assert 1000 * made.step_s == pytest.approx(measured_ms, rel=0.1)
    allocated = sum(made.memory_bytes.values()) - made.memory_bytes["context"]
    assert allocated == pytest.approx(11_399 * 2**20, rel=0.05)


def test_parts_of_layers_take_their_part_of_the_memory() -> None:
    config = replace_settings(get_preset("moco-v3-vit-s"), {"method.bn_groups": 4, "data.global_batch_size": 512})
    alone, split = (
        plan(replace_settings(config, {"run.shard": choice}), device="A100", world_size=4, num_images=10**6)
        for choice in (False, True)
    )
    for name in ("weights", "gradients", "optimizer"):
        assert split.memory_bytes[name] == alone.memory_bytes[name] / 4
    assert split.memory_bytes["activations"] == alone.memory_bytes["activations"]


def test_gradients_travel_as_a_ring_needs() -> None:
    config = replace_settings(get_preset("moco-v2-small"), {**TINY, "method.shuffle": False})
    around = Surroundings(gpus_per_node=4)
    made = plan(config, device="A100", world_size=8, num_images=10**6, around=around)
    sent = 7 / 8 * (8 * count_step(config).num_parameters + 512 * 128 * 4)
    assert made.communication_s == pytest.approx(sent / 50e9)
    assert made.hidden_s == 0, "all fits into the last bucket"
    assert plan(config, device="A100", world_size=1, num_images=10**6).communication_s == 0


def test_gradients_hide_behind_the_last_micro_batch_s_backward_pass() -> None:
    """MoCo: key and query forward, query backward, which is half of the work."""
    config = replace_settings(get_preset("moco-v2"), {"run.precision": "bf16", "method.shuffle": False})
    counts = count_step(config, world_size=8)
    assert backward_share(config, counts) == pytest.approx(1 / 2)
    fast, slow = (
        plan(config, device="A100", world_size=8, num_images=10**6, around=Surroundings(gpus_per_node=4, network=rate))
        for rate in (50e9, 1e9)
    )
    last_bucket = 25 * 2**20 / (4 * counts.num_trained)
    assert fast.waiting_s == pytest.approx(last_bucket * fast.communication_s, rel=0.01), "but for the embeddings"
    assert slow.hidden_s == pytest.approx(slow.compute_s / 2)
    assert slow.step_s == pytest.approx(slow.compute_s / 2 + slow.communication_s)
    portions = replace_settings(get_preset("simclr"), {"method.bn_groups": 8, "method.micro_groups": 2})
    assert backward_share(portions, count_step(portions)) == pytest.approx(1 / 2 / 4), "views go forward twice"


def test_the_command_prints_what_python_gives(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert main(["plan", "moco-v2-small", "--devices", "2xL4", *flags]) == 0
    text = capsys.readouterr().out
    assert "computed for 2 x L4, not measured" in text
    config = replace_settings(get_preset("moco-v2-small"), TINY)
    assert f"{plan(config, device='L4', world_size=2, num_images=1_281_167).hours:,.1f} h" in text
    assert main(["plan", "moco-v2", "--devices", "8xABC"]) == 1
    assert f"choose one of {list(DEVICES)}" in capsys.readouterr().err
    assert torch.get_default_device().type == "cpu"
