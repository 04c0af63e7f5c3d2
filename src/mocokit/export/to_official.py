"""facebookresearch/moco: a checkpoint that its main_moco.py resumes, with key encoder, queue and optimizer.

Layout (main_moco.py, moco/builder.py): {epoch, arch, state_dict, optimizer}. The state_dict holds `module.queue`
(C, K), `module.queue_ptr` (1,), and `module.encoder_q.*` and `module.encoder_k.*` under torchvision's names, with the
head in `fc`. The optimizer numbers the parameters of both encoders, encoder_q first, and has momentum buffers only
for encoder_q. State of mocokit that this layout lacks goes under the key `mocokit`, which main_moco.py does not read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from mocokit.config.schema import Config, DataConfig
from mocokit.config.toml import from_toml
from mocokit.engine.backbone_file import LoadedBackbone
from mocokit.engine.checkpoint import load_newest
from mocokit.engine.run_folder import RunFolder
from mocokit.export.targets import Exported
from mocokit.methods import official_names
from mocokit.methods.moco import MoCoSettings
from mocokit.nets.heads import build_head

EXTRAS = ("step", "steps_per_epoch", "config", "scaler", "precision")
"""Entries of a mocokit checkpoint that the official layout lacks."""


def export_official(loaded: LoadedBackbone, out: Path) -> Exported:
    """Write the newest checkpoint of a run as `out`, for example checkpoint_0199.pth.tar.

    Raises:
        ValueError: There is no run folder with a checkpoint, or the official code can't build or train this run.

    """
    folder = RunFolder(loaded.path.parent)
    config = from_toml(folder.read_config())
    card = loaded.card
    if card.is_own or config.model.stem != "imagenet" or not hasattr(torchvision.models, config.model.arch):
        raise ValueError(
            f"to=official: main_moco.py builds torchvision's ResNets, no {card.arch} with stem {card.stem}; "
            "use --to safetensors"
        )
    if not isinstance(config.method, MoCoSettings) or config.optim.name != "sgd":
        raise ValueError(
            f"to=official: main_moco.py trains MoCo v1 and v2 with SGD, the run is {config.method.name} with "
            f"{config.optim.name}; use --to safetensors"
        )
    state, _ = load_newest(folder.checkpoints)
    torch.save(to_official(state, arch=config.model.arch), out)
    return Exported(
        files=(out,),
        readers={f"moco/builder.py's layout, torchvision {torchvision.__version__}": read_official(out, config)},
        usage=_official_command(config, config.method, out),
        notes=tuple(_notes(config, config.method, step=state["step"], steps_per_epoch=state["steps_per_epoch"])),
    )


def _notes(config: Config, method: MoCoSettings, *, step: int, steps_per_epoch: int) -> Iterator[str]:
    """Yield a note on each difference between this run and what main_moco.py does."""
    epoch, rest = divmod(step, steps_per_epoch)
    if rest:
        yield f"step {step} lies {rest} steps into epoch {epoch}; main_moco.py begins that epoch again"
    official = DataConfig()
    for setting in ("image_size", "mean", "std"):
        own = getattr(config.data, setting)
        fixed = getattr(official, setting)
        if own != fixed:
            yield f"main_moco.py has data.{setting} = {fixed} written into it, the run had {own or 'its data'}"
    if method.symmetric:
        yield "main_moco.py has no symmetric loss, the run had"
    if method.mask_same_image:
        yield "main_moco.py does not mask negatives of the query's own image, the run did"


def to_official(state: dict[str, Any], *, arch: str) -> dict[str, Any]:
    """Return a mocokit checkpoint in the official layout; no value changes."""
    method = state["method"]
    keys: Tensor = method["queue.keys"]  # (K, C)
    num_enqueued = method["queue._extra_state"]["num_enqueued"]
    weights = {
        "module.queue": keys.T.contiguous(),  # (C, K)
        "module.queue_ptr": torch.tensor([num_enqueued % len(keys)]),
    }
    for encoder in ("encoder_q", "encoder_k"):
        for name, value in method.items():
            if name.startswith(f"{encoder}."):
                official = official_names.official(name.removeprefix(f"{encoder}."))
                weights[f"module.{encoder}.{official}"] = value
    own = {"image_ids": method["queue.image_ids"], "num_enqueued": num_enqueued}
    return {
        "epoch": state["step"] // state["steps_per_epoch"],
        "arch": arch,
        "state_dict": weights,
        "optimizer": _official_optimizer(state["optimizer"]),
        "mocokit": {**own, **{name: state[name] for name in EXTRAS}},
    }


def _official_optimizer(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the optimizer's state in the form of one SGD over both encoders.

    Ours numbers encoder_q's parameters alone; theirs counts encoder_k's behind them, without momentum buffers.
    """
    (group,) = optimizer["param_groups"]
    numbers = list(range(2 * len(group["params"])))
    return {"state": optimizer["state"], "param_groups": [{**group, "fused": None, "params": numbers}]}


class OfficialMoCo(nn.Module):
    """Modules and buffers of moco/builder.py, without its forward pass."""

    def __init__(self, arch: str, *, dim: int, mlp: bool, queue_size: int) -> None:
        super().__init__()
        for name in ("encoder_q", "encoder_k"):
            encoder = getattr(torchvision.models, arch)(num_classes=dim)
            encoder.fc = build_head(encoder.fc.in_features, dim, mlp=mlp)
            self.add_module(name, encoder)
        self.get_submodule("encoder_k").requires_grad_(False)
        self.register_buffer("queue", torch.zeros(dim, queue_size))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


def read_official(path: Path, config: Config) -> nn.Module:
    """Load `path` as main_moco.py does, model and optimizer strictly; return its backbone (n, 3, S, S) -> (n, D)."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = checkpoint["state_dict"]
    queue_size = state["module.queue"].shape[1]
    net = OfficialMoCo(checkpoint["arch"], dim=config.model.dim, mlp=config.model.mlp, queue_size=queue_size)
    net.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    torch.optim.SGD(net.parameters(), lr=config.optim.lr, momentum=0.9).load_state_dict(checkpoint["optimizer"])
    encoder_q = net.get_submodule("encoder_q").eval()
    encoder_q.fc = nn.Identity()
    return encoder_q


def _official_command(config: Config, method: MoCoSettings, out: Path) -> str:
    optim = config.optim
    switches = {
        "--mlp": config.model.mlp,
        "--aug-plus": config.augment.aug_plus,
        "--cos": optim.schedule == "cosine",
    }
    flags = [
        f"-a {config.model.arch} --resume {out.name} --epochs {optim.epochs}",
        f"--batch-size {config.data.global_batch_size}",
        f"--lr {optim.lr} --momentum {optim.sgd_momentum} --wd {optim.weight_decay}",
        f"--moco-dim {config.model.dim} --moco-k {method.queue_size} --moco-m {method.key_momentum}",
        f"--moco-t {method.temperature}",
        *(flag for flag, on in switches.items() if on),
        "--dist-url tcp://localhost:10001 --multiprocessing-distributed --world-size 1 --rank 0 IMAGENET",
    ]
    if optim.schedule == "step":
        flags.insert(3, f"--schedule {' '.join(map(str, optim.milestones))}")
    return "python main_moco.py " + " ".join(flags)
