"""torch.compile under DistributedDataParallel, with BatchNorm groups of each rank and ones that span both."""

import json
from pathlib import Path

import pytest

from tests.run_process import finish, start

pytestmark = [pytest.mark.dist, pytest.mark.slow]

LOSSES = """
import json, sys, torch
from pathlib import Path
from mocokit import distributed
from mocokit.config.toml import replace_settings
from mocokit.nets.encoder import Encoder
from mocokit.plan.bench import trainer
from mocokit.run.build import build_batches, build_run
from tests.small_presets import add_narrow_backbone, small

add_narrow_backbone()
photos, out = map(Path, sys.argv[1:])
losses = {}
with distributed.session("cpu"):
    for name in ("moco-v2", "simclr"):
        for compiled in (False, True):
            config = replace_settings(small(name, photos), {"method.bn_groups": 4 if name == "moco-v2" else 1})
            parts = build_run(config, torch.device("cpu"))
            if compiled:  # as run/build.py does, with all of torch.compile but the generated code
                encoders = [part for part in parts.method.children() if isinstance(part, Encoder)]
                for part in (parts.method.pixels, *encoders):
                    part.compile(backend="aot_eager", fullgraph=True)
            train = trainer(parts)
            steps = enumerate(build_batches(config, parts, start_step=0, total_steps=4))
            losses[f"{name} {compiled}"] = [float(train(views, step)[0]["loss"].sum()) for step, views in steps]
    if distributed.is_main():
        out.write_text(json.dumps(losses))
"""


def test_compiled_ranks_follow_the_eager_ones(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "losses.py").write_text(LOSSES)
    out = tmp_path / "losses.json"
    code, output = finish(start([str(photos), str(out)], ranks=2, program=(str(tmp_path / "losses.py"),)))
    assert code == 0, output[-3000:]
    losses = json.loads(out.read_text())
    for name in ("moco-v2", "simclr"):
        assert len(losses[f"{name} True"]) == 4
        assert losses[f"{name} True"] == pytest.approx(losses[f"{name} False"], rel=1e-12), name
