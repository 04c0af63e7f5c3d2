"""What a faithful MoCo does in one step, each a bug that another code base has shipped."""

import math

import pytest
import torch
from torch import Tensor, nn

from mocokit.data.batch import ViewBatch
from mocokit.engine.health import MAX_BN_LEAK
from mocokit.methods.groups import GroupLayout
from mocokit.methods.moco import MoCo
from mocokit.nets.encoder import Encoder
from mocokit.nets.heads import build_head
from mocokit.run.verify import TraceBackbone
from tests.methods.small import B, C, Noise, exchanged, passes, step_of, views

K = 40


def _moco(
    *,
    groups: int = 4,
    micro: int = 0,
    shuffle: bool = True,
    masks: bool = False,
    symmetric: bool = False,
    m: float = 0.9,
    backbone: nn.Module | None = None,
    head: nn.Module | None = None,
    dim: int = C,
) -> MoCo:
    torch.manual_seed(0)

    def order(step: int, size: int) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(step))

    return MoCo(
        Encoder(backbone or TraceBackbone(), head or build_head(16, dim, mlp=True)),
        dim=dim,
        queue_size=K,
        temperature=0.2,
        key_momentum=m,
        layout=GroupLayout(bn_groups=groups, micro_groups=micro),
        shuffle_order=order if shuffle else None,
        mask_same_image=masks,
        symmetric=symmetric,
    ).double()


def test_encoder_k_starts_equal_to_encoder_q() -> None:
    moco = _moco()
    ours = moco.encoder_q.state_dict()
    theirs = moco.encoder_k.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_encoder_k_moves_by_momentum_alone(noise: Noise) -> None:
    moco = _moco(m=0.9)
    for step in range(3):
        k_before = [parameter.clone() for parameter in moco.encoder_k.parameters()]
        q_before = [parameter.detach().clone() for parameter in moco.encoder_q.parameters()]
        step_of(moco, noise, step)
        for k, k0, q0 in zip(moco.encoder_k.parameters(), k_before, q_before, strict=True):
            assert not k.requires_grad
            assert torch.allclose(k, 0.9 * k0 + 0.1 * q0, rtol=1e-12, atol=1e-15)


def test_batchnorm_statistics_of_encoder_k_are_its_own(noise: Noise) -> None:
    moco = _moco(m=0.0)  # parameters equal encoder_q's at each step, statistics must not
    step_of(moco, noise, 0, lr=0.0)
    name = "backbone.bn1.running_mean"
    assert not torch.allclose(moco.encoder_k.get_buffer(name), moco.encoder_q.get_buffer(name))


def test_current_keys_are_not_negatives(noise: Noise) -> None:
    moco = _moco()
    for step in range(4):
        done = passes(moco, views(noise, step), step)
        assert not set(moco.queue.image_ids.tolist()) & set(range(B * step, B * step + B))
        moco.remember(done.batch, done.rows)
        assert set(moco.queue.image_ids.tolist()) >= set(range(B * step, B * step + B))


def test_each_key_is_that_of_its_own_image(noise: Noise) -> None:
    """Un-shuffling restores the order: with group statistics switched off the order must not matter at all."""
    moco = _moco()
    moco.encoder_k.eval()
    batch = moco.prepare(views(noise), step=3)
    assert torch.allclose(batch.keys[0], moco.encoder_k(views(noise).key), rtol=1e-12)


@pytest.mark.parametrize(("groups", "has_effect"), [(1, False), (2, True), (4, True), (8, True)])
def test_the_shuffle_has_an_effect_exactly_with_two_groups_or_more(noise: Noise, groups: int, has_effect: bool) -> None:
    def keys(shuffle: bool) -> Tensor:
        return _moco(groups=groups, shuffle=shuffle).prepare(views(noise), 0).keys[0]

    assert torch.allclose(keys(True), keys(False), rtol=1e-9, atol=1e-12) != has_effect


@pytest.mark.parametrize("num_crops", [0, 1, 2])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_any_micro_batch_gives_the_same_step(noise: Noise, micro: int, num_crops: int) -> None:
    whole = _moco(symmetric=num_crops == 2)
    parts = _moco(symmetric=num_crops == 2, micro=micro)
    for step in range(4):
        losses = [step_of(moco, noise, step, num_crops=num_crops).total for moco in (whole, parts)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for name, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.allclose(parts.state_dict()[name], value, rtol=1e-10, atol=1e-13), name


def test_same_image_negatives_are_masked_and_counted(noise: Noise) -> None:
    plain = _moco()
    masked = _moco(masks=True)
    for moco in (plain, masked):
        step_of(moco, noise, 0, lr=0.0)
    of_plain = passes(plain, views(noise, 0), 1).rows  # the same images come again, their keys are in the queue
    of_masked = passes(masked, views(noise, 0), 1).rows
    assert of_masked["masked_negatives"].tolist() == [1.0] * B
    assert of_plain["masked_negatives"].tolist() == [0.0] * B
    assert (of_masked["loss"] < of_plain["loss"]).all()


class _GroupReader(nn.Module):
    """A backbone that says little of the image and much of the company that it was normalised in.

    Half of what BatchNorm sees is a constant 1; what becomes of it tells the group's mean and variance. For channel
    means spread evenly over 0..1 it is (1 - 0.75) / 0.323 = 0.775 on average.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        probe = torch.ones_like(images[:, :, :1, :1])
        normed: Tensor = self.bn(torch.cat([probe, images.mean(dim=(2, 3), keepdim=True)], dim=2))  # (N, 3, 2, 1)
        return (normed[:, :, 0, 0] - 0.775) + 0.02 * normed[:, :, 1, 0]


def _leak_of_a_run(*, groups: int, shuffle: bool, steps: int = 60) -> float:
    """Mean `bn_leak` of a run on plain coloured images, both views of which differ by slight noise."""
    generator = torch.Generator().manual_seed(0)
    moco = _moco(groups=groups, shuffle=shuffle, backbone=_GroupReader(), head=nn.Identity(), dim=3)
    leaks = []
    for step in range(steps):
        colour = torch.rand(B, 3, 1, 1, generator=generator, dtype=torch.float64).expand(B, 3, 4, 4)
        query, key = (colour + 0.02 * torch.randn(B, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in "qk")
        done = passes(moco, ViewBatch(query=query, key=key, image_ids=torch.arange(B) + B * step), step)
        moco.remember(done.batch, done.rows)
        leaks.append(done.rows["bn_leak"].mean().item())
    return sum(leaks[1:]) / (steps - 1)  # before the second step there is no batch to compare with


def test_a_batchnorm_leak_is_visible_in_the_metrics() -> None:
    """One group without shuffle, and groups without shuffle, leak; shuffling over the same groups does not."""
    assert _leak_of_a_run(groups=1, shuffle=False) > 3 * MAX_BN_LEAK
    assert _leak_of_a_run(groups=1, shuffle=True) > 3 * MAX_BN_LEAK, "with one group the shuffle does nothing"
    assert _leak_of_a_run(groups=4, shuffle=False) > 3 * MAX_BN_LEAK
    assert _leak_of_a_run(groups=4, shuffle=True) < 0.4 * _leak_of_a_run(groups=4, shuffle=False)


def test_keys_enter_the_queue_as_unit_rows_in_batch_order(noise: Noise) -> None:
    moco = _moco()
    step_of(moco, noise, 0)
    assert torch.allclose(moco.queue.keys[:B].norm(dim=1), torch.ones(B, dtype=torch.float64))
    assert moco.queue.image_ids[:B].tolist() == list(range(B))


def test_any_module_with_a_declared_width_is_a_backbone(noise: Noise) -> None:
    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    encoder = Encoder(Flat(), build_head(3 * 16 * 16, C, mlp=False)).double()
    assert encoder(noise(2).double()).shape == (2, C)


def test_symmetric_loss_is_the_sum_of_both_directions(noise: Noise) -> None:
    """The official notebook: loss_12 + loss_21; twice the keys enter, those of the key views last."""
    one_way = [passes(_moco(), batch) for batch in (views(noise), exchanged(views(noise)))]
    losses = sum(done.total for done in one_way)
    both = _moco(symmetric=True)
    done = passes(both, views(noise))
    assert done.total == pytest.approx(losses, rel=1e-12)
    assert done.rows["loss"].mean().item() == pytest.approx(losses, rel=1e-12)
    assert both.chance_loss == pytest.approx(2 * math.log(K + 1))
    both.remember(done.batch, done.rows)
    keys = [done.batch.keys[0] for done in one_way]
    assert torch.allclose(both.queue.newest(2 * B), torch.cat([keys[1], keys[0]]), rtol=1e-12)
    assert both.queue.image_ids[: 2 * B].tolist() == views(noise).image_ids.tolist() * 2


@pytest.mark.parametrize(
    ("temperature", "key_momentum", "message"), [(0.0, 0.9, "temperature=0.0"), (0.2, 1.5, "key_momentum=1.5")]
)
def test_impossible_settings_name_themselves(temperature: float, key_momentum: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoCo(
            Encoder(TraceBackbone(), build_head(16, C, mlp=True)),
            dim=C,
            queue_size=K,
            layout=GroupLayout(bn_groups=4),
            temperature=temperature,
            key_momentum=key_momentum,
        )
