"""Import a run: a checkpoint of the official MoCo v1/v2 -> a run folder that `mocokit resume` continues.

Weights, BatchNorm statistics, queue, pointer and momentum buffers are kept bit for bit. Layout of the file:
`mocokit.export.to_official`.
"""

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
from mocokit.engine.device import pick_device
from mocokit.engine.new_folder import started
from mocokit.engine.run_folder import RunFolder
from mocokit.foreign.evidence import Hints
from mocokit.foreign.find_backbone import find_backbone
from mocokit.foreign.projects import OFFICIAL
from mocokit.foreign.reading import read_checkpoint
from mocokit.foreign.weights import State, find_groups
from mocokit.methods import official_names
from mocokit.methods.moco import MoCo
from mocokit.run.build import Parts, build_run
from mocokit.run.data_identity import identify_images
from mocokit.run.places import locate_data
from mocokit.run.state import state_of
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """An official checkpoint, and the settings of its run."""

    path: Path
    content: dict[str, Any]
    """All entries of the file."""
    state: State
    """Its state dict, without `module.` in front of the names."""
    config: Config
    """Settings of a preset, with backbone, head, queue and optimizer as in the file; if mocokit wrote the file, the
    config that it put there."""


def read_official_run(checkpoint: str | Path, *, preset: str = "", padding: int | None = None) -> OfficialRun:
    """Read an official checkpoint.

    Args:
        checkpoint: checkpoint_XXXX.pth.tar.
        preset: Preset for settings that are not in the file; empty: moco-v2 for an MLP head, else moco-v1.
        padding: Padding of a 3x3 first convolution, 1 or 2, which the file does not tell.

    Raises:
        ValueError: The file can't be read, is not official, or lacks queue, epoch or optimizer.

    """
    path = Path(checkpoint).expanduser()
    content = read_checkpoint(path)
    try:
        found = find_backbone(content, Hints(padding=padding))
        if found.project != OFFICIAL or not {"epoch", "optimizer"} <= set(content):
            raise ValueError(
                "only official MoCo v1/v2 checkpoints with queue, epoch and optimizer can be continued, this is "
                f"{found.project}; import its backbone into a .safetensors file"
            )
        state = next(group.state for group in find_groups(content) if f"{group.path}.encoder_q.".endswith(found.path))
        if not {"queue", "queue_ptr"} <= set(state):
            raise ValueError("lacks module.queue or module.queue_ptr")
        settings = {**_head_settings(state), **_optimizer_settings(content["optimizer"])}
        if "mocokit" in content:
            return OfficialRun(path=path, content=content, state=state, config=from_toml(content["mocokit"]["config"]))
        base = get_preset(preset or ("moco-v2" if settings["model.mlp"] else "moco-v1"))
        same_head = base.model.mlp == settings["model.mlp"]
        require(same_head, "preset", preset, "its head is not the file's; leave --preset out")
        # The file does not hold the batch size. A batch of keys must fit into the queue.
        batch = min(base.data.global_batch_size, state["queue"].shape[1])
        settings |= {"model.arch": found.arch, "model.stem": found.stem, "data.global_batch_size": batch}
        return OfficialRun(path=path, content=content, state=state, config=replace_settings(base, settings))
    except ValueError as error:
        raise ValueError(f"checkpoint={path}: {error}") from error


def _head_settings(state: State) -> dict[str, object]:
    """Return the settings of head and queue from their shapes; raise ValueError if these contradict each other."""
    last = state.get("encoder_q.fc.2.weight", state.get("encoder_q.fc.weight"))
    if last is None:
        raise ValueError("has no head (encoder_q.fc.weight, or encoder_q.fc.0 and fc.2 of an MLP)")
    dim, queue_size = state["queue"].shape  # (C, K)
    if len(last) != dim:
        raise ValueError(f"its head has {len(last)} outputs, its queue keys of {dim}; they are from different runs")
    return {"model.mlp": "encoder_q.fc.2.weight" in state, "model.dim": dim, "method.queue_size": queue_size}


def _optimizer_settings(optimizer: dict[str, Any]) -> dict[str, object]:
    """Return momentum and weight decay.

    The file's learning rate is that of its last epoch, not the peak of the schedule, so it is not used.
    """
    (group,) = optimizer["param_groups"]
    return {"optim.sgd_momentum": group["momentum"], "optim.weight_decay": group["weight_decay"]}


def import_run(run: OfficialRun, out: str | Path, *, config: Config) -> int:
    """Make the run folder `out`; return the number of optimizer steps that the run has done.

    Args:
        run: The checkpoint.
        out: Folder to make.
        config: Settings to continue with: `run.config` with the path of the images and the user's changes.

    Raises:
        ValueError: The settings or the images do not fit the file.

    """
    folder = RunFolder(out)
    config = locate_data(config)
    folder.require_free()
    for setting, value in (_head_settings(run.state) | {"model.arch": run.config.model.arch}).items():
        section, name = setting.split(".")
        given = getattr(getattr(config, section), name)
        require(given == value, setting, given, f"the checkpoint's is {value}; leave it out")
    parts = build_run(config, pick_device(config.run.device, local_rank=0))
    extras = run.content.get("mocokit", {})  # if mocokit wrote the file; see to_official.EXTRAS
    steps_per_epoch = parts.steps_per_epoch
    step = extras.get("step", run.content["epoch"] * steps_per_epoch)
    before = extras.get("steps_per_epoch", steps_per_epoch)
    problem = f"{steps_per_epoch} steps an epoch, but the run had {before}; give it the same images and batch size"
    require(before == steps_per_epoch, "data", config.data.source, problem)
    parts.method.load_state_dict(_method_state(run, parts, num_keys=step * config.data.global_batch_size))
    parts.optimizer.load_state_dict(_optimizer_state(run, parts))
    if "scaler" in extras:
        parts.precision.scaler.load_state_dict(extras["scaler"])
    images = identify_images(parts.reader.source, parts.test_source)
    state = {**state_of(parts, config), "data": images.state(), "step": step}
    with started(folder, to_toml(config)):
        images.save(folder)
        save_checkpoint(folder.checkpoints, state, step=step, keep_last=config.run.keep_last)
        origin = f"{run.path.name} ({OFFICIAL})"
        save_backbone(folder.backbone, parts.method.encoder_q.backbone, replace(parts.card, step=step, origin=origin))
        folder.keep()
    return int(step)


def _method_state(run: OfficialRun, parts: Parts, *, num_keys: int) -> dict[str, Any]:
    """Return the file's weights and queue under mocokit's names.

    Args:
        run: The checkpoint.
        parts: Objects of the new run; the size of the queue is read from them.
        num_keys: Keys enqueued so far, computed from the file's epoch; only full turns of the queue are used.

    """
    state: dict[str, Any] = {}
    for encoder in ("encoder_q", "encoder_k"):
        for name, value in run.state.items():
            if name.startswith(f"{encoder}."):
                state[f"{encoder}.{official_names.ours(name.removeprefix(f'{encoder}.'))}"] = value
    assert isinstance(parts.method, MoCo), "official runs use the presets of MoCo v1 and v2"
    extras = run.content.get("mocokit", {})
    size = len(parts.method.queue.keys)
    state["queue.keys"] = run.state["queue"].T.contiguous()  # (K, C)
    state["queue.image_ids"] = extras.get("image_ids", torch.full((size,), -1))  # -1: image unknown
    # The official pointer is the number of enqueued keys modulo K; full turns of the ring come from the epoch.
    whole_turns = num_keys // size * size
    num_enqueued = extras.get("num_enqueued", whole_turns + int(run.state["queue_ptr"]))
    state["queue._extra_state"] = {"num_enqueued": num_enqueued}
    return state


def _optimizer_state(run: OfficialRun, parts: Parts) -> dict[str, Any]:
    """Return the file's momentum buffers under mocokit's parameter numbers.

    Both numberings are resolved to names, so the order of parameters in either does not matter.
    """
    optimizer = run.content["optimizer"]
    names = [name for name in run.state if name.startswith("encoder_") and official_names.is_parameter(name)]
    buffers: dict[str, Tensor] = {
        f"encoder_q.{official_names.ours(names[number].removeprefix('encoder_q.'))}": entry
        for number, entry in optimizer["state"].items()
        if names[number].startswith("encoder_q.")
    }
    ours = parts.optimizer.state_dict()
    trained = [name for name, value in parts.method.named_parameters() if value.requires_grad]
    theirs = {name: value for name, value in optimizer["param_groups"][0].items() if name in SGD_SETTINGS}
    return {
        "state": {number: buffers[name] for number, name in enumerate(trained) if name in buffers},
        "param_groups": [{**ours["param_groups"][0], **theirs}],
    }


SGD_SETTINGS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")
"""Settings of SGD taken from the file; `foreach` and `fused` stay mocokit's, since they depend on the machine."""
