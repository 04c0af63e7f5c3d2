"""NaN and infinite features and scores: refused, or counted as wrong; never an accuracy that looks like one."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mocokit.cli import main
from mocokit.engine.backbone_file import load_backbone, save_weights
from mocokit.evaluate.evaluation import evaluate
from mocokit.evaluate.features import Features, count_hits
from mocokit.evaluate.knn import knn_accuracy
from mocokit.evaluate.linear import accuracy_of

CPU = torch.device("cpu")

WORDS = "features: some are NaN or infinite, so no accuracy means anything"


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["bank", "queries"])
def test_knn_refuses_features_that_are_not_finite(where: str, poison: float) -> None:
    sets = {name: Features(rows=torch.randn(30, 8), labels=torch.arange(30) % 3) for name in ("bank", "queries")}
    assert 0 <= next(iter(knn_accuracy(sets["bank"], sets["queries"], device=CPU).values())) <= 1
    sets[where].rows[7, 3] = poison
    with pytest.raises(ValueError, match=WORDS):
        knn_accuracy(sets["bank"], sets["queries"], device=CPU)


def test_a_score_that_is_not_a_number_is_no_hit() -> None:
    scores = torch.tensor([[math.nan, math.nan], [1.0, 0.0], [math.inf, 0.0], [0.0, 1.0]])
    assert count_hits(scores, torch.tensor([0, 0, 0, 0])) == 1
    rows = Features(rows=torch.ones(6, 2), labels=torch.zeros(6, dtype=torch.long))
    assert accuracy_of(lambda inputs: inputs * math.nan, rows, device=CPU) == 0, "and not the share of class 0"


def test_a_backbone_with_broken_statistics_is_told_by_every_evaluation(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "backbone.safetensors"
    card = load_backbone(path).card
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("running_var"))
    save_weights(path, {**weights, name: torch.full_like(weights[name], math.nan)}, card)
    for protocol in ("knn", "linear/fast", "linear/lightly"):
        with pytest.raises(ValueError, match=WORDS):
            evaluate(run, data=photos, protocols=[protocol], baselines=False, num_workers=0, device_name="cpu")
    assert main(["knn", str(run), "--data", str(photos), "--workers", "0", "--device", "cpu"]) == 1
    assert WORDS in capsys.readouterr().err
