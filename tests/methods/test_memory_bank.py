import pytest
import torch
from torch import Tensor

from mocokit.methods.memory_bank import MemoryBank
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
from tests.oracles import info_nce_loop

M = 64
K = 20


def _sample(step: int) -> Tensor:
    return torch.randint(M, (K,), generator=torch.Generator().manual_seed(step))


def _bank(micro: int = 0, *, feature_momentum: float = 0.5) -> MemoryBank:
    return MemoryBank(
        encoder(),
        dim=C,
        num_images=M,
        num_negatives=K,
        temperature=0.07,
        feature_momentum=feature_momentum,
        layout=layout(micro=micro),
        sample=_sample,
    ).double()


@pytest.mark.parametrize("num_crops", [0, 1, 2])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_any_micro_batch_gives_the_same_step(noise: Noise, micro: int, num_crops: int) -> None:
    assert_any_micro_batch_gives_the_same_run(_bank, noise, micro, num_crops)


def test_the_loss_is_info_nce_against_the_images_own_feature_and_sampled_ones(noise: Noise) -> None:
    method = _bank()
    batch = views(noise)
    ids = batch.image_ids
    loss = passes(method, batch, 5).total
    q = torch.cat([encoder()(group) for group in batch.query.chunk(4)])
    drawn = _sample(5)
    masked = ids[:, None] == drawn[None]
    assert masked.any()
    want = info_nce_loop(q.detach(), method.features[ids], method.features[drawn], 0.07, masked)
    assert loss == pytest.approx(sum(want) / B, rel=1e-12)


def test_features_move_half_way_and_stay_on_the_sphere(noise: Noise) -> None:
    """InstDisc sec. 3.3: v <- t v + (1 - t) f, normalised; features of other images do not move."""
    method = _bank()
    query = views(noise).query
    ids = views(noise).image_ids
    before = method.features.clone()
    step_of(method, noise, 0, lr=0.0)
    q = torch.cat([encoder()(group) for group in query.chunk(4)]).detach()
    for row, index in enumerate(ids.tolist()):
        mixed = 0.5 * before[index] + 0.5 * q[row]
        assert torch.allclose(method.features[index], mixed / mixed.norm(), rtol=1e-12)
    assert torch.equal(method.features[B:], before[B:])
    assert method.gauges() == {"bank_fill": B / M}


def test_an_image_that_comes_twice_leaves_its_later_feature(noise: Noise) -> None:
    method = _bank(feature_momentum=0.0)
    batch = views(noise)
    batch.image_ids[3] = batch.image_ids[9]
    done = passes(method, batch)
    q = torch.cat([encoder()(group) for group in batch.query.chunk(4)])
    method.remember(done.batch, done.rows)
    assert torch.allclose(method.features[batch.image_ids[9]], q[9], rtol=1e-12)


def test_impossible_settings_name_themselves() -> None:
    with pytest.raises(ValueError, match=r"feature_momentum=1.0: must be in 0\.\.1, below 1"):
        _bank(feature_momentum=1.0)
