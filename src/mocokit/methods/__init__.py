"""Contrastive methods, one file each: the maths of one global batch, its settings and what it costs.

May import `nets`, `losses`, `distributed` and `data/batch`; never the config or the engine.
"""

from importlib.metadata import entry_points
from typing import Any

from mocokit.methods import end_to_end, fast_moco, memory_bank, moco, moco_v3, simclr
from mocokit.methods.contract import MethodSpec
from mocokit.settings import choose

SPECS: dict[str, MethodSpec] = {
    spec.name: spec
    for spec in (moco.SPEC, end_to_end.SPEC, memory_bank.SPEC, simclr.SPEC, moco_v3.SPEC, fast_moco.SPEC)
}
"""Methods that this process knows: ours, and those that `add_method` was given."""

ENTRY_POINTS = "mocokit.methods"
"""Group of entry points in which an installed package can offer methods, each under its name."""


def find_method(name: str) -> MethodSpec:
    """Return the method of that name: one of ours, one given to `add_method`, or one that an installed package offers.

    Raises:
        ValueError: There is none; the message says how to give one.

    """
    if name in SPECS:
        return SPECS[name]
    installed = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    known: dict[str, Any] = {**SPECS, **installed}
    try:
        return add_method(choose("method.name", name, known).load())
    except ValueError as error:
        raise ValueError(
            f"{error}; a method of your own is given by --method-from PACKAGE.MODULE:SPEC, or method=SPEC in Python, "
            "each time that the run is started or resumed"
        ) from error


def add_method(spec: Any) -> MethodSpec:
    """Make a method from outside the package known to this process, by its name.

    Raises:
        ValueError: Not a MethodSpec, or another method has its name.

    """
    if not isinstance(spec, MethodSpec):
        raise ValueError(f"method={spec!r}: not a mocokit.MethodSpec")
    if SPECS.setdefault(spec.name, spec) is not spec:
        raise ValueError(f"method={spec.name!r}: another method has this name; choose a different one")
    return spec


def method_of(settings: Any) -> MethodSpec:
    """Return the method that these settings belong to."""
    return find_method(settings.name)
