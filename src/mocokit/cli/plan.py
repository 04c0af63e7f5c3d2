"""The command `mocokit plan`."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mocokit.cli.arguments import OwnMethod, parse, take_option, take_preset, tell

if TYPE_CHECKING:
    from mocokit.config.schema import Config
    from mocokit.plan.cost_model import Plan


def plan_command(arguments: list[str]) -> int:
    """Compute and print what a run needs."""
    import tyro

    from mocokit.config.schema import Config
    from mocokit.data.sources.left_out import describe_source
    from mocokit.data.sources.open_source import open_source, with_columns
    from mocokit.plan.cost_model import Surroundings, plan
    from mocokit.plan.remedies import remedies
    from mocokit.run.build_views import describe_views

    flags = "--devices 8xH100 [--data D] [--num-images N] [any flag of pretrain]"
    method_from, _ = take_option(arguments, "--method-from")
    name, preset, rest = take_preset(arguments, "plan", flags)

    @dataclass(frozen=True, kw_only=True)
    class Planned(OwnMethod):
        config: Annotated[Config, tyro.conf.arg(name="")]
        around: Annotated[Surroundings, tyro.conf.arg(name="")]
        devices: str = "8xH100"
        """Number and kind of devices, such as 8xH100."""
        measure: bool = False
        """Also train some steps on this machine (`--device`); print their time and memory, and the run's hours."""
        num_images: int = 1_281_167
        """Number of training images, used without --data; ImageNet's by default."""

    default = Planned(config=preset, around=Surroundings())
    asked = parse(
        Planned,
        rest,
        default=default,
        prog=f"mocokit plan {name}",
        description="Compute memory, time, energy and money of a run beforehand.",
        example="mocokit plan moco-v2 --devices 8xH100 --num-images 1000000",
    )
    if asked.measure and method_from:
        raise ValueError("measure=True: steps are measured in a process that does not know --method-from; leave it out")
    found = re.fullmatch(r"(\d+)x(\w+)", asked.devices)
    if found is None:
        raise ValueError(f"devices={asked.devices}: write number and kind, such as 8xH100")
    _require_no_device(asked.config.run.device, measure=asked.measure)
    num_images = asked.num_images
    if data := asked.config.data.source:
        source = open_source(with_columns(data, path_column=asked.config.data.path_column))
        num_images = len(source)
        tell(f"data: {describe_source(source)}")
    world_size = int(found[1])
    on: dict[str, Any] = {"device": found[2], "world_size": world_size, "num_images": num_images}
    made = plan(asked.config, **on, around=asked.around)
    _print_plan(made)
    for line in describe_views(asked.config.augment):
        print(line)
    if not made.fits:
        helps = remedies(asked.config, **on, around=asked.around)
        print("what fits, with the same numbers:")
        for line in helps or ["nothing that was tried; use a smaller batch or network"]:
            print(f"  {line}")
    if asked.measure:
        _print_measured(asked.config, num_images)
    return 0


def _require_no_device(device: str, *, measure: bool) -> None:
    """Raise ValueError if a device is named that nothing is measured on: --device is near to --devices."""
    if device != "auto" and not measure:
        raise ValueError(
            f"run.device={device}: `plan` computes for --devices, such as 8xH100; leave it out, or add --measure to "
            "train some steps on it"
        )


def _print_measured(config: "Config", num_images: int) -> None:
    from mocokit.data.loading.loader import steps_per_epoch
    from mocokit.engine.device import pick_device
    from mocokit.plan.cost_model import memory_by_part
    from mocokit.plan.count_flops import count_step
    from mocokit.plan.measure_step import measure_step

    device = pick_device(config.run.device, local_rank=0).type
    cost = measure_step(config)
    predicted = sum(
        memory_by_part(config, count_step(config), world_size=1, num_images=num_images, device_type=device).values()
    )
    hours = steps_per_epoch(num_images, config.data.global_batch_size) * config.optim.epochs * cost.step_s / 3600
    print(f"\nmeasured on this machine ({device}), one process, views not counted")
    print(f"  memory {cost.peak_megabytes * 2**20 / 1e9:.2f} GB, computed {predicted / 1e9:.2f} without libraries")
    print(f"  step: {1000 * cost.step_s:.1f} ms ({1000 * cost.fastest_s:.1f} to {1000 * cost.slowest_s:.1f})")
    print(f"  run: {config.data.global_batch_size / cost.step_s:,.0f} images/s, {hours:,.1f} h")


def _print_plan(made: "Plan") -> None:
    print(f"computed for {made.world_size} x {made.device}, not measured")
    print(f"number format: {made.precision}")
    print("memory of one device")
    for part, size in made.memory_bytes.items():
        print(f"  {part:26}{size / 1e9:10.2f} GB")
    print(f"  {'together':26}{sum(made.memory_bytes.values()) / 1e9:10.2f} GB{'' if made.fits else '   TOO MUCH'}")
    print(f"step: {1000 * made.step_s:.1f} ms, of which waiting for the network {made.waiting_s / made.step_s:.0%}")
    print(f"run: {made.images_per_s:,.0f} images/s, {made.hours:,.1f} h, {made.kwh:,.0f} kWh, money {made.money:,.0f}")
    print(f"a node reads {made.storage_per_node / 1e6:,.0f} MB/s and sends {made.network_per_node / 1e9:.1f} GB/s")
