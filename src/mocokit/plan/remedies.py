"""Find what makes a planned run fit into its devices; each choice is planned before it is named."""

from collections.abc import Iterator

from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings
from mocokit.methods.groups import GroupLayout
from mocokit.plan.cost_model import Plan, Surroundings, plan

MOST_DEVICES = 1024


def remedies(
    config: Config, *, device: str, world_size: int, num_images: int, around: Surroundings | None = None
) -> list[str]:
    """Return what makes the run fit without changing a number of it, each with the memory of one device.

    Args:
        config: The run's settings, which don't fit.
        device: One of DEVICES.
        world_size: Number of devices.
        num_images: Size of the data set.
        around: Nodes, network, images and prices.

    """

    def plan_of(settings: dict[str, object], num_devices: int) -> Plan:
        changed = replace_settings(config, settings)
        return plan(changed, device=device, world_size=num_devices, num_images=num_images, around=around)

    lines = []
    for size in _micro_groups(config, world_size):
        made = plan_of({"method.micro_groups": size}, world_size)
        if made.fits:
            lines.append(f"--method.micro-groups {size}: {_gigabytes(made)}")
            break
    if config.optim.name == "adamw" and not config.run.shard and world_size > 1:
        made = plan_of({"run.shard": True, "run.compile": "auto"}, world_size)
        if made.fits:
            lines.append(f"--run.shard: {_gigabytes(made)}")
    for num_devices in _larger(config, world_size):
        made = plan_of({}, num_devices)
        if made.fits:
            lines.append(f"--devices {num_devices}x{device}: {_gigabytes(made)}")
            break
    return lines


def _micro_groups(config: Config, world_size: int) -> Iterator[int]:
    """Yield smaller micro-batches, largest first; none if a rank computes one group or a part of one."""
    layout = GroupLayout(bn_groups=config.method.bn_groups, world_size=world_size)
    size = len(layout.groups_of(0))
    if layout.ranks_per_group > 1:
        return
    size = min(size, config.method.micro_groups or size)
    while size > 1:
        size //= 2
        yield size


def _larger(config: Config, world_size: int) -> Iterator[int]:
    """Yield larger numbers of devices over which the batch splits."""
    num_devices = 2 * world_size
    while num_devices <= min(MOST_DEVICES, config.data.global_batch_size):
        try:
            layout = GroupLayout(bn_groups=config.method.bn_groups, world_size=num_devices)
            layout.rows_per_group(config.data.global_batch_size)
        except ValueError:  # the groups do not split so
            return
        yield num_devices
        num_devices *= 2


def _gigabytes(made: Plan) -> str:
    return f"{sum(made.memory_bytes.values()) / 1e9:.1f} GB"
