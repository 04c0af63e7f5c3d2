"""Pre-train a backbone, or resume a run: build its parts, restore its state, train, record."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.data.batch import ViewBatch
from mocokit.data.decode.deep import ValueRanges
from mocokit.data.loading.allocator import keep_freed_memory
from mocokit.data.sources.identity import hash_names, image_names
from mocokit.data.sources.left_out import describe_source, names_left_out, require_few_lost
from mocokit.data.sources.open_source import ImageData, absolute_location, open_source
from mocokit.data.value_range import check_ranges
from mocokit.distributed.fsdp import gather_state, is_sharded, load_method_state, load_optimizer_state
from mocokit.engine.agreement import code_version, fingerprints, raise_on_disagreement
from mocokit.engine.backbone_file import exported_step, save_weights
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.checkpoint import list_checkpoints, load_newest, read_newest_entry
from mocokit.engine.health import StateWatch
from mocokit.engine.metrics import MeterBoard
from mocokit.engine.numerics import NUMERICS, recorded_numerics, require_same_numerics
from mocokit.engine.precision import pick_device
from mocokit.engine.progress import ProgressView
from mocokit.engine.recorder import Callbacks, Recorder
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.engine.stop_signal import StopSignal
from mocokit.engine.train import train
from mocokit.methods import add_method
from mocokit.methods.contract import MethodSpec
from mocokit.report.view_sheet import save_view_sheet
from mocokit.run.build import (
    Given,
    Parts,
    build_batches,
    build_run,
    lr_of_step,
    settings_warnings,
)
from mocokit.run.build_views import build_recipes
from mocokit.run.data_identity import (
    RunImages,
    identify_images,
    overlap_warnings,
    require_same_images,
    require_same_shapes,
    with_recorded_mean,
)
from mocokit.settings import require


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Result of a run, whether complete or stopped early."""

    folder: Path
    step: int
    """Optimizer steps done."""
    total_steps: int
    metrics: dict[str, float]
    """Newest value of each metric."""
    signal: int | None
    """Number of the signal that ended it early, or None."""


def pretrain(
    preset: str | Config,
    *,
    out: str | Path,
    data: ImageData | None = None,
    settings: Mapping[str, object] | None = None,
    method: MethodSpec | None = None,
    backbone: nn.Module | None = None,
) -> RunResult:
    """Pre-train a backbone on unlabelled images and fill the run folder `out`.

    Args:
        preset: Name of a preset, or a whole config.
        out: Run folder to make; must be absent or empty.
        data: Training images: where they are, a list of PIL images or uint8 arrays, or an object that reads them
            (`ImageSource`); None: what the config says.
        settings: Dotted settings that differ from the preset, for example {"optim.epochs": 50}.
        method: SPEC of a method of your own (methods/contract.py), used in place of the preset's.
        backbone: Your own network, (N, 3, H, W) -> (N, D), in place of model.arch. It is copied, with its weights; tell
            its width by `mocokit.declare_feature_dim(backbone, D)`.

    Objects can't be written into the run folder: give the same ones to `resume`.

    Raises:
        ValueError: A setting or the data does not allow the run; the message says what to do.
        NonFiniteLossError: The loss became NaN or infinite.

    """
    config = get_preset(preset) if isinstance(preset, str) else preset
    changes = dict(settings or {})
    if method is not None:
        changes = {"method.name": add_method(method).name, **changes}
    source = None
    if isinstance(data, str | Path):
        changes["data.source"] = str(data)
    elif data is not None:
        source = open_source(data)
    given = Given(backbone=backbone, source=source)
    config = given.named_in(locate_data(replace_settings(config, changes)))
    return _run(config, RunFolder(out), given, resume=False)


def locate_data(config: Config) -> Config:
    """Return the config with absolute paths of its images, so that `resume` works from any folder."""
    places = {"data.source": config.data.source, "data.test": config.data.test}
    absolute = {name: absolute_location(place) for name, place in places.items() if place}
    for name, place in absolute.items():
        shown = place.encode("utf-8", "backslashreplace").decode()
        require(shown == place, name, shown, "not UTF-8, which config.toml can't hold; rename it, or link to it")
    return replace_settings(config, absolute)


def resume(
    run: str | Path,
    *,
    data: ImageData | None = None,
    method: MethodSpec | None = None,
    backbone: nn.Module | None = None,
    accept_changes: bool = False,
) -> RunResult:
    """Continue the run in folder `run` from its newest readable checkpoint; a complete run stays as it is.

    Args:
        run: The run folder.
        data: The object or list that `pretrain` was given as data, if any; likewise `method` and `backbone`.
        method: See `data`.
        backbone: See `data`; its weights do not matter.
        accept_changes: Go on although the images changed, or although this version of mocokit computes other numbers
            than the one that began the run.

    Raises:
        ValueError: Not a run folder, no checkpoint in it can be read, an object is needed, or images or numbers
            changed.

    """
    if method is not None:
        add_method(method)
    given = Given(backbone=backbone, source=None if data is None else open_source(data))
    folder = RunFolder(run)
    return _run(from_toml(folder.read_config()), folder, given, resume=True, accept_changes=accept_changes)


def _run(config: Config, folder: RunFolder, given: Given, *, resume: bool, accept_changes: bool = False) -> RunResult:
    device = pick_device(config.run.device, local_rank=distributed.local_rank())
    keep_freed_memory(device)
    session = distributed.session(
        device.type, rank_timeout_s=config.run.rank_timeout_s, alone_timeout_s=config.run.alone_timeout_s
    )
    with session, StopSignal() as signals, ExitStack() as lock:
        raise_on_disagreement(lambda: {"config": to_toml(config), "code": code_version()})
        if not resume:
            distributed.on_main(folder.require_free)
        else:
            given = replace(given, value_ranges=_saved_ranges(folder))
        # Before any file is made: settings and data can be wrong.
        parts = build_run(with_recorded_mean(config, folder) if resume else config, device, given)
        if not resume:
            require_few_lost(parts.reader.source, max_share=config.data.max_bad_share)
        images = identify_images(parts.reader.source)

        def take_folder() -> None:
            """Make the folder this process's own."""
            lock.enter_context(folder.locked())
            if resume:
                folder.remove_partial()
            else:
                folder.create(to_toml(config))

        distributed.on_main(take_folder)
        folder.start_log()
        try:
            start_step = 0
            notes = overlap_warnings(config, parts.reader.source, images)
            if resume:
                start_step, restored = _restore(folder, parts, images, accept_changes=accept_changes)
                notes = restored + notes
                distributed.on_main(lambda: folder.record_resume(start_step))
            images.save(folder)
            return _train(config, folder, parts, images, signals, start_step, notes)
        except Exception as error:
            LOGGER.error("%s: %s", type(error).__name__, error)
            raise
        finally:
            folder.stop_log()


def _saved_ranges(folder: RunFolder) -> ValueRanges | None:
    """Return the value ranges that the run's images were read with; None: no checkpoint says."""
    saved = distributed.from_main(lambda: read_newest_entry(folder.checkpoints, "value_ranges"))
    return None if saved is None else check_ranges(saved)


def _train(
    config: Config,
    folder: RunFolder,
    parts: Parts,
    images: RunImages,
    signals: StopSignal,
    start_step: int,
    notes: list[str],
) -> RunResult:
    total_steps = parts.total_steps
    names_sha256 = hash_names(image_names(parts.reader.source))
    raise_on_disagreement(lambda: _state_to_compare(parts, start_step, names_sha256))
    progress = ProgressView(
        total_steps=total_steps,
        done_steps=start_step,
        steps_per_epoch=parts.steps_per_epoch,
        chance_loss=parts.method.chance_loss,
    )

    def warn(line: str) -> None:
        LOGGER.warning(line)
        progress.say(f"warning: {line}")

    for line in (*notes, *settings_warnings(config, parts), *parts.monitor_warnings, *parts.ranges.warnings):
        warn(line)
    for line in parts.ranges.notes:
        LOGGER.info(line)
        progress.say(line)
    _describe(config, folder, parts, progress, names_sha256, images.digest)
    recorder = _build_recorder(config, folder, parts, images, progress, start_step)
    batches = build_batches(config, parts, start_step=start_step, total_steps=total_steps, on_worker_death=warn)
    if start_step == 0 and distributed.is_main():
        batches = _with_view_sheet(batches, folder.view_sheet)
    with progress, closing(recorder):
        if start_step:
            recorder.catch_up(start_step, exported_step=exported_step(folder.backbone))
        step = train(
            parts.method,
            batches,
            optimizer=parts.optimizer,
            precision=parts.precision,
            device=parts.device,
            lr_of_step=lr_of_step(config, parts.steps_per_epoch),
            start_step=start_step,
            clip_norm=config.optim.clip_norm,
            seed=config.run.seed,
            recorder=recorder,
            signals=signals,
        )
        recorder.finish()
    return RunResult(
        folder=folder.path,
        step=step,
        total_steps=total_steps,
        metrics=recorder.latest,
        signal=signals.agreed if step < total_steps else None,
    )


def _build_recorder(
    config: Config, folder: RunFolder, parts: Parts, images: RunImages, progress: ProgressView, start_step: int
) -> Recorder:
    name = Path(config.data.source).name

    def export(state: dict[str, Any], step: int) -> None:
        card = replace(parts.card, step=step, data=name, data_identity=images.digest)
        save_weights(folder.backbone, _backbone_weights(state["method"]), card)

    return Recorder(
        folder=folder,
        board=MeterBoard(parts.device, may_skip=parts.precision.scaler.is_enabled()),
        view=progress,
        callbacks=Callbacks(
            state=lambda: {**state_of(parts, config), "data": images.state()},
            gauges=lambda: {**parts.method.gauges(), **parts.precision.gauges()},
            export=export,
            gather=parts.monitor.gather if parts.monitor else lambda: None,
            evaluate=parts.monitor.evaluate if parts.monitor else None,
            find_bad=StateWatch(parts.method, parts.optimizer).find,
        ),
        bad_images=BadImageCounter(num_images=len(parts.reader.source), max_share=config.data.max_bad_share),
        steps_per_epoch=parts.steps_per_epoch,
        total_steps=parts.total_steps,
        start_step=start_step,
        log_every=config.run.log_every,
        save_minutes=config.run.save_minutes,
        keep_last=config.run.keep_last,
        knn_every=config.run.knn_every,
    )


def _state_to_compare(parts: Parts, start_step: int, names_sha256: str) -> dict[str, str]:
    """Return the state that must be the same on all ranks; sharded tensors are left out."""
    whole = {name: value for name, value in parts.method.state_dict().items() if not is_sharded(value)}
    return {"step": str(start_step), "data": names_sha256, **fingerprints(whole)}


def _backbone_weights(method_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the query backbone, without the prefix that they have in a method's state."""
    prefix = "encoder_q.backbone."
    return {name.removeprefix(prefix): value for name, value in method_state.items() if name.startswith(prefix)}


def _with_view_sheet(batches: Iterable[ViewBatch], path: Path) -> Iterator[ViewBatch]:
    for number, batch in enumerate(batches):
        if number == 0:
            views = batch.augmented()
            save_view_sheet(path, views.query, views.key, views.local)
        yield batch


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


def _restore(folder: RunFolder, parts: Parts, images: RunImages, *, accept_changes: bool) -> tuple[int, list[str]]:
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


def _describe(
    config: Config, folder: RunFolder, parts: Parts, progress: ProgressView, names_sha256: str, data_identity: str
) -> None:
    """Show the user a summary of the run and of its images, and record the derived numbers in `resolved.toml`."""
    num_images = len(parts.reader.source)
    total_steps = parts.total_steps
    _describe_images(parts, progress)
    progress.say(
        f"{config.method.name}: {config.model.arch} on {num_images:,} images at {config.data.image_size} px, "
        f"{total_steps:,} steps of {config.data.global_batch_size}, {config.method.bn_groups} BatchNorm groups on "
        f"{distributed.world_size()} x {parts.device.type}, {parts.precision.name} -> {folder.path}"
    )
    if not distributed.is_main():
        return
    recipe, key_recipe = build_recipes(config.augment)
    folder.record_resolved(
        {
            "numerics": NUMERICS,
            "num_images": num_images,
            "steps_per_epoch": parts.steps_per_epoch,
            "total_steps": total_steps,
            "mean": list(parts.card.mean),
            "std": list(parts.card.std),
            "value_ranges": {name: list(pair) for name, pair in parts.reader.ranges.items()},
            "recipe": asdict(recipe),
            "key_recipe": asdict(key_recipe),
            "device": str(parts.device),
            "precision": parts.precision.name,
            "workers_per_rank": parts.num_workers,
            "chance_loss": parts.method.chance_loss,
            "rows_per_group": parts.method.layout.rows_per_group(config.data.global_batch_size),
            "names_sha256": names_sha256,
            "data_identity": data_identity,
        }
    )


def _describe_images(parts: Parts, progress: ProgressView) -> None:
    """Show a line about the training and the test images, and log the names of the files that are left out."""
    for kind, source in (("data", parts.reader.source), ("test", parts.test_source)):
        if source is not None:
            line = f"{kind}: {describe_source(source)}"
            progress.say(line)
            LOGGER.info(line)
            for name in names_left_out(source):
                LOGGER.info(name)
