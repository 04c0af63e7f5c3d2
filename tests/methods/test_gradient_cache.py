import torch
from torch import Tensor

from mocokit.methods.contract import Rows
from mocokit.methods.gradient_cache import cache_gradient
from mocokit.methods.groups import GroupLayout, MicroBatch


def _run(micro_groups: int) -> tuple[list[float], Tensor, list[tuple[bool, bool]]]:
    """Losses, gradient and (keeps activations, statistics move) of each pass; loss: variance of a linear map's rows."""
    x = torch.linspace(-1, 2, 24, dtype=torch.float64).view(8, 3).sin()
    weight = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    passes = list[tuple[bool, bool]]()

    def embed(micro: MicroBatch, update_bn_stats: bool) -> Tensor:
        passes.append((torch.is_grad_enabled(), update_bn_stats))
        return (x[micro.rows] @ weight).square()[:, None]  # (rows, 1, 2)

    def score(batch: Tensor, micro: MicroBatch) -> tuple[Tensor, Rows]:
        losses = (batch[micro.rows] - batch.mean(dim=0)).square().sum(dim=(1, 2))
        return losses.sum() / 8, {"loss": losses.detach()}

    layout = GroupLayout(bn_groups=4, micro_groups=micro_groups)
    losses = []
    cached = cache_gradient(embed, score, layout=layout, global_batch_size=8)
    for micro in layout.micro_batches(8):
        loss, _ = cached.loss(micro)
        loss.backward()
        losses.append(loss.item())
    assert weight.grad is not None
    want = ((x @ weight.detach()).square() - (x @ weight.detach()).square().mean(dim=0)).square().sum(dim=1)
    assert abs(sum(losses) - float(want.mean())) < 1e-12
    return losses, weight.grad, passes


def test_values_and_gradients_of_parts_add_up_to_the_wholes() -> None:
    whole = _run(0)
    for micro_groups in (1, 2, 3):
        losses, gradient, _ = _run(micro_groups)
        assert len(losses) == -(-4 // micro_groups)
        assert torch.allclose(gradient, whole[1], rtol=1e-12)


def test_activations_of_one_micro_batch_are_kept_at_a_time_and_statistics_move_once() -> None:
    assert _run(1)[2] == [(False, True)] * 4 + [(True, False)] * 4
    assert _run(0)[2] == [(True, True)], "a single micro-batch is embedded once"
