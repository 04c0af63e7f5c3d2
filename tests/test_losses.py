import math

import pytest
import torch
import torch.nn.functional as F

from mocokit import losses
from mocokit.losses import info_nce
from tests.oracles import info_nce_loop


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_a_slow_loop(temperature: float) -> None:
    q, k, negatives = _unit(5, 8), _unit(5, 8), _unit(12, 8)
    got = info_nce(q, k, negatives, temperature=temperature).row_losses
    assert got.tolist() == pytest.approx(info_nce_loop(q, k, negatives, temperature), rel=1e-12)


def test_negatives_of_the_querys_own_image_do_not_count() -> None:
    q, k, negatives = _unit(5, 8), _unit(5, 8), _unit(12, 8)
    ids, negative_ids = torch.tensor([0, 1, 2, 3, 9]), torch.randint(0, 4, (12,))
    masked = ids[:, None] == negative_ids
    assert masked[:4].any()
    got = info_nce(q, k, negatives, temperature=0.2, ids=ids, negative_ids=negative_ids)
    assert got.row_losses.tolist() == pytest.approx(info_nce_loop(q, k, negatives, 0.2, masked), rel=1e-12)
    similarity = q @ negatives.T
    want = [float(similarity[i][~masked[i]].mean()) for i in range(5)]
    assert got.negative_similarity.tolist() == pytest.approx(want, rel=1e-12)
    assert got.num_masked.tolist() == masked.sum(1).tolist()


def test_a_query_whose_negatives_are_all_its_own_has_no_loss() -> None:
    q, ids = _unit(2, 8), torch.tensor([4, 5])
    got = info_nce(q, q, _unit(6, 8), temperature=0.2, ids=ids, negative_ids=torch.full((6,), 4))
    assert got.row_losses[0] == 0
    assert got.negative_similarity[0] == 0
    assert got.row_losses[1] > 0


def test_ids_without_negative_ids_are_an_error() -> None:
    with pytest.raises(ValueError, match="needs both ids and negative_ids"):
        info_nce(_unit(2, 8), _unit(2, 8), _unit(6, 8), temperature=0.2, ids=torch.tensor([4, 5]))


@pytest.mark.parametrize("chunk", [1, 7, 35, 1000])
@pytest.mark.parametrize("masks", [False, True])
def test_chunks_change_neither_value_nor_gradient(chunk: int, masks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plain formula on whole (N, K) scores, in float64; chunks of 1 to all negatives at a time."""
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", chunk * 5)
    q, k, negatives = (3 * _unit(5, 8)).requires_grad_(), _unit(5, 8), _unit(50, 8)
    ids, negative_ids = torch.arange(5), torch.randint(0, 12, (50,))
    weights = torch.rand(5, dtype=torch.float64)
    scores = q @ negatives.T
    if masks:
        scores = scores.masked_fill(ids[:, None] == negative_ids, -torch.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True), scores], dim=1) / 0.07
    want = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction="none")
    (gradient,) = torch.autograd.grad((want * weights).sum(), q)
    own = {"ids": ids, "negative_ids": negative_ids} if masks else {}
    got = info_nce(q, k, negatives, temperature=0.07, **own)
    torch.testing.assert_close(got.row_losses, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad((got.row_losses * weights).sum(), q)[0], gradient, rtol=1e-11, atol=1e-14
    )
    assert got.correct.tolist() == (logits[:, 0] > logits[:, 1:].amax(1)).tolist()


def test_nothing_overflows_at_a_tiny_temperature() -> None:
    q, negatives = F.normalize(torch.randn(4, 8), dim=1), F.normalize(torch.randn(300, 8), dim=1)
    got = info_nce(q, -q, negatives, temperature=1e-3).row_losses  # scores of +-1000
    assert torch.isfinite(got).all()
    assert (got > 500).all()


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


def test_a_row_is_correct_when_its_positive_beats_every_negative() -> None:
    q = torch.eye(3, dtype=torch.float64)
    k = q * torch.tensor([[0.9], [0.2], [0.5]])
    negatives = torch.tensor([[0.1, 0.3, 0.5], [0.8, 0.1, 0.0]], dtype=torch.float64)
    assert info_nce(q, k, negatives, temperature=0.2).correct.tolist() == [True, False, False]
