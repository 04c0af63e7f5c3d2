"""`plan`."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mocokit.cli.arguments import take_name

if TYPE_CHECKING:
    from mocokit.planning import Plan


def plan_command(arguments: list[str]) -> int:
    """Compute what a run needs."""
    import tyro

    from mocokit.config import Config
    from mocokit.planning import Surroundings, plan
    from mocokit.presets import PRESETS, get_preset

    usage = f"plan {{{','.join(PRESETS)}}} --devices 8xH100 [--data D] [--num-images N] [any flag of pretrain]"
    name, rest = take_name(arguments, "PRESET", usage)

    @dataclass(frozen=True, kw_only=True)
    class Planned:
        config: Annotated[Config, tyro.conf.arg(name="")]
        around: Annotated[Surroundings, tyro.conf.arg(name="")]
        devices: str = "8xH100"
        """Number and kind."""
        num_images: int = 1_281_167
        """Size of the data set, without --data; ImageNet's by default."""

    default = Planned(config=get_preset(name), around=Surroundings())
    asked = tyro.cli(Planned, args=rest, default=default, prog=f"mocokit plan {name}")
    found = re.fullmatch(r"(\d+)x(\w+)", asked.devices)
    if found is None:
        raise ValueError(f"devices={asked.devices}: write number and kind, such as 8xH100")
    num_images = _count(asked.config.data.source) if asked.config.data.source else asked.num_images
    _print_plan(
        plan(asked.config, device=found[2], world_size=int(found[1]), num_images=num_images, around=asked.around)
    )
    return 0


def _count(location: str) -> int:
    from mocokit.data.open_source import open_source

    return len(open_source(location))


def _print_plan(made: "Plan") -> None:
    print(f"computed for {made.world_size} x {made.device}, not measured")
    print("memory of one device")
    for part, size in made.memory_bytes.items():
        print(f"  {part:26}{size / 1e9:10.2f} GB")
    print(f"  {'together':26}{sum(made.memory_bytes.values()) / 1e9:10.2f} GB{'' if made.fits else '   TOO MUCH'}")
    print(f"step: {1000 * made.step_s:.1f} ms, of which communication {made.communication_s / made.step_s:.0%}")
    print(f"run: {made.images_per_s:,.0f} images/s, {made.hours:,.1f} h, {made.kwh:,.0f} kWh, money {made.money:,.0f}")
    print(f"a node reads {made.storage_per_node / 1e6:,.0f} MB/s and sends {made.network_per_node / 1e9:.1f} GB/s")
    if not made.fits:
        print("next: --method.micro-groups 1, which changes no number of the run")
