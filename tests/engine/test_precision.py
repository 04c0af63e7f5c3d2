import pytest
import torch

from mocokit.engine.precision import AUTOCAST_TYPES, WEIGHT_TYPES, Precision

CPU = torch.device("cpu")


def test_unknown_precisions_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"run.precision='bf61': unknown; did you mean bf16\? choose one of \['auto'"):
        Precision("bf61", CPU)
    with pytest.raises(ValueError, match=r"run.precision='fp16': needs a GPU for loss scaling"):
        Precision("fp16", CPU)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp64", "run.precision='fp64': MPS has no float64; use fp32, or run.device=cpu"),
        ("bf16", "run.precision='bf16': not supported on MPS; use fp32"),
        ("fp16", "run.precision='fp16': not supported on MPS; use fp32"),
    ],
)
def test_mps_computes_in_float32_alone(name: str, message: str) -> None:
    mps = torch.device("mps")
    with pytest.raises(ValueError, match=message):
        Precision(name, mps)
    assert Precision("auto", mps).name == "fp32"
