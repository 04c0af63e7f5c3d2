"""The accelerators that `mocokit plan` knows: number formats, speeds and sizes, from their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Device:
    """Speeds and sizes of one accelerator, from its maker's data sheet. Rates are operations per second, dense."""

    flops_fp32: float
    """In float32. Linear layers and attention run at this rate: torch allows them no TF32 by default."""
    flops_tf32: float | None
    """In TF32, which torch allows convolutions by default; None: the hardware has none (before Ampere)."""
    flops_fp16: float
    flops_bf16: float | None
    """None: the hardware has no bfloat16 (before Ampere)."""
    memory_bytes: float
    bandwidth: float
    """Bytes per second to its own memory."""
    link: float
    """Bytes per second to the other devices of its node, one direction."""
    watts: float
    compute_efficiency: float = 0.6
    bandwidth_efficiency: float = 0.85
    """Shares of the sheet's rate and bandwidth that a step achieves. Both were chosen so that the model gives the 53
    hours that the official README (facebookresearch/moco) reports for moco-v2 on 8 V100."""
    overhead_bytes: float = 1.5e9
    """Memory of the CUDA context, libraries and workspaces; assumed, not measured."""

    def precision(self, asked: str) -> str:
        """Return the number format of a run that asks for it: `auto` is bf16 where the hardware has it, else fp32.

        Raises:
            ValueError: The hardware lacks the format.

        """
        if asked == "auto":
            return "fp32" if self.flops_bf16 is None else "bf16"
        if asked == "bf16" and self.flops_bf16 is None:
            raise ValueError("run.precision=bf16: this device computes no bfloat16; plan with auto, fp32 or fp16")
        if asked == "fp64":
            raise ValueError("run.precision=fp64: it is for proofs on a CPU and is not planned; use fp32")
        return asked

    def rates(self, precision: str) -> tuple[float, float]:
        """Return the rates of convolutions and of all other operations in "fp32", "fp16" or "bf16"."""
        half = {"fp16": self.flops_fp16, "bf16": self.flops_bf16}.get(precision)
        if half is not None:
            return half, half
        return self.flops_tf32 or self.flops_fp32, self.flops_fp32


DEVICES = {
    # nvidia.com H100 SXM sheet: 67 TFLOPS fp32, 494 TF32, 989 fp16 and bf16, all dense; 80 GB, 3.35 TB/s, NVLink
    # 900 GB/s both ways, 700 W
    "H100": Device(
        flops_fp32=67e12,
        flops_tf32=494e12,
        flops_fp16=989e12,
        flops_bf16=989e12,
        memory_bytes=80e9,
        bandwidth=3.35e12,
        link=450e9,
        watts=700,
    ),
    # nvidia.com A100 80GB SXM sheet: 19.5, 156, 312 and 312 TFLOPS; 2.04 TB/s, NVLink 600 GB/s both ways, 400 W
    "A100": Device(
        flops_fp32=19.5e12,
        flops_tf32=156e12,
        flops_fp16=312e12,
        flops_bf16=312e12,
        memory_bytes=80e9,
        bandwidth=2.04e12,
        link=300e9,
        watts=400,
    ),
    # nvidia.com V100 SXM2 sheet: 15.7 TFLOPS fp32, 125 fp16, neither TF32 nor bf16 (compute capability 7.0); 32 GB,
    # 900 GB/s, NVLink 300 GB/s both ways, 300 W
    "V100": Device(
        flops_fp32=15.7e12,
        flops_tf32=None,
        flops_fp16=125e12,
        flops_bf16=None,
        memory_bytes=32e9,
        bandwidth=0.9e12,
        link=150e9,
        watts=300,
    ),
    # nvidia.com Ada white paper, RTX 4090: 82.6 TFLOPS fp32 and TF32, 165 fp16 and bf16 dense, 24 GB, 1.01 TB/s,
    # PCIe 4.0 x16, 450 W
    "4090": Device(
        flops_fp32=82.6e12,
        flops_tf32=82.6e12,
        flops_fp16=165e12,
        flops_bf16=165e12,
        memory_bytes=24e9,
        bandwidth=1.01e12,
        link=32e9,
        watts=450,
    ),
    # nvidia.com L4 sheet: 30.3 TFLOPS fp32, 60 TF32, 121 fp16 and bf16 dense, 24 GB, 300 GB/s, PCIe 4.0 x16, 72 W
    "L4": Device(
        flops_fp32=30.3e12,
        flops_tf32=60e12,
        flops_fp16=121e12,
        flops_bf16=121e12,
        memory_bytes=24e9,
        bandwidth=0.3e12,
        link=32e9,
        watts=72,
    ),
}
