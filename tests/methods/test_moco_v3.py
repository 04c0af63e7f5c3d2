import copy
import itertools
import math

import pytest
import torch
from torch import nn

from mocokit.methods.moco_v3 import MoCoV3
from mocokit.methods.momentum import cosine_key_momentum
from mocokit.nets.heads import build_v3_mlp
from tests.methods.small import (
    B,
    C,
    Noise,
    assert_any_micro_batch_gives_the_same_run,
    encoder,
    layout,
    passes,
    step_of,
    views,
)


def _moco_v3(micro: int = 0, *, m: float = 0.9) -> MoCoV3:
    torch.manual_seed(1)
    predictor = build_v3_mlp(C, C, width=12, num_layers=2, ends_in_bn=True)
    return MoCoV3(
        encoder(predictor=predictor),
        global_batch_size=B,
        temperature=0.2,
        key_momentum=lambda step: cosine_key_momentum(step / 4, start=m),
        layout=layout(micro=micro),
    ).double()


@pytest.mark.parametrize("num_crops", [0, 1, 2])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_any_micro_batch_gives_the_same_step(noise: Noise, micro: int, num_crops: int) -> None:
    assert_any_micro_batch_gives_the_same_run(_moco_v3, noise, micro, num_crops)


def test_the_loss_is_algorithm_1s(noise: Noise) -> None:
    """ctr(q1, k2) + ctr(q2, k1), each cross entropy times 2T; the gradient reaches queries alone."""
    method = _moco_v3()
    batch = views(noise)
    plain = copy.deepcopy(method.encoder_q)
    loss = passes(method, batch).total
    both = (batch.query, batch.key)
    queries = [torch.cat([plain(group) for group in view.chunk(4)]) for view in both]
    keys_net = copy.deepcopy(method.encoder_k)
    keys = [torch.cat([keys_net(group) for group in view.chunk(4)]).detach() for view in both]
    total = torch.zeros((), dtype=torch.float64)
    for q, k in ((queries[0], keys[1]), (queries[1], keys[0])):
        for i in range(B):
            scores = torch.stack([(q[i] @ k[j] / 0.2).exp() for j in range(B)])
            total = total - 2 * 0.2 * (scores[i] / scores.sum()).log() / B
    assert loss == pytest.approx(total.item(), rel=1e-12)
    total.backward()
    for parameter, want in zip(method.encoder_q.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(parameter.grad, want.grad, rtol=1e-8, atol=1e-13)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in method.encoder_k.parameters())


def test_keys_have_no_predictor_and_follow_backbone_and_projector(noise: Noise) -> None:
    method = _moco_v3()
    assert isinstance(method.encoder_k.predictor, nn.Identity)
    names = [name for name, _ in method.encoder_k.named_parameters()]
    assert names and not any(name.startswith("predictor") for name in names)
    for step in range(3):
        m = 1 - 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        before = {name: value.detach().clone() for name, value in method.encoder_k.named_parameters()}
        leading = {name: value.detach().clone() for name, value in method.encoder_q.named_parameters()}
        step_of(method, noise, step)
        assert method.gauges() == {"key_momentum": pytest.approx(m)}
        for name, value in method.encoder_k.named_parameters():
            assert torch.allclose(value, m * before[name] + (1 - m) * leading[name], rtol=1e-12, atol=1e-15)


def test_chance_is_4_t_log_b_and_the_bound_is_free_of_the_factor(noise: Noise) -> None:
    method = _moco_v3()
    rows = step_of(method, noise, 0).rows
    assert method.chance_loss == pytest.approx(4 * 0.2 * math.log(B))
    cross_entropy = rows["loss"] / (4 * 0.2)
    assert torch.allclose(rows["mi_bound"], math.log(B) - cross_entropy, rtol=1e-9)


def test_the_key_momentum_rises_to_1_by_a_half_cosine() -> None:
    """MoCo v3: 0.99 at first, 0.995 half way, 1 at the end."""
    rising = [cosine_key_momentum(progress / 100, start=0.99) for progress in range(101)]
    assert [rising[0], rising[50], rising[100]] == pytest.approx([0.99, 0.995, 1.0])
    assert all(before < after for before, after in itertools.pairwise(rising))
    assert rising[25] == pytest.approx(1 - 0.01 * math.cos(math.pi / 8) ** 2)
