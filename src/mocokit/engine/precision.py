"""Number formats: autocast for forwards, loss scaling for float16, and what the hardware can do."""

import contextlib

import torch

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = ("auto", "fp32", "fp64", *AUTOCAST_TYPES)


class Precision:
    """How forwards and backwards of one run are computed.

    Args:
        name: "fp32", "fp64" (for proofs), "bf16" or "fp16" (autocast); "auto": bf16 where the
            hardware has it, else fp32.
        device: Where the run computes.

    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name not in PRECISIONS:
            raise ValueError(f"run.precision={name!r}: unknown; choose one of {list(PRECISIONS)}")
        if name == "fp16" and device.type != "cuda":
            raise ValueError("run.precision='fp16': needs a GPU for loss scaling; use bf16 or fp32 on the CPU")
        self.name = _choose(device) if name == "auto" else name
        self.dtype = torch.float64 if name == "fp64" else torch.float32
        self._autocast_type = AUTOCAST_TYPES.get(self.name)
        self._device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Context of a forward pass."""
        if self._autocast_type is None:
            return contextlib.nullcontext()
        # The weight cache would keep the half-precision key weights of before the momentum update.
        return torch.autocast(self._device_type, dtype=self._autocast_type, cache_enabled=False)


def _choose(device: torch.device) -> str:
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 and newer
        has_bf16 = device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16" if has_bf16 else "fp32"


def pick_device(name: str, *, local_rank: int) -> torch.device:
    """The device to compute on; "auto" is this rank's GPU where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"run.device={name!r}: not a device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"run.device={name!r}: torch sees no GPU here; use cpu, or install a CUDA build of torch")
        device = device if device.index is not None else torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device
