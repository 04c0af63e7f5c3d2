import pytest
import torch

from mocokit.engine.precision import AUTOCAST_TYPES, WEIGHT_TYPES, Precision, pick_device

CPU = torch.device("cpu")


def test_unknown_precisions_and_devices_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"run.precision='bf61': unknown; did you mean bf16\? choose one of \['auto'"):
        Precision("bf61", CPU)
    with pytest.raises(ValueError, match=r"run.precision='fp16': needs a GPU for loss scaling"):
        Precision("fp16", CPU)
    with pytest.raises(ValueError, match=r"run.device='gpu': not a device; use auto, cpu, cuda or cuda:N"):
        pick_device("gpu", local_rank=0)


@pytest.mark.parametrize("name", ["fp32", "fp64", "bf16"])
def test_forwards_are_computed_in_the_named_format_on_weights_of_float32_or_float64(name: str) -> None:
    precision = Precision(name, CPU)
    layer = torch.nn.Linear(2, 2, dtype=precision.dtype)
    with precision.autocast():
        out = layer(torch.ones(1, 2, dtype=precision.dtype))
    assert precision.dtype == (torch.float64 if name == "fp64" else torch.float32)
    assert out.dtype == AUTOCAST_TYPES.get(name, WEIGHT_TYPES[name])
    assert not precision.scaler.is_enabled()


def test_auto_is_bfloat16_or_float32_with_weights_of_float32() -> None:
    precision = Precision("auto", CPU)
    assert precision.name in {"bf16", "fp32"}
    assert precision.dtype == torch.float32
