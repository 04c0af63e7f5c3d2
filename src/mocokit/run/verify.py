"""Replay recorded runs of the official code, and compare every recorded quantity with ours.

A trace holds the views, permutations, losses, first and last state of some steps of the official implementation on R
ranks (format: tests/golden/README.md). The replay uses the same classes as pre-training, with R BatchNorm groups, on
any number of ranks and with any micro-batch size.
"""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mocokit import distributed
from mocokit.data.batch import ViewBatch
from mocokit.distributed.gradients import gradient_sum
from mocokit.engine.optimizer import build_sgd
from mocokit.engine.precision import Precision
from mocokit.engine.train import train_step
from mocokit.methods import official_names
from mocokit.methods.groups import GroupLayout
from mocokit.methods.moco import MoCo
from mocokit.nets.backbones import declare_feature_dim
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head
from mocokit.settings import require

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Largest relative error of one quantity of one trace: max |ours - official| / max |official|."""

    trace: str
    quantity: str
    relative_error: float


class TraceBackbone(nn.Module):
    """Small encoder of the traces: two convolutions with BatchNorm and ReLU, then the mean over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        declare_feature_dim(self, 16)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features: (N, 3, H, W) -> (N, 16)."""
        images = torch.relu(self.bn1(self.conv1(images)))  # (N, 8, H, W)
        images = torch.relu(self.bn2(self.conv2(images)))  # (N, 16, H/2, W/2)
        return images.mean(dim=(2, 3))


def bundled_traces() -> list[Path]:
    """Return the paths of the golden traces that come with the package."""
    folder = resources.files("mocokit") / "golden"
    return sorted(Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".npz"))


def load_trace(path: Path) -> Arrays:
    """Return the arrays of a trace file.

    Raises:
        ValueError: The file is not a trace.

    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            trace = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"trace={path}: can't be read ({error})") from error
    missing = {"meta", "views", "shuffle", "loss", "positive_similarity", "queue_ptr"} - set(trace)
    require(not missing, "trace", path, f"lacks {sorted(missing)}; see tests/golden/README.md for the format")
    return trace


def build_method(trace: Arrays, *, micro_groups: int) -> MoCo:
    """Return this rank's part of the trace's MoCo, in its first state and in float64."""
    meta = json.loads(str(trace["meta"]))
    encoder_q = Encoder(TraceBackbone(), build_head(16, meta["dim"], mlp=meta["mlp"]))
    method = MoCo(
        encoder_q,
        dim=meta["dim"],
        queue_size=meta["queue_size"],
        temperature=meta["temperature"],
        key_momentum=meta["key_momentum"],
        layout=GroupLayout(
            bn_groups=meta["world_size"],
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            micro_groups=micro_groups,
        ),
        shuffle_order=lambda step, _size: torch.from_numpy(trace["shuffle"][step]),
    ).double()
    for name, encoder in (("encoder_q", method.encoder_q), ("encoder_k", method.encoder_k)):
        encoder.load_state_dict(_state_of(trace, f"init.{name}."))
    method.queue.keys.copy_(torch.from_numpy(trace["init.queue"].T))
    method.queue.num_enqueued = int(trace["init.queue_ptr"][0])
    return method


def _state_of(trace: Arrays, prefix: str) -> dict[str, Tensor]:
    """Return one encoder's state, with our names in place of the official ones."""
    return {
        official_names.ours(name.removeprefix(prefix)): torch.from_numpy(np.asarray(value))
        for name, value in trace.items()
        if name.startswith(prefix)
    }


def replay(path: Path, *, micro_groups: int = 0) -> list[Comparison]:
    """Run the trace's steps and compare every recorded quantity; all ranks return the same.

    Args:
        path: Trace file.
        micro_groups: BatchNorm groups that go through the network at once; 0: all of a rank's.

    """
    trace = load_trace(path)
    meta = json.loads(str(trace["meta"]))
    method = build_method(trace, micro_groups=micro_groups)
    optimizer = build_sgd(method, lr=meta["lr"], sgd_momentum=meta["sgd_momentum"], weight_decay=meta["weight_decay"])
    step_parts: dict[str, Any] = {
        "gradients": gradient_sum(method),
        "optimizer": optimizer,
        "precision": Precision("fp64", torch.device("cpu")),
    }
    batch_size = trace["views"].shape[2]
    rows = method.layout.own_rows(batch_size)
    counts = method.layout.row_counts(batch_size)
    ids = torch.arange(rows.start, rows.stop)
    losses = []
    similarities = []
    pointers = []
    for step, (query, key) in enumerate(torch.from_numpy(trace["views"])[:, :, rows.start : rows.stop]):
        values, _ = train_step(method, ViewBatch(query=query, key=key, image_ids=ids), step, **step_parts)
        losses.append(distributed.all_gather_rows(values["loss"], counts).view(meta["world_size"], -1).mean(dim=1))
        similarities.append(distributed.all_gather_rows(values["positive_similarity"], counts))
        pointers.append(method.queue.pointer)
    ours = {
        "loss": torch.stack(losses),
        "positive_similarity": torch.stack(similarities),
        "queue_ptr": torch.tensor(pointers),
        "final.queue": method.queue.keys.T,
    }
    return _compare(path.stem, trace, method, ours)


def _compare(name: str, trace: Arrays, method: MoCo, ours: dict[str, Tensor]) -> list[Comparison]:
    errors = {quantity: _relative_error(value, trace[quantity]) for quantity, value in ours.items()}
    if distributed.is_main():  # it has group 0, whose BatchNorm statistics the official code saves
        for encoder in ("encoder_q", "encoder_k"):
            official = _state_of(trace, f"final.{encoder}.")
            state = method.get_submodule(encoder).state_dict()
            for parameter, value in official.items():
                kind = "BatchNorm statistics" if "running_" in parameter else "parameters"
                if not parameter.endswith("num_batches_tracked"):
                    error = _relative_error(state[parameter], value.numpy())
                    errors[f"{encoder} {kind}"] = max(error, errors.get(f"{encoder} {kind}", 0.0))
    errors = distributed.all_gather_objects(errors)[0]
    return [
        Comparison(trace=name, quantity=quantity.removeprefix("final."), relative_error=error)
        for quantity, error in errors.items()
    ]


def _relative_error(ours: Tensor, official: NDArray[Any]) -> float:
    reference = torch.from_numpy(np.asarray(official)).double()
    if ours.shape != reference.shape:
        return float("inf")
    error = (ours.detach().double() - reference).abs().max() / reference.abs().max().clamp(min=1e-300)
    return float("inf") if error.isnan() else float(error)


def verify(paths: Sequence[str | Path] = (), *, micro_groups: int = 0) -> list[Comparison]:
    """Replay the given traces, or else the bundled ones, in one process or on torchrun's ranks."""
    chosen = [Path(path) for path in paths] or bundled_traces()
    with distributed.session("cpu"):
        return [row for path in chosen for row in replay(path, micro_groups=micro_groups)]
