"""Pre-training, put together: config -> data -> method -> engine -> monitor."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import replace_settings, to_toml
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.allocator import keep_freed_memory
from mocokit.data.sources.open_source import absolute_location
from mocokit.data.views import ImageReader
from mocokit.distributed.fsdp import gathered, is_split, load_method_state, load_optimizer_state
from mocokit.engine import health
from mocokit.engine.agreement import code_version, fingerprints, raise_on_disagreement
from mocokit.engine.backbone_file import save_weights
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.checkpoint import list_checkpoints, load_newest
from mocokit.engine.metrics import MeterBoard
from mocokit.engine.precision import pick_device
from mocokit.engine.progress import ProgressView
from mocokit.engine.recorder import Bookkeeper, Callbacks
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.engine.schedules import learning_rate
from mocokit.engine.stop_signal import StopSignal
from mocokit.engine.train import train
from mocokit.nets.grouped_batchnorm import has_batchnorm
from mocokit.report.view_sheet import save_view_sheet
from mocokit.run.build import Parts, assemble, build_batches, build_recipes


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended."""

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
    data: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> RunResult:
    """Pre-train a backbone on unlabelled images and fill the run folder `out`.

    Args:
        preset: Name of a preset, or a whole config.
        out: Run folder to make; must be absent or empty.
        data: Training images; None: what the config says.
        settings: Dotted settings that differ from the preset, for example {"optim.epochs": 50}.

    Raises:
        ValueError: A setting or the data does not allow the run; the message says what to do.
        NonFiniteLossError: The loss became NaN or infinite.

    """
    config = get_preset(preset) if isinstance(preset, str) else preset
    chosen = dict(settings or {})
    if data is not None:
        chosen["data.source"] = str(data)
    return _run(locate_data(replace_settings(config, chosen)), RunFolder(out), resume=False)


def locate_data(config: Config) -> Config:
    """The config with absolute places of its images, so that `resume` works from any folder."""
    places = {"data.source": config.data.source, "data.test": config.data.test}
    absolute = {name: absolute_location(place) for name, place in places.items() if place}
    return replace_settings(config, absolute)


def resume(run: str | Path) -> RunResult:
    """Continue the run in folder `run` from its newest readable checkpoint; nothing to do when it is complete.

    Raises:
        ValueError: Not a run folder, or no checkpoint in it can be read.

    """
    folder = RunFolder(run)
    return _run(folder.load_config(), folder, resume=True)


def _run(config: Config, folder: RunFolder, *, resume: bool) -> RunResult:
    device = pick_device(config.run.device, local_rank=distributed.local_rank())
    keep_freed_memory(device)
    session = distributed.session(
        device.type, rank_timeout_s=config.run.rank_timeout_s, alone_timeout_s=config.run.alone_timeout_s
    )
    with session, StopSignal() as signals, ExitStack() as lock:
        raise_on_disagreement(lambda: {"config": to_toml(config), "code": code_version()})
        if not resume:
            distributed.on_main(folder.require_free)
        parts = assemble(config, device)  # all that can be wrong with settings and data shows before files appear

        def take() -> None:
            """Make the folder this process's own."""
            lock.enter_context(folder.locked())
            if resume:
                folder.remove_partial()
            else:
                folder.create(config)

        distributed.on_main(take)
        folder.start_log()
        try:
            return _train(config, folder, parts, signals, resume=resume)
        except Exception as error:
            LOGGER.error("%s: %s", type(error).__name__, error)
            raise
        finally:
            folder.stop_log()


def _train(config: Config, folder: RunFolder, parts: Parts, signals: StopSignal, *, resume: bool) -> RunResult:
    method = parts.method
    total_steps = parts.steps_per_epoch * config.optim.epochs
    start_step, problems = _restore(folder, parts) if resume else (0, [])
    names_sha256 = _hash_names(parts.reader)
    raise_on_disagreement(
        lambda: {"step": str(start_step), "data": names_sha256, **fingerprints(_whole_parts(method.state_dict()))}
    )
    progress = ProgressView(
        total_steps=total_steps,
        done_steps=start_step,
        steps_per_epoch=parts.steps_per_epoch,
        chance_loss=method.chance_loss,
    )

    def warn(line: str) -> None:
        LOGGER.warning(line)
        progress.say(f"warning: {line}")

    for line in (*problems, *_health_warnings(config, parts)):
        warn(line)
    _describe(config, folder, parts, progress, total_steps, names_sha256)

    def export(state: dict[str, Any], step: int) -> None:
        save_weights(folder.backbone, _backbone_weights(state["method"]), replace(parts.card, step=step))

    books = Bookkeeper(
        config=config,
        folder=folder,
        board=MeterBoard(parts.device),
        view=progress,
        callbacks=Callbacks(
            state=lambda: state_of(parts),
            gauges=method.gauges,
            export=export,
            gather=parts.gather,
            evaluate=parts.evaluate,
        ),
        bad_images=BadImageCounter(num_images=len(parts.reader.source), max_share=config.data.max_bad_share),
        steps_per_epoch=parts.steps_per_epoch,
        start_step=start_step,
    )
    batches = build_batches(config, parts, start_step=start_step, total_steps=total_steps, on_worker_death=warn)
    if start_step == 0 and distributed.is_main():
        batches = _with_view_sheet(batches, folder.view_sheet)

    with progress, closing(books):
        step = train(
            method,
            batches,
            optimizer=parts.optimizer,
            precision=parts.precision,
            device=parts.device,
            lr_of_step=lambda step: _lr(config, parts.steps_per_epoch, step),
            start_step=start_step,
            clip_norm=config.optim.clip_norm,
            seed=config.run.seed,
            books=books,
            signals=signals,
        )
        books.finish()
    return RunResult(
        folder=folder.path,
        step=step,
        total_steps=total_steps,
        metrics=books.latest,
        signal=signals.received if step < total_steps else None,
    )


def _whole_parts(method_state: Mapping[str, Any]) -> dict[str, Any]:
    """Without what ranks hold different parts of."""
    return {name: value for name, value in method_state.items() if not is_split(value)}


def _backbone_weights(method_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The query backbone's part of a method's state, under the backbone's own names."""
    prefix = "encoder_q.backbone."
    return {name.removeprefix(prefix): value for name, value in method_state.items() if name.startswith(prefix)}


def _with_view_sheet(batches: Iterable[ViewBatch], path: Path) -> Iterator[ViewBatch]:
    for number, batch in enumerate(batches):
        if number == 0:
            views = batch.augmented()
            save_view_sheet(path, views.query, views.key, views.local)
        yield batch


def _lr(config: Config, per_epoch: int, step: int) -> float:
    optim = config.optim
    return learning_rate(
        step,
        steps_per_epoch=per_epoch,
        epochs=optim.epochs,
        peak_lr=optim.lr,
        cos=optim.cos,
        milestones=optim.milestones,
        by=optim.lr_by,
        warmup_epochs=optim.warmup_epochs,
    )


def state_of(parts: Parts) -> dict[str, Any]:
    """All that a checkpoint holds beside the step and the config; every rank calls it, the main one gets it."""
    return {
        "method": gathered(parts.method.state_dict()),
        "optimizer": gathered(parts.optimizer.state_dict()),
        "scaler": parts.precision.scaler.state_dict(),
        "steps_per_epoch": parts.steps_per_epoch,
        "precision": parts.precision.name,
        "versions": {"torch": str(torch.__version__)},
    }


def _restore(folder: RunFolder, parts: Parts) -> tuple[int, list[str]]:
    """Put the newest readable state back: the steps that it saw, and what the user must know."""
    if not list_checkpoints(folder.checkpoints):
        return 0, ["killed before the first checkpoint; starting from the beginning"]
    state, problems = load_newest(folder.checkpoints)
    if state["steps_per_epoch"] != parts.steps_per_epoch:
        raise ValueError(
            f"data: {parts.steps_per_epoch} steps an epoch now, {state['steps_per_epoch']} when the run was saved; "
            "the data set changed: put it back, or start a new run"
        )
    load_method_state(parts.method, state["method"])
    load_optimizer_state(parts.optimizer, state["optimizer"])
    parts.precision.scaler.load_state_dict(state["scaler"])
    notes = [f"{problem}; using an older checkpoint" for problem in problems]
    before = state.get("precision", parts.precision.name)
    if before != parts.precision.name:
        notes.append(f"run.precision=auto: {parts.precision.name} on this machine, {before} until now")
    return int(state["step"]), notes


def _health_warnings(config: Config, parts: Parts) -> list[str]:
    return health.warnings_of_config(
        method=config.method.name,
        bn_groups=config.method.bn_groups,
        shuffle=config.method.shuffle,
        queue_size=config.method.queue_size,
        num_images=len(parts.reader.source),
        mask_same_image=config.method.mask_same_image,
        batchnorm=has_batchnorm(parts.method.encoder_q),
    )


def _describe(
    config: Config, folder: RunFolder, parts: Parts, progress: ProgressView, total_steps: int, names_sha256: str
) -> None:
    """Tell the user what will run, and write down what was worked out."""
    num_images = len(parts.reader.source)
    (recipe, key_recipe) = build_recipes(config)
    progress.say(
        f"{config.method.name}: {config.model.arch} on {num_images:,} images at {config.data.image_size} px, "
        f"{total_steps:,} steps of {config.data.global_batch_size}, {config.method.bn_groups} BatchNorm groups on "
        f"{distributed.world_size()} x {parts.device.type}, {parts.precision.name} -> {folder.path}"
    )
    if distributed.is_main():
        folder.record_resolved(
            {
                "num_images": num_images,
                "steps_per_epoch": parts.steps_per_epoch,
                "total_steps": total_steps,
                "mean": list(parts.card.mean),
                "std": list(parts.card.std),
                "recipe": asdict(recipe),
                "key_recipe": asdict(key_recipe),
                "device": str(parts.device),
                "precision": parts.precision.name,
                "workers_per_rank": parts.num_workers,
                "chance_loss": parts.method.chance_loss,
                "rows_per_group": parts.layout.rows_per_group(config.data.global_batch_size),
                "names_sha256": names_sha256,
            }
        )


def _hash_names(reader: ImageReader) -> str:
    digest = hashlib.sha256()
    for index in range(len(reader.source)):
        digest.update(reader.source.name(index).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
