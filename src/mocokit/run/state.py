"""All that a checkpoint holds of a run, and how a run gets it back."""

from typing import Any

import torch

from mocokit import distributed
from mocokit.config.schema import Config
from mocokit.config.toml import to_toml
from mocokit.data.decode.deep import ValueRanges
from mocokit.data.value_range import check_ranges
from mocokit.distributed.fsdp import gather_state, load_method_state, load_optimizer_state
from mocokit.engine.checkpoint import list_checkpoints, load_newest, read_newest_entry
from mocokit.engine.numerics import NUMERICS, recorded_numerics, require_same_numerics
from mocokit.engine.run_folder import RunFolder
from mocokit.run.build import Parts
from mocokit.run.data_identity import RunImages, require_same_images, require_same_shapes


def state_of(parts: Parts, config: Config) -> dict[str, Any]:
    """Return all that a checkpoint holds beside the step; every rank calls it, the main one gets whole tensors."""
    return {
        "method": gather_state(parts.method.state_dict()),
        "optimizer": gather_state(parts.optimizer.state_dict()),
        "scaler": parts.precision.scaler.state_dict(),
        "steps_per_epoch": parts.steps_per_epoch,
        "precision": parts.precision.name,
        "value_ranges": dict(parts.reader.ranges),
        "versions": {"torch": str(torch.__version__)},
        "numerics": NUMERICS,
        "config": to_toml(config),
    }


def restore(folder: RunFolder, parts: Parts, images: RunImages, *, accept_changes: bool) -> tuple[int, list[str]]:
    """Load the newest readable state; return its step, and warnings for the user."""
    if not list_checkpoints(folder.checkpoints):
        return 0, ["killed before the first checkpoint; starting from the beginning"]
    state, problems = load_newest(folder.checkpoints)
    changes = require_same_numerics(folder.path, recorded_numerics(state), accept_changes=accept_changes)
    changes += require_same_images(folder, state, images, accept_changes=accept_changes)
    if state["steps_per_epoch"] != parts.steps_per_epoch:
        length = f"{parts.steps_per_epoch} steps an epoch now, {state['steps_per_epoch']} when the run was saved"
        if not accept_changes:
            raise ValueError(f"data: {length}; put data.global_batch_size and the images back, or start a new run")
        changes.append(f"data: {length}; it goes on at step {state['step']} of {parts.total_steps}")
    if check_ranges(state.get("value_ranges", parts.reader.ranges)) != parts.reader.ranges:
        raise ValueError(
            f"run={folder.path}: its newest checkpoint is damaged and names another value range than the one before; "
            "delete it and resume again"
        )
    require_same_shapes(state["method"], parts.method.state_dict())
    load_method_state(parts.method, state["method"])
    load_optimizer_state(parts.optimizer, state["optimizer"])
    parts.precision.scaler.load_state_dict(state["scaler"])
    notes = changes + [f"{problem}; using an older checkpoint" for problem in problems]
    before = state.get("precision", parts.precision.name)
    if before != parts.precision.name:
        notes.append(f"run.precision=auto: {parts.precision.name} on this machine, {before} until now")
    return int(state["step"]), notes


def saved_ranges(folder: RunFolder) -> ValueRanges | None:
    """Return the value ranges that the run's images were read with; None: no checkpoint says."""
    saved = distributed.from_main(lambda: read_newest_entry(folder.checkpoints, "value_ranges"))
    return None if saved is None else check_ranges(saved)
