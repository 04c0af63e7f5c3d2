"""A checkpoint of the official MoCo v1/v2 -> a run folder that `mocokit resume` continues, with queue and optimizer."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.engine.backbone_file import save_backbone
from mocokit.engine.checkpoint import save_checkpoint
from mocokit.engine.precision import pick_device
from mocokit.engine.run_folder import RunFolder
from mocokit.foreign.architecture import infer_architecture
from mocokit.foreign.layouts import OFFICIAL, State, find_weights, recognise
from mocokit.foreign.reading import read_checkpoint
from mocokit.methods import official_names
from mocokit.methods.moco import MoCo
from mocokit.run.build import Parts, build_run
from mocokit.run.pretrain import locate_data, state_of


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """An official checkpoint, and what it says about its run."""

    path: Path
    content: dict[str, Any]
    state: State
    """Without `module.` in front of the names."""
    config: Config
    """A preset with what the file fixes: backbone, head, queue, optimizer; or the config that mocokit put into it."""


def read_official_run(checkpoint: str | Path, *, preset: str = "") -> OfficialRun:
    """Read an official checkpoint.

    Args:
        checkpoint: checkpoint_XXXX.pth.tar.
        preset: Whose settings fill what the file does not say; empty: moco-v2 for an MLP head, else moco-v1.

    Raises:
        ValueError: Not readable, not official, or without what continuing needs.

    """
    path = Path(checkpoint).expanduser()
    content = read_checkpoint(path)
    try:
        found = recognise(content)
        if found.layout is not OFFICIAL or not {"epoch", "optimizer"} <= set(content):
            raise ValueError(
                f"only official MoCo v1/v2 checkpoints with queue, epoch and optimizer can be continued, this is "
                f"{found.layout.name}; import its backbone into a .safetensors file"
            )
        state = find_weights(content)
        if not {"queue", "queue_ptr"} <= set(state):
            raise ValueError("lacks module.queue or module.queue_ptr")
        settings = {**_head_settings(state), **_optimizer_settings(content["optimizer"])}
        arch, stem = infer_architecture(found.backbone)
        if "mocokit" in content:
            return OfficialRun(path=path, content=content, state=state, config=from_toml(content["mocokit"]["config"]))
        base = get_preset(preset or ("moco-v2" if settings["model.mlp"] else "moco-v1"))
        if base.model.mlp != settings["model.mlp"]:
            raise ValueError(f"preset={preset}: another head than the file's; leave the preset out")
        batch = min(base.data.global_batch_size, state["queue"].shape[1])  # the file does not say; at most the queue
        settings |= {"model.arch": arch, "model.stem": stem, "data.global_batch_size": batch}
        return OfficialRun(path=path, content=content, state=state, config=replace_settings(base, settings))
    except ValueError as error:
        raise ValueError(f"checkpoint={path}: {error}") from error


def _head_settings(state: State) -> dict[str, object]:
    """Head and queue, told by shapes; ValueError when they do not fit each other."""
    last = state.get("encoder_q.fc.2.weight", state.get("encoder_q.fc.weight"))
    if last is None:
        raise ValueError("has no head (encoder_q.fc.weight, or fc.0 and fc.2 of an MLP)")
    dim, queue_size = state["queue"].shape
    if len(last) != dim:
        raise ValueError(f"its head is {len(last)} wide, its queue holds keys of {dim}; they are not of one run")
    return {"model.mlp": "encoder_q.fc.2.weight" in state, "model.dim": dim, "method.queue_size": queue_size}


def _optimizer_settings(optimizer: dict[str, Any]) -> dict[str, object]:
    """The learning rate is not among them: the file holds that of its last epoch, not the schedule's peak."""
    (group,) = optimizer["param_groups"]
    return {"optim.sgd_momentum": group["momentum"], "optim.weight_decay": group["weight_decay"]}


def import_run(run: OfficialRun, out: str | Path, *, config: Config) -> int:
    """Make the run folder `out`; returns the optimizer steps that the run has behind it.

    Args:
        run: What was read.
        out: Folder to make.
        config: Settings to continue with: `run.config` with the place of the images, and what the user changes.

    Raises:
        ValueError: The settings do not fit the file, or the images do not.

    """
    folder = RunFolder(out)
    config = locate_data(config)
    folder.require_free()
    for setting, value in (_head_settings(run.state) | {"model.arch": run.config.model.arch}).items():
        section, name = setting.split(".")
        if getattr(getattr(config, section), name) != value:
            raise ValueError(f"{setting}={getattr(getattr(config, section), name)}: the checkpoint's is {value}")
    parts = build_run(config, pick_device(config.run.device, local_rank=0))
    own = run.content.get("mocokit", {})
    step = own.get("step", run.content["epoch"] * parts.steps_per_epoch)
    if own.get("steps_per_epoch", parts.steps_per_epoch) != parts.steps_per_epoch:
        raise ValueError(
            f"data: {parts.steps_per_epoch} steps an epoch, {own['steps_per_epoch']} in the run; other data?"
        )
    parts.method.load_state_dict(_method_state(run, parts, num_keys=step * config.data.global_batch_size))
    parts.optimizer.load_state_dict(_optimizer_state(run, parts))
    if "scaler" in own:
        parts.precision.scaler.load_state_dict(own["scaler"])
    state = {**state_of(parts, config), "step": step}
    folder.create(to_toml(config))
    save_checkpoint(folder.checkpoints, state, step=step, keep_last=config.run.keep_last)
    origin = f"{run.path.name} ({OFFICIAL.name})"
    save_backbone(folder.backbone, parts.method.encoder_q.backbone, replace(parts.card, step=step, origin=origin))
    return int(step)


def _method_state(run: OfficialRun, parts: Parts, *, num_keys: int) -> dict[str, Any]:
    """The file's weights and queue under our names.

    Args:
        run: What was read.
        parts: For how many slots the queue has.
        num_keys: Keys that the run has enqueued, as far as its epochs tell.

    """
    state: dict[str, Any] = {}
    for encoder in ("encoder_q", "encoder_k"):
        for name, value in run.state.items():
            if name.startswith(f"{encoder}."):
                state[f"{encoder}.{official_names.ours(name.removeprefix(f'{encoder}.'))}"] = value
    assert isinstance(parts.method, MoCo), "the presets of official runs are MoCo v1's and v2's"
    own = run.content.get("mocokit", {})
    size = len(parts.method.queue.keys)
    state["queue.keys"] = run.state["queue"].T.contiguous()  # (K, C)
    state["queue.image_ids"] = own.get("image_ids", torch.full((size,), -1))  # unknown, as for noise
    whole_turns = num_keys // size * size  # the official pointer is the count modulo K
    counted = own.get("num_enqueued", whole_turns + int(run.state["queue_ptr"]))
    state["queue._extra_state"] = {"num_enqueued": counted}
    return state


def _optimizer_state(run: OfficialRun, parts: Parts) -> dict[str, Any]:
    """The file's momentum buffers, numbered as ours; by name, so that the order of either does not matter."""
    optimizer = run.content["optimizer"]
    names = [name for name in run.state if name.startswith("encoder_") and official_names.is_parameter(name)]
    buffers: dict[str, Tensor] = {
        f"encoder_q.{official_names.ours(names[number].removeprefix('encoder_q.'))}": entry
        for number, entry in optimizer["state"].items()
        if names[number].startswith("encoder_q.")
    }
    own = parts.optimizer.state_dict()
    trained = [name for name, value in parts.method.named_parameters() if value.requires_grad]
    theirs = {name: value for name, value in optimizer["param_groups"][0].items() if name in SGD_SETTINGS}
    return {
        "state": {number: buffers[name] for number, name in enumerate(trained) if name in buffers},
        "param_groups": [{**own["param_groups"][0], **theirs}],
    }


SGD_SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
"""What the file decides; which kernel does the step is ours to say."""
