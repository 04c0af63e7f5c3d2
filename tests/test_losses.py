import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mocokit import losses
from mocokit.losses import NegativeTerm, in_batch_info_nce, info_nce, nt_xent, row_metrics
from tests.oracles import info_nce_loop, nt_xent_loop, weighted_info_nce_loop


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_equals_a_slow_loop(temperature: float) -> None:
    q = _unit(5, 8)
    k = _unit(5, 8)
    negatives = _unit(12, 8)
    got = info_nce(q, k, negatives, temperature=temperature).row_losses
    assert got.tolist() == pytest.approx(info_nce_loop(q, k, negatives, temperature), rel=1e-12)


def test_negatives_of_the_querys_own_image_do_not_count() -> None:
    q = _unit(5, 8)
    k = _unit(5, 8)
    negatives = _unit(12, 8)
    ids = torch.tensor([0, 1, 2, 3, 9])
    negative_ids = torch.randint(0, 4, (12,))
    masked = ids[:, None] == negative_ids
    assert masked[:4].any()
    got = info_nce(q, k, negatives, temperature=0.2, ids=ids, negative_ids=negative_ids)
    assert got.row_losses.tolist() == pytest.approx(info_nce_loop(q, k, negatives, 0.2, masked), rel=1e-12)
    similarity = q @ negatives.T
    want = [float(similarity[i][~masked[i]].mean()) for i in range(5)]
    assert got.negative_similarity.tolist() == pytest.approx(want, rel=1e-12)
    assert got.num_masked.tolist() == masked.sum(1).tolist()


def test_a_query_whose_negatives_are_all_masked_has_no_loss() -> None:
    q = _unit(2, 8)
    ids = torch.tensor([4, 5])
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
    """Compare with cross entropy on whole (N, K) scores in float64; chunks of 1 negative up to all."""
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", chunk * 5)
    q = (3 * _unit(5, 8)).requires_grad_()
    k = _unit(5, 8)
    negatives = _unit(50, 8)
    ids = torch.arange(5)
    negative_ids = torch.randint(0, 12, (50,))
    weights = torch.rand(5, dtype=torch.float64)
    scores = q @ negatives.T
    if masks:
        scores = scores.masked_fill(ids[:, None] == negative_ids, -torch.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True), scores], dim=1) / 0.07
    want = F.cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction="none")
    (gradient,) = torch.autograd.grad((want * weights).sum(), q)
    own: dict[str, Any] = {"ids": ids, "negative_ids": negative_ids} if masks else {}
    got = info_nce(q, k, negatives, temperature=0.07, **own)
    torch.testing.assert_close(got.row_losses, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad((got.row_losses * weights).sum(), q)[0], gradient, rtol=1e-11, atol=1e-14
    )
    assert got.correct.tolist() == (logits[:, 0] > logits[:, 1:].amax(1)).tolist()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(("hardness", "decoupled"), [(0.0, True), (0.7, False), (0.7, True)])
def test_negative_terms_equal_a_slow_loop_in_value_and_gradient(
    hardness: float, decoupled: bool, masks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the gradient with autograd of the formula on whole (N, K) scores; chunks of 7 negatives."""
    monkeypatch.setitem(losses.CHUNK_ELEMENTS, "cpu", 7 * 5)
    q = _unit(5, 8).requires_grad_()
    k = _unit(5, 8)
    negatives = _unit(50, 8)
    ids = torch.arange(5)
    negative_ids = torch.randint(0, 12, (50,))
    kept = ids[:, None] != negative_ids if masks else torch.ones(5, 50, dtype=torch.bool)
    own: dict[str, Any] = {"ids": ids, "negative_ids": negative_ids} if masks else {}
    term = NegativeTerm(hardness=hardness, decoupled=decoupled)
    got = info_nce(q, k, negatives, temperature=0.2, term=term, **own).row_losses
    near = (q * k).sum(1).tolist()
    far = [(negatives[kept[i]] @ q[i]).tolist() for i in range(5)]
    wanted = [weighted_info_nce_loop(*row, 0.2, hardness, decoupled) for row in zip(near, far, strict=True)]
    assert got.tolist() == pytest.approx(wanted, rel=1e-12)

    scores = q @ negatives.T / 0.2
    positive = (q * k).sum(1) / 0.2
    tilt = (hardness * scores).exp() * kept
    total = (tilt / tilt.sum(1, keepdim=True) * kept.sum(1, keepdim=True) * scores.exp()).sum(1)
    formula = (total if decoupled else total + positive.exp()).log() - positive
    weights = torch.rand(5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((formula * weights).sum(), q)
    torch.testing.assert_close(torch.autograd.grad((got * weights).sum(), q)[0], gradient, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("hardness", "decoupled"), [(0.0, True), (0.7, False), (0.7, True)])
def test_negative_terms_are_the_same_in_the_batch_and_out_of_a_queue(hardness: float, decoupled: bool) -> None:
    q = _unit(6, 8)
    keys = _unit(6, 8)
    term = NegativeTerm(hardness=hardness, decoupled=decoupled)
    batch = in_batch_info_nce(q, keys, torch.arange(6), temperature=0.2, term=term)
    for row in range(6):
        own = slice(row, row + 1)
        queue = info_nce(q[own], keys[own], torch.cat([keys[:row], keys[row + 1 :]]), temperature=0.2, term=term)
        assert batch.row_losses[row].item() == pytest.approx(queue.row_losses.item(), rel=1e-12)
        assert batch.negative_similarity[row].item() == pytest.approx(queue.negative_similarity.item(), rel=1e-12)


@pytest.mark.parametrize("term", [NegativeTerm(), NegativeTerm(decoupled=True), NegativeTerm(hardness=2.0)])
def test_the_chance_loss_is_that_of_equal_similarities(term: NegativeTerm) -> None:
    row = _unit(1, 8)
    got = info_nce(row, row, row.expand(16, 8), temperature=0.2, term=term).row_losses
    assert got.item() == pytest.approx(term.chance_loss(16), rel=1e-12)


def test_a_decoupled_gradient_does_not_fade_for_a_query_that_tells_its_positive() -> None:
    """DCL's point (Yeh et al. 2021, sec. 3.1)."""
    q = _unit(1, 8)
    negatives = _unit(30, 8)
    lengths = {}
    for decoupled in (False, True):
        query = q.clone().requires_grad_()
        term = NegativeTerm(decoupled=decoupled)
        info_nce(query, q, negatives, temperature=0.01, term=term).row_losses.sum().backward()
        lengths[decoupled] = float((query.grad if query.grad is not None else q).norm())
    assert lengths[True] > 100 * lengths[False] > 0


def test_only_the_plain_loss_reports_a_bound() -> None:
    nce = info_nce(_unit(2, 8), _unit(2, 8), _unit(6, 8), temperature=0.2)
    assert "mi_bound" in row_metrics([nce], nce.row_losses)
    assert "mi_bound" not in row_metrics([nce], nce.row_losses, term=NegativeTerm(decoupled=True))


def test_means_over_the_queries_of_an_image() -> None:
    nce = info_nce(_unit(6, 8), _unit(6, 8), _unit(9, 8), temperature=0.2)
    of_images = nce.per_image(3)
    assert of_images.row_losses.tolist() == pytest.approx(nce.row_losses.view(2, 3).mean(1).tolist(), rel=1e-12)
    assert of_images.correct.tolist() == pytest.approx(nce.correct.double().view(2, 3).mean(1).tolist())
    assert nce.per_image(1) is nce


def test_nothing_overflows_at_a_tiny_temperature() -> None:
    q = F.normalize(torch.randn(4, 8), dim=1)
    negatives = F.normalize(torch.randn(300, 8), dim=1)
    got = info_nce(q, -q, negatives, temperature=1e-3).row_losses  # scores of +-1000
    assert torch.isfinite(got).all()
    assert (got > 500).all()


def test_info_nce_is_log_k_plus_1_when_all_keys_are_the_same() -> None:
    row = _unit(1, 8)
    got = info_nce(row, row, row.expand(16, 8), temperature=0.2)
    assert got.row_losses.item() == pytest.approx(math.log(17), rel=1e-12)
    assert not got.correct.item(), "a tie is a miss"


def test_a_perfect_query_has_no_loss_at_a_small_temperature() -> None:
    """If the positive were among the negatives too, the loss could not go below log 2 here."""
    q = _unit(1, 8)
    opposite = -_unit(1, 8)
    assert info_nce(q, q, torch.cat([-q, -q, -q]), temperature=0.02).row_losses.item() < 1e-12
    assert info_nce(q, q, opposite * 0, temperature=0.02).correct.item()


def test_the_gradient_is_that_of_the_softmax() -> None:
    """d loss / d q = (sum_j p_j n_j + (p_0 - 1) k) / T."""
    q = _unit(3, 8).requires_grad_()
    k = _unit(3, 8).requires_grad_()
    negatives = _unit(6, 8)
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


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_simclrs_algorithm_1(temperature: float) -> None:
    """The official code adds the means of both directions: twice the paper's mean over 2B views."""
    queries = _unit(6, 8)
    keys = _unit(6, 8)
    first, second = nt_xent(queries, keys, temperature=temperature)
    got = (first.row_losses + second.row_losses).mean().item()
    assert got == pytest.approx(2 * nt_xent_loop(queries, keys, temperature), rel=1e-12)


def test_nt_xent_is_info_nce_with_the_batchs_other_views_as_negatives() -> None:
    """Compare values and metrics of each query, with K = 2B - 2."""
    queries = _unit(5, 8)
    keys = _unit(5, 8)
    first, second = nt_xent(queries, keys, temperature=0.5)
    for lead, follow, nce in ((queries, keys, first), (keys, queries, second)):
        for row in range(5):
            others = [other for other in range(5) if other != row]
            negatives = torch.cat([lead[others], follow[others]])
            want = info_nce(lead[row : row + 1], follow[row : row + 1], negatives, temperature=0.5)
            assert nce.row_losses[row].item() == pytest.approx(want.row_losses.item(), rel=1e-12)
            assert nce.correct[row] == want.correct[0]
            assert nce.negative_similarity[row].item() == pytest.approx(want.negative_similarity.item(), rel=1e-12)
            assert nce.num_kept[row] == want.num_kept[0] == 8


def test_end_to_end_and_moco_give_the_same_loss_for_the_same_keys_and_negatives() -> None:
    """The mechanism differs, not the objective (MoCo v1 sec. 4.1): same value, metrics and gradient of the query."""
    q = _unit(6, 8).requires_grad_()
    keys = _unit(6, 8)
    end_to_end = in_batch_info_nce(q, keys, torch.arange(6), temperature=0.07)
    (gradient,) = torch.autograd.grad(end_to_end.row_losses.sum(), q)
    for row in range(6):
        own = slice(row, row + 1)
        moco = info_nce(q[own], keys[own], torch.cat([keys[:row], keys[row + 1 :]]), temperature=0.07)
        assert end_to_end.row_losses[row].item() == pytest.approx(moco.row_losses.item(), rel=1e-12)
        assert end_to_end.correct[row] == moco.correct[0]
        assert end_to_end.mi_bound[row].item() == pytest.approx(moco.mi_bound.item(), rel=1e-12)
        assert torch.allclose(gradient[own], torch.autograd.grad(moco.row_losses.sum(), q)[0][own], rtol=1e-10)


def test_in_batch_gradients_flow_into_keys_too() -> None:
    """d loss / d k_j = sum_i (p_ij - [i = j]) q_i / T."""
    q = _unit(4, 8)
    keys = _unit(4, 8).requires_grad_()
    in_batch_info_nce(q, keys, torch.arange(4), temperature=0.2).row_losses.sum().backward()
    with torch.no_grad():
        want = ((q @ keys.T / 0.2).softmax(dim=1) - torch.eye(4, dtype=q.dtype)).T @ q / 0.2
    assert torch.allclose(keys.grad, want, rtol=1e-10)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 6)])
def test_nt_xent_of_some_rows_equals_those_rows_of_the_whole_batch(rows: slice) -> None:
    queries = _unit(6, 8)
    keys = _unit(6, 8)
    for part, whole in zip(
        nt_xent(queries, keys, temperature=0.1, rows=rows), nt_xent(queries, keys, temperature=0.1), strict=True
    ):
        assert torch.allclose(part.row_losses, whole.row_losses[rows], rtol=1e-12)


def test_closed_forms_of_the_in_batch_losses() -> None:
    """Check two extremes.

    If all embeddings are equal, the loss is the log of the number of candidates, and the bound is 0. If the pairs are
    orthogonal and T is small, the loss is 0, and the bound is log B, the most that B images can tell.
    """
    row = _unit(1, 8).expand(6, 8)
    same = in_batch_info_nce(row, row, torch.arange(6), temperature=0.2)
    assert same.row_losses.tolist() == pytest.approx([math.log(6)] * 6, rel=1e-12)
    assert same.mi_bound.tolist() == pytest.approx([0.0] * 6, abs=1e-12)
    views = nt_xent(row, row, temperature=0.5)
    assert views[0].row_losses.tolist() == pytest.approx([math.log(11)] * 6, rel=1e-12)
    apart = torch.eye(6, dtype=torch.float64)
    told = in_batch_info_nce(apart, apart, torch.arange(6), temperature=0.02)
    assert told.mi_bound.tolist() == pytest.approx([math.log(6)] * 6, rel=1e-12)
    assert told.correct.all()


def test_the_bound_stays_below_the_mutual_information() -> None:
    """Check CPC eq. 5 on 4 equally likely images that are told apart perfectly: I = log 4, for any K."""
    world = torch.eye(4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for num_negatives in (1, 3, 15, 63):
        query = torch.randint(4, (4000,), generator=generator)
        losses = []
        for chunk in query.split(500):
            drawn = torch.randint(4, (num_negatives,), generator=generator)
            losses.append(info_nce(world[chunk], world[chunk], world[drawn], temperature=0.05))
        bound = torch.cat([nce.mi_bound for nce in losses]).mean().item()
        assert bound <= min(math.log(4), math.log(num_negatives + 1)) + 0.05
        assert bound > 0.5 * min(math.log(4), math.log(num_negatives + 1)) - 0.1


def test_masked_negatives_do_not_count_in_the_bound() -> None:
    row = _unit(1, 8).expand(2, 8)
    ids = torch.tensor([4, 5])
    got = info_nce(row, row, row[:1].expand(6, 8), temperature=0.2, ids=ids, negative_ids=torch.full((6,), 4))
    assert got.num_kept.tolist() == [0, 6]
    assert got.mi_bound.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_metrics_are_the_loss_and_means_over_both_directions() -> None:
    first, second = nt_xent(_unit(4, 8), _unit(4, 8), temperature=0.5)
    losses = torch.arange(4.0).requires_grad_()
    metrics = row_metrics([first, second], losses)
    assert torch.equal(metrics["loss"], losses.detach())
    assert not metrics["loss"].requires_grad
    assert torch.allclose(metrics["mi_bound"], (first.mi_bound + second.mi_bound) / 2)
    assert set(metrics) == {"loss", "contrast_acc", "positive_similarity", "negative_similarity", "mi_bound"}
