"""Pre-train a backbone, or resume a run: build its parts, restore its state, train, record."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mocokit import distributed
from mocokit.config.presets import get_preset
from mocokit.config.schema import Config
from mocokit.config.toml import from_toml, replace_settings, to_toml
from mocokit.data.batch import ViewBatch
from mocokit.data.loading.allocator import keep_freed_memory
from mocokit.data.sources.identity import hash_names, image_names
from mocokit.data.sources.left_out import require_few_lost
from mocokit.data.sources.open_source import ImageData, open_source
from mocokit.distributed.fsdp import is_sharded
from mocokit.engine.agreement import code_version, fingerprints, raise_on_disagreement
from mocokit.engine.backbone_file import exported_step, save_weights
from mocokit.engine.bad_images import BadImageCounter
from mocokit.engine.device import pick_device
from mocokit.engine.health import StateWatch
from mocokit.engine.metrics import MeterBoard
from mocokit.engine.new_folder import started
from mocokit.engine.progress import ProgressView
from mocokit.engine.recorder import Callbacks, Recorder
from mocokit.engine.run_folder import LOGGER, RunFolder
from mocokit.engine.stop_signal import StopSignal
from mocokit.engine.train import train
from mocokit.methods import add_method
from mocokit.methods.contract import MethodSpec
from mocokit.report.view_sheet import save_view_sheet
from mocokit.run.build import Given, Parts, build_batches, build_run, lr_of_step, settings_warnings
from mocokit.run.data_identity import RunImages, identify_images, overlap_warnings, with_recorded_mean
from mocokit.run.describe import describe, next_command
from mocokit.run.existing import Exist, goes_on
from mocokit.run.places import locate_data, open_again, record_places, with_places
from mocokit.run.state import restore, saved_ranges, state_of


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
    next_command: str = ""
    """Command to go on with when the run is complete."""


def pretrain(
    preset: str | Config,
    *,
    out: str | Path,
    data: ImageData | None = None,
    settings: Mapping[str, object] | None = None,
    method: MethodSpec | None = None,
    backbone: nn.Module | None = None,
    exist: Exist = "error",
) -> RunResult:
    """Pre-train a backbone on unlabelled images and fill the run folder `out`.

    Args:
        preset: Name of a preset, or a whole config.
        out: Run folder to make; see `exist`.
        data: Training images: where they are, a list of PIL images or uint8 arrays, or an object that reads them
            (`ImageSource`); None: what the config says.
        settings: Dotted settings that differ from the preset, for example {"optim.epochs": 50}.
        method: SPEC of a method of your own (methods/contract.py), used in place of the preset's.
        backbone: Your own network, (N, 3, H, W) -> (N, D), in place of model.arch. It is copied, with its weights; tell
            its width by `mocokit.declare_feature_dim(backbone, D)`.
        exist: What to do if there is a run in `out`. error: raise ValueError; resume: go on with it, if it has these
            settings; overwrite: remove what it made, once all checks of the new run have passed.

    Objects can't be written into the run folder: give the same ones to `resume`.

    Raises:
        ValueError: A setting or the data does not allow the run; the message says what to do.
        NonFiniteLossError: The loss became NaN or infinite.

    """
    config = get_preset(preset) if isinstance(preset, str) else preset
    changes = dict(settings or {})
    if method is not None:
        changes = {"method.name": add_method(method).name, **changes}
    place, given = _place_or_object(data, backbone)
    changes |= place
    config = given.named_in(locate_data(replace_settings(config, changes)))
    return _run(config, RunFolder(out), given, exist=exist)


def resume(
    run: str | Path,
    *,
    data: ImageData | None = None,
    test: str | Path | None = None,
    method: MethodSpec | None = None,
    backbone: nn.Module | None = None,
    accept_changes: bool = False,
) -> RunResult:
    """Continue the run in folder `run` from its newest readable checkpoint; a complete run stays as it is.

    Args:
        run: The run folder.
        data: New place of the run's images, if they moved; or the object or list that `pretrain` was given as data,
            likewise `method` and `backbone`.
        test: New place of `data.test`, if it moved.
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
    folder = RunFolder(run)
    config = from_toml(folder.read_config())
    place, given = _place_or_object(data, backbone)
    places = place if test is None else {**place, "data.test": str(test)}
    return _run(with_places(config, places), folder, given, exist=None, accept_changes=accept_changes)


def _place_or_object(data: ImageData | None, backbone: nn.Module | None) -> tuple[dict[str, str], Given]:
    """Return `data` as the setting of its place, if it is one, and else as an object, beside the backbone."""
    if data is None:
        return {}, Given(backbone=backbone)
    if isinstance(data, str | Path):
        return {"data.source": str(data)}, Given(backbone=backbone)
    return {}, Given(backbone=backbone, source=open_source(data))


def _run(
    config: Config, folder: RunFolder, given: Given, *, exist: Exist | None, accept_changes: bool = False
) -> RunResult:
    """Start a run, or go on with the one in the folder: as `exist` says, or in any case if that is None."""
    device = pick_device(config.run.device, local_rank=distributed.local_rank())
    keep_freed_memory(device)
    session = distributed.session(
        device.type, rank_timeout_s=config.run.rank_timeout_s, alone_timeout_s=config.run.alone_timeout_s
    )
    with session, StopSignal() as signals, ExitStack() as taken:
        raise_on_disagreement(lambda: {"config": to_toml(config), "code": code_version()})
        resume = exist is None or distributed.from_main(lambda: goes_on(folder, config, exist))
        if resume:
            given = replace(open_again(config, folder, given), value_ranges=saved_ranges(folder))
        # Before any file is made: settings and data can be wrong.
        parts = build_run(with_recorded_mean(config, folder) if resume else config, device, given)
        if not resume:
            require_few_lost(parts.reader.source, max_share=config.data.max_bad_share)
        images = identify_images(parts.reader.source, parts.test_source)

        def take_folder() -> None:
            """Make the folder this process's own."""
            if resume:
                taken.enter_context(folder.locked())
                folder.remove_partial()
            else:
                taken.enter_context(started(folder, to_toml(config), overwrite=exist == "overwrite"))

        distributed.on_main(take_folder)
        folder.start_log()
        try:
            start_step = 0
            test_place = config.data.test or str(getattr(parts.reader.source, "test_part", ""))
            notes = overlap_warnings(parts.reader.source, parts.test_source, images, test_place)
            if resume:
                start_step, restored = restore(folder, parts, images, accept_changes=accept_changes)
                notes = restored + distributed.from_main(lambda: record_places(config, folder)) + notes
                distributed.on_main(lambda: folder.record_resume(start_step))
            images.save(folder)
            return _train(config, folder, parts, images, signals, start_step, notes)
        except Exception as error:
            LOGGER.error("%s: %s", type(error).__name__, error)
            raise
        finally:
            folder.stop_log()


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
    describe(config, folder, parts, progress, names_sha256, images.digest)
    recorder = _build_recorder(config, folder, parts, images, progress, start_step)
    batches = build_batches(config, parts, start_step=start_step, total_steps=total_steps, on_worker_death=warn)
    if start_step == 0 and distributed.is_main():
        batches = _with_view_sheet(batches, folder.view_sheet)
    folder.keep()
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
        next_command=next_command(config, folder, parts),
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
