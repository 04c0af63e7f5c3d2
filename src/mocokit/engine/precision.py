"""Number formats: autocast for forwards, loss scaling for float16, and the choice that fits the hardware."""

import contextlib

import torch

from mocokit.settings import choose

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

WEIGHT_TYPES = {
    "auto": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.float32,
    "fp16": torch.float32,
}
"""Number format of the weights and the optimizer state for each value of run.precision."""


class Precision:
    """Number formats of one run.

    Args:
        name: "fp32", "fp64" (for proofs), "bf16" or "fp16" (float32 weights under autocast), or "auto": bf16 if the
            hardware computes in it, else fp32.
        device: Device of the run.

    Raises:
        ValueError: Unknown name, fp16 without a GPU, or anything but fp32 on MPS.

    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = choose("run.precision", name, WEIGHT_TYPES)
        if device.type == "mps" and self.dtype == torch.float64:
            raise ValueError(f"run.precision={name!r}: MPS has no float64; use fp32, or run.device=cpu")
        if device.type == "mps" and name in AUTOCAST_TYPES:
            raise ValueError(f"run.precision={name!r}: not supported on MPS; use fp32")
        if name == "fp16" and device.type != "cuda":
            raise ValueError("run.precision='fp16': needs a GPU for loss scaling; use bf16 or fp32 on the CPU")
        self.name = _choose_for(device) if name == "auto" else name
        self._autocast_type = AUTOCAST_TYPES.get(self.name)
        self._device_type = device.type
        # Only float16 needs loss scaling: its smallest positive number is 6e-8; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Return the context manager for a forward pass."""
        if self._autocast_type is None:
            return contextlib.nullcontext()
        # Without the cache: it would keep half-precision copies of the key weights from before the momentum update.
        return torch.autocast(self._device_type, dtype=self._autocast_type, cache_enabled=False)

    def gauges(self) -> dict[str, float]:
        """Return the scale of the loss under fp16; nothing otherwise. Waits for the device."""
        return {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}


def _choose_for(device: torch.device) -> str:
    """Return "bf16" if the hardware computes in bfloat16 (emulation does not count), else "fp32"."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 and newer
        has_bf16 = device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16" if has_bf16 else "fp32"
