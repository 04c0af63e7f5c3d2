from collections.abc import Callable

import torch

from mocokit.config.schema import Config
from mocokit.engine.agreement import code_version, fingerprints
from mocokit.methods.moco import MoCo
from mocokit.run.build import build_run


def test_each_part_of_a_state_has_a_fingerprint_that_one_bit_changes(tiny: Callable[..., Config]) -> None:
    method = build_run(tiny(), torch.device("cpu")).method
    assert isinstance(method, MoCo)
    before = fingerprints(method.state_dict())
    assert sorted(before) == ["encoder_k", "encoder_q", "queue", "queue pointer"]
    assert fingerprints(method.state_dict()) == before
    with torch.no_grad():
        method.encoder_q.backbone.get_parameter("bn1.weight").view(torch.int32)[7] ^= 1
    after = fingerprints(method.state_dict())
    changed = {part for part in before if after[part] != before[part]}
    assert changed == {"encoder_q"}
    method.queue.num_enqueued += 1
    after = fingerprints(method.state_dict())
    assert {part for part in before if after[part] != before[part]} == {"encoder_q", "queue pointer"}


def test_the_code_version_names_both_packages() -> None:
    assert code_version().startswith("mocokit 0.")
    assert f"torch {torch.__version__}" in code_version()
