import copy

import pytest
import torch

from mocokit.methods.end_to_end import EndToEnd
from mocokit.methods.moco import MoCo
from tests.methods.small import (
    B,
    C,
    Noise,
    assert_any_micro_batch_gives_the_same_run,
    encoder,
    layout,
    order,
    passes,
    step_of,
    views,
)
from tests.oracles import info_nce_loop


def _end_to_end(micro: int = 0, *, shuffle: bool = True) -> EndToEnd:
    return EndToEnd(
        encoder(),
        global_batch_size=B,
        temperature=0.2,
        layout=layout(micro=micro),
        shuffle_order=order if shuffle else None,
    )


@pytest.mark.parametrize("num_crops", [0, 1, 2])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_the_gradient_cache_is_exact(noise: Noise, micro: int, num_crops: int) -> None:
    assert_any_micro_batch_gives_the_same_run(_end_to_end, noise, micro, num_crops)


def test_both_encoders_take_the_gradient_of_the_whole_batchs_loss(noise: Noise) -> None:
    """Against autograd through one plain computation, and the loss against a slow loop."""
    method = _end_to_end(micro=1)
    batch = views(noise)
    f_q = copy.deepcopy(method.encoder_q)
    f_k = copy.deepcopy(method.encoder_k)
    total = passes(method, batch, 3).total
    q = torch.cat([f_q(group) for group in batch.query.chunk(4)])
    slots = torch.cat([f_k(group) for group in batch.key[order(3, B)].chunk(4)])
    k = torch.empty_like(slots).index_copy(0, order(3, B), slots)
    with torch.no_grad():
        rows = [info_nce_loop(q[i : i + 1], k[i : i + 1], torch.cat([k[:i], k[i + 1 :]]), 0.2)[0] for i in range(B)]
    assert total == pytest.approx(sum(rows) / B, rel=1e-12)
    torch.nn.functional.cross_entropy(q @ k.T / 0.2, torch.arange(B)).backward()
    for ours, plain in ((method.encoder_q, f_q), (method.encoder_k, f_k)):
        for parameter, want in zip(ours.parameters(), plain.parameters(), strict=True):
            assert want.grad is not None and want.grad.abs().max() > 0
            assert torch.allclose(parameter.grad, want.grad, rtol=1e-9, atol=1e-13)  # type: ignore[arg-type]


def test_the_first_loss_is_mocos_with_these_keys_in_its_queue(noise: Noise) -> None:
    """Same encoders, same shuffle: MoCo whose queue holds the batch's keys and masks each query's own."""
    method = _end_to_end()
    ours = step_of(method, noise, 0, lr=0.0).rows
    moco = MoCo(
        encoder(),
        dim=C,
        queue_size=B,
        temperature=0.2,
        key_momentum=1.0,
        layout=layout(),
        shuffle_order=order,
        mask_same_image=True,
    ).double()
    step_of(moco, noise, 0, lr=0.0)  # fills the queue
    mocos = step_of(moco, noise, 0, lr=0.0).rows
    assert torch.allclose(ours["loss"], mocos["loss"], rtol=1e-12)
    assert torch.allclose(ours["mi_bound"], mocos["mi_bound"], rtol=1e-10)


def test_encoders_start_equal_and_part(noise: Noise) -> None:
    method = _end_to_end()
    pairs = list(zip(method.encoder_q.parameters(), method.encoder_k.parameters(), strict=True))
    assert all(torch.equal(q, k) for q, k in pairs)
    step_of(method, noise, 0)
    assert not all(torch.equal(q, k) for q, k in pairs)
