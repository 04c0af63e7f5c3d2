import math

import pytest
import torch
import torch.nn.functional as F

from mocokit.losses import contrast_acc, info_nce
from tests.oracles import info_nce_loop


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_a_slow_loop(temperature: float) -> None:
    q, k, negatives = _unit(5, 8), _unit(5, 8), _unit(12, 8)
    got = info_nce(q, k, negatives, temperature=temperature).row_losses
    assert got.tolist() == pytest.approx(info_nce_loop(q, k, negatives, temperature), rel=1e-12)


def test_masked_negatives_do_not_count() -> None:
    q, k, negatives = _unit(5, 8), _unit(5, 8), _unit(12, 8)
    masked = torch.rand(5, 12) < 0.4
    got = info_nce(q, k, negatives, temperature=0.2, masked=masked)
    assert got.row_losses.tolist() == pytest.approx(info_nce_loop(q, k, negatives, 0.2, masked), rel=1e-12)
    similarity = q @ negatives.T
    want = [float(similarity[i][~masked[i]].mean()) for i in range(5)]
    assert got.negative_similarity.tolist() == pytest.approx(want, rel=1e-12)


def test_info_nce_is_log_k_plus_1_when_all_keys_are_the_same() -> None:
    row = _unit(1, 8)
    got = info_nce(row, row, row.expand(16, 8), temperature=0.2)
    assert got.row_losses.item() == pytest.approx(math.log(17), rel=1e-12)
    assert not got.correct.item(), "a tie is a miss"


def test_a_perfect_query_has_no_loss_at_a_small_temperature() -> None:
    """An implementation that has the positive among its negatives can't go below log 2 here."""
    q, opposite = _unit(1, 8), -_unit(1, 8)
    assert info_nce(q, q, torch.cat([-q, -q, -q]), temperature=0.02).row_losses.item() < 1e-12
    assert info_nce(q, q, opposite * 0, temperature=0.02).correct.item()


def test_gradient_is_that_of_the_softmax() -> None:
    """d loss / d q = (sum_j p_j n_j + (p_0 - 1) k) / T."""
    q, k, negatives = _unit(3, 8).requires_grad_(), _unit(3, 8).requires_grad_(), _unit(6, 8)
    info_nce(q, k, negatives, temperature=0.2).row_losses.sum().backward()
    with torch.no_grad():
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1) / 0.2
        p = logits.softmax(dim=1)
        want = (p[:, 1:] @ negatives + (p[:, :1] - 1) * k) / 0.2
    assert torch.allclose(q.grad, want, rtol=1e-10)  # type: ignore[arg-type]
    assert k.grad is None, "no gradient reaches the keys"


def test_contrast_acc_counts_rows_whose_positive_wins() -> None:
    positive = torch.tensor([[0.9], [0.2], [0.5]])
    negative = torch.tensor([[0.1, 0.8], [0.3, 0.1], [0.5, 0.0]])
    assert contrast_acc(positive, negative).tolist() == [True, False, False]
