"""Predict what a run needs before it starts: memory by part, time, energy, money, network and storage.

The model adds up, for one step: operations / achieved rate, bytes moved / achieved bandwidth, the exchange of shuffled
views, the gathering of embeddings, and the part of the gradients' ring all-reduce that nothing hides. The all-reduce
runs during the last micro-batch's backward pass, except for its last bucket (distributed/gradients.py). Storage must
deliver the images in the same time. The counts come from count_flops.py, the devices' speeds from devices.py.
"""

from dataclasses import dataclass

from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.engine.compilation import PAYS_FROM_STEPS
from mocokit.losses import CHUNK_ELEMENTS
from mocokit.methods import method_of
from mocokit.plan.count_flops import StepCounts, count_step
from mocokit.plan.devices import DEVICES, Device
from mocokit.settings import choose

FUSED_BYTES = 0.6
"""Share of an eager step's bytes that a compiled step moves. Fitted to the 70 ms that moco-v2 in bf16 took on one H100
(benchmarks/results/step_r50_224_gpu.json). Eager with one BatchNorm group, it took 99 ms, and the model says 106."""

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that travel together, torch's default. The last bucket can't leave before backward ends."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Nodes, network, storage and prices around the devices; the user can change every number."""

    gpus_per_node: int = 8
    """Devices of a node, which share its network and storage."""
    network: float = 50e9
    """Bytes per second between nodes, one direction; 400 Gbit/s."""
    image_bytes: float = 110e3
    """Bytes of a stored image; ImageNet has 1.28 million training JPEGs of 138 GB."""
    price_per_hour: float = 0.0
    """Price of one device for an hour, in any currency."""
    price_per_kwh: float = 0.0
    """Price of a kWh, in the same currency."""
    power_overhead: float = 1.5
    """Watts at the socket for each watt of the devices, for hosts, network and cooling; assumed, not measured."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Predicted cost of a run: computed, not measured."""

    device: str
    world_size: int
    precision: str
    """Number format, "auto" resolved for the device."""
    memory_bytes: dict[str, float]
    """Memory of one device, by part."""
    fits: bool
    """True if the device has that much memory."""
    compute_s: float
    """Seconds of computing in a step."""
    communication_s: float
    """Seconds of communication in a step."""
    hidden_s: float
    """The part of `communication_s` that runs during the backward pass."""
    images_per_s: float
    hours: float
    kwh: float
    money: float
    storage_per_node: float
    """Bytes per second that a node reads."""
    network_per_node: float
    """Bytes per second that a node sends while gradients travel, averaged over the step."""

    @property
    def step_s(self) -> float:
        """Return the seconds of a whole step."""
        return self.compute_s + self.waiting_s

    @property
    def waiting_s(self) -> float:
        """Return the seconds of a step in which the device waits for communication."""
        return self.communication_s - self.hidden_s

    @property
    def bound(self) -> str:
        """Return the larger part of a step: "communication" or "compute"."""
        return "communication" if self.waiting_s > self.compute_s else "compute"


def plan(config: Config, *, device: str, world_size: int, num_images: int, around: Surroundings | None = None) -> Plan:
    """Predict what a run on `world_size` devices needs.

    Args:
        config: The run's settings.
        device: One of DEVICES.
        world_size: Number of devices.
        num_images: Size of the data set.
        around: Nodes, network, images and prices.

    Raises:
        ValueError: Unknown device, or a setting that does not allow this world size or this device.

    """
    card = choose("devices", device, DEVICES)
    around = around or Surroundings()
    precision = card.precision(config.run.precision)
    config = replace_settings(config, {"run.precision": precision})
    counts = count_step(config, world_size=world_size)
    memory = memory_by_part(config, counts, world_size=world_size, num_images=num_images, device_type="cuda")
    memory["context"] = card.overhead_bytes
    total_steps = num_images // config.data.global_batch_size * config.optim.epochs
    compiled = config.run.compile == "on" or (config.run.compile == "auto" and total_steps >= PAYS_FROM_STEPS)
    compute = step_seconds(counts, card, precision=precision, compiled=compiled)
    gradients, rest, sent = _communication(config, counts, card, world_size, around)
    early = max(0.0, 1 - BUCKET_BYTES / (4 * counts.num_trained))
    hidden = min(early * gradients, backward_share(config, counts) * compute)
    step_s = compute + gradients + rest - hidden
    batch = config.data.global_batch_size
    hours = total_steps * step_s / 3600
    kwh = hours * world_size * card.watts * around.power_overhead / 1000
    on_node = min(world_size, around.gpus_per_node)
    return Plan(
        device=device,
        world_size=world_size,
        precision=precision,
        memory_bytes=memory,
        fits=sum(memory.values()) <= card.memory_bytes,
        compute_s=compute,
        communication_s=gradients + rest,
        hidden_s=hidden,
        images_per_s=batch / step_s,
        hours=hours,
        kwh=kwh,
        money=hours * world_size * around.price_per_hour + kwh * around.price_per_kwh,
        storage_per_node=batch / step_s * around.image_bytes * on_node / world_size,
        network_per_node=sent / step_s if world_size > on_node else 0.0,
    )


def memory_by_part(
    config: Config, counts: StepCounts, *, world_size: int, num_images: int, device_type: str
) -> dict[str, float]:
    """Return the bytes that one rank holds when a step needs most, by part; `num_images` is the data set's size."""
    parts = world_size if config.run.shard else 1  # the gathered weights of the block that computes are not counted
    flat = 4.0 * counts.num_trained / parts
    view_bytes = 3 * config.data.image_size**2
    local_bytes = 3 * config.augment.local_size**2
    copies = 3 if world_size > 1 else 1  # shuffled views: as sent, as received, and in order
    shuffled = copies * method_of(config.method).passes(config.method).shuffled_views
    memory = method_of(config.method).state_bytes(config.method, dim=config.model.dim, num_images=num_images)
    return {
        "weights": counts.weight_bytes / parts,
        "gradients": flat,
        "optimizer": flat * (2 if config.optim.name == "adamw" else 1),
        "activations": float(counts.activation_bytes),
        "queue or bank": memory,
        "loss": 3.0 * 4 * CHUNK_ELEMENTS[device_type],  # scores, weights, and a temporary
        "views": float(view_bytes * (2 + shuffled) + local_bytes * config.augment.local_crops)  # uint8
        * counts.num_images,
    }


def step_seconds(counts: StepCounts, card: Device, *, precision: str, compiled: bool = False) -> float:
    """Return the seconds that one rank computes in a step, in "fp32", "fp16" or "bf16"."""
    conv_rate, rate = card.rates(precision)
    computing = (counts.conv_flops / conv_rate + (counts.flops - counts.conv_flops) / rate) / card.compute_efficiency
    moved_bytes = counts.moved_bytes * (FUSED_BYTES if compiled else 1)
    return computing + moved_bytes / (card.bandwidth * card.bandwidth_efficiency)


def backward_share(config: Config, counts: StepCounts) -> float:
    """Return the share of a step's computing that is the last micro-batch's backward pass.

    A backward pass is taken as twice the work of its forward pass.
    """
    passes = method_of(config.method).passes(config.method)
    forward = passes.trained_views * (1 + passes.embeds_again(counts.num_micro_batches)) + passes.key_views
    backward = 2 * passes.trained_views
    return backward / (forward + backward) / counts.num_micro_batches


def _communication(
    config: Config, counts: StepCounts, card: Device, world_size: int, around: Surroundings
) -> tuple[float, float, float]:
    """Return (seconds for gradients, seconds for the rest, bytes that a node sends) of a step.

    Gradients are summed and embeddings gathered around a ring; shuffled views are exchanged. The BatchNorm statistics
    of groups that several ranks share are not counted.
    """
    if world_size == 1:
        return 0.0, 0.0, 0.0
    share = (world_size - 1) / world_size
    passes = method_of(config.method).passes(config.method)
    node = min(world_size, around.gpus_per_node)
    gathered = passes.gathered_rows * config.data.global_batch_size * 4 * config.model.dim
    gradients = share * 2 * 4 * counts.num_trained
    gathering = share * gathered
    views = passes.shuffled_views * counts.num_images * 3 * config.data.image_size**2  # of a rank
    if world_size == node:
        exchanged = share * views
        link = card.link
    else:
        exchanged = node * (1 - node / world_size) * views
        link = min(card.link, around.network)
    return gradients / link, (gathering + exchanged) / link, gradients + gathering + exchanged
