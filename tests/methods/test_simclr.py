import copy
import math

import pytest
import torch

from mocokit.methods.simclr import SimClr
from tests.methods.small import (
    B,
    Noise,
    assert_any_micro_batch_gives_the_same_run,
    encoder,
    layout,
    passes,
    step_of,
    views,
)
from tests.oracles import nt_xent_loop


def _simclr(micro: int = 0, *, groups: int = 4) -> SimClr:
    return SimClr(encoder(), global_batch_size=B, temperature=0.1, layout=layout(groups, micro))


@pytest.mark.parametrize("num_crops", [0, 1, 2])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_the_gradient_cache_is_exact(noise: Noise, micro: int, num_crops: int) -> None:
    assert_any_micro_batch_gives_the_same_run(_simclr, noise, micro, num_crops)


@pytest.mark.parametrize("micro", [0, 1])
def test_the_loss_is_algorithm_1s_and_its_gradient_goes_through_all_views(noise: Noise, micro: int) -> None:
    """Both views of a group's images are normalised together; against autograd through one plain computation."""
    method = _simclr(micro)
    batch = views(noise)
    plain = copy.deepcopy(method.encoder_q)
    total = passes(method, batch).total
    groups = zip(batch.query.chunk(4), batch.key.chunk(4), strict=True)
    pairs = [plain(torch.cat(group)).chunk(2) for group in groups]
    z = torch.cat([pair[0] for pair in pairs] + [pair[1] for pair in pairs])
    assert total == pytest.approx(2 * nt_xent_loop(z[:B].detach(), z[B:].detach(), 0.1), rel=1e-12)
    scores = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
    (2 * torch.nn.functional.cross_entropy(scores, torch.arange(2 * B).roll(B))).backward()
    for parameter, want in zip(method.encoder_q.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter.grad, want.grad, rtol=1e-9, atol=1e-13)  # type: ignore[arg-type]


def test_running_statistics_move_once_a_step(noise: Noise) -> None:
    for micro in (0, 1):
        method = _simclr(micro)
        step_of(method, noise, 0)
        assert int(method.encoder_q.get_buffer("backbone.bn1.num_batches_tracked")) == 1


def test_global_batchnorm_is_one_group(noise: Noise) -> None:
    one = _simclr(groups=1)
    four = _simclr(groups=4)
    assert step_of(one, noise, 0).total != pytest.approx(step_of(four, noise, 0).total, rel=1e-6)


def test_chance_and_the_bound_count_two_views_of_all_other_images() -> None:
    method = _simclr()
    assert method.chance_loss == pytest.approx(2 * math.log(2 * B - 1))
