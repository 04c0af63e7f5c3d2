"""When a run is evaluated, and that a failing evaluation is told and does not end the run."""

import logging
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from mocokit import distributed

LOGGER = logging.getLogger("mocokit")

EVALUATION_ERRORS = (
    ValueError,  # none of the images can be read any more
    OSError,  # a disk, a mount or a loader worker is gone; no shared memory
    EOFError,
    zipfile.BadZipFile,  # an archive was overwritten during the run
    RuntimeError,  # torch: no memory on the device, shapes that do not fit
    MemoryError,
    ArithmeticError,
    LookupError,  # this and the next two: a backbone of the user's own whose eval mode is broken
    TypeError,
    AttributeError,
)
"""Errors of an evaluation that training can go on after."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of an evaluation, the same on all ranks."""

    values: dict[str, float]
    """Metrics; empty if it failed."""
    problem: str = ""
    """A sentence about why it failed."""


def is_due(step: int, *, every_epochs: int, steps_per_epoch: int, total_steps: int) -> bool:
    """Return True if the run is evaluated after `step` steps: each `every_epochs` epochs, and at its end; 0: never."""
    epoch, rest = divmod(step, steps_per_epoch)
    return bool(every_epochs) and step > 0 and rest == 0 and (epoch % every_epochs == 0 or step == total_steps)


def evaluate(gather: Callable[[], None], measure: Callable[[], dict[str, float]]) -> Evaluation:
    """Run `measure` on the main rank while the others wait; return its values, or why it failed, on all ranks.

    Args:
        gather: Brings together what `measure` needs; a collective.
        measure: Returns metrics; called on the main rank.

    """
    gather()
    done = Evaluation(values={})
    with distributed.work_alone():
        if distributed.is_main():
            done = _try(measure)
    return distributed.all_gather_objects(done)[0]


def _try(measure: Callable[[], dict[str, float]]) -> Evaluation:
    try:
        return Evaluation(values=measure())
    except EVALUATION_ERRORS as error:
        LOGGER.warning("the evaluation failed here:\n%s", traceback.format_exc().rstrip())
        reason = (str(error).strip().splitlines() or [""])[0]
        return Evaluation(values={}, problem=f"{type(error).__name__}: {reason}" if reason else type(error).__name__)
