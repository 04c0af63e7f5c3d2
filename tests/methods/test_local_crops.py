from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from mocokit.losses import info_nce
from mocokit.methods.end_to_end import EndToEnd
from mocokit.methods.local_crops import image_losses
from mocokit.methods.memory_bank import MemoryBank
from mocokit.methods.moco import MoCo
from tests.methods.small import B, C, Noise, encoder, layout, order, passes, views
from tests.oracles import info_nce_loop

OneWay = MoCo | EndToEnd | MemoryBank
"""Methods in which an image's only query is that of its first view."""


def _moco(micro: int = 0, *, mask_same_image: bool = False) -> MoCo:
    return MoCo(
        encoder(),
        dim=C,
        queue_size=40,
        temperature=0.2,
        key_momentum=0.9,
        layout=layout(micro=micro),
        shuffle_order=order,
        mask_same_image=mask_same_image,
    ).double()


def _end_to_end(micro: int = 0) -> EndToEnd:
    return EndToEnd(encoder(), global_batch_size=B, temperature=0.2, layout=layout(micro=micro), shuffle_order=order)


def _memory_bank(micro: int = 0) -> MemoryBank:
    return MemoryBank(
        encoder(),
        dim=C,
        num_images=64,
        num_negatives=20,
        temperature=0.2,
        feature_momentum=0.5,
        layout=layout(micro=micro),
        sample=lambda step: torch.arange(step, step + 20),
    ).double()


@pytest.mark.parametrize("micro", [0, 1])
@pytest.mark.parametrize("build", [_moco, _end_to_end, _memory_bank])
def test_crops_that_are_the_query_view_itself_change_nothing(
    noise: Noise, build: Callable[[int], OneWay], micro: int
) -> None:
    """Loss, metrics and gradient: the mean over copies of a query is the query's."""
    plain = build(micro)
    copies = build(micro)
    batch = views(noise)
    of_plain = passes(plain, batch, 3).rows
    of_copies = passes(copies, replace(batch, local=batch.query[:, None].expand(-1, 3, -1, -1, -1)), 3).rows
    for name, rows in of_plain.items():
        assert torch.allclose(of_copies[name], rows, rtol=1e-10), name
    for parameter, want in zip(copies.parameters(), plain.parameters(), strict=True):
        if want.grad is not None:
            assert torch.allclose(parameter.grad, want.grad, rtol=1e-8, atol=1e-13)  # type: ignore[arg-type]


def test_the_loss_of_moco_is_the_mean_over_an_images_queries(noise: Noise) -> None:
    """Against a slow loop over the queries of each image; own-image negatives are masked for crops as well."""
    method = _moco(mask_same_image=True)
    batch = views(noise, num_crops=2)
    local = batch.local
    assert local is not None
    f_q = encoder()
    method.queue.image_ids[:B] = batch.image_ids
    done = passes(method, batch)
    k = done.batch.keys[0]
    masked = batch.image_ids[:, None] == method.queue.image_ids[None]
    asked = [torch.cat([f_q(group) for group in batch.query.chunk(4)])]
    asked += torch.cat([f_q(group.flatten(0, 1)) for group in local.chunk(4)]).unflatten(0, (B, 2)).unbind(1)
    rows = [info_nce_loop(q.detach(), k, method.queue.negatives, 0.2, masked) for q in asked]
    assert done.total == pytest.approx(sum(map(sum, rows)) / (3 * B), rel=1e-12)


def test_metrics_are_those_of_the_views_but_for_the_loss(noise: Noise) -> None:
    plain = _moco()
    crops = _moco()
    of_crops = passes(crops, views(noise, num_crops=2)).rows
    for name, rows in passes(plain, views(noise)).rows.items():
        assert torch.equal(of_crops[name], rows) == (name != "loss"), name
    assert crops.chance_loss == plain.chance_loss


def test_running_statistics_and_the_queue_know_nothing_of_crops(noise: Noise) -> None:
    plain = _moco()
    crops = _moco()
    for method, num_crops in ((plain, 0), (crops, 2)):
        done = passes(method, views(noise, num_crops=num_crops))
        method.remember(done.batch, done.rows)
    for name, value in plain.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(crops.state_dict()[name], value), name
    assert int(crops.encoder_q.get_buffer("backbone.bn1.num_batches_tracked")) == 1


def test_an_images_loss_is_the_mean_over_queries_times_the_directions() -> None:
    q, k = (torch.nn.functional.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1) for _ in "qk")
    contrasts = [[info_nce(q.roll(i + j, 1), k, k[:2], temperature=0.2) for j in range(2)] for i in range(3)]
    total = sum((nce.row_losses for query in contrasts for nce in query), torch.zeros(4))
    assert torch.allclose(image_losses(contrasts), 2 * total / 6, rtol=1e-12)
    assert torch.equal(image_losses([contrasts[0][:1]]), contrasts[0][0].row_losses)
