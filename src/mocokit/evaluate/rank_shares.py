"""Split feature extraction over ranks: each rank embeds a contiguous part of the images.

The cuts lie between whole batches of one process: the network sees the same batches, and rows have the same bits on the
CPU, even where a library's kernel depends on the size of a batch. If there are fewer batches than ranks, some ranks are
idle.

Shapes: M images, D feature dimension, R ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mocokit import distributed
from mocokit.data.batch import BadImage
from mocokit.evaluate.features import EXTRACT_BATCH, Features, LabelledImages, embed_images, require_images
from mocokit.evaluate.unreadable import ReadTally

ADVICE = "start the same command again; features in the run folder are not computed again"
"""End of the message of a rank that ends because of another one."""


def part_of(size: int, rank: int, num_ranks: int) -> range:
    """Return the consecutive numbers out of 0 .. size-1 that belong to `rank`; ranks differ by one at most."""
    return range(rank * size // num_ranks, (rank + 1) * size // num_ranks)


def own_part(size: int) -> range:
    """Return the consecutive numbers out of 0 .. size-1 that belong to this rank."""
    return part_of(size, distributed.rank(), distributed.world_size())


def own_share(images: LabelledImages, batch_size: int) -> LabelledImages:
    """Return this rank's part of the images: whole batches, consecutive."""
    batches = own_part(-(-len(images.indices) // batch_size))
    return images.only(images.indices[batches.start * batch_size : batches.stop * batch_size])


def extract_share(
    embed: Callable[[Tensor], Tensor], images: LabelledImages, *, device: torch.device, batch_size: int = EXTRACT_BATCH
) -> Features:
    """Return the features of this rank's part of `images`; in one process, of all of them.

    The images that a rank could not read are counted on all ranks, and `bad` has those of all.

    Raises:
        ValueError: On all ranks: none of the images can be read, or too few (see ReadTally).

    """
    own = own_share(images, batch_size)
    if distributed.world_size() > 1:  # a rank that raised alone would leave the others waiting
        own = replace(own, tally=images.tally.unlimited())

    def embed_batch(pixels: Tensor) -> Tensor:
        """Embed a batch, and restart the time that the other ranks wait for this one."""
        with distributed.work_alone():
            return embed(pixels)

    with distributed.work_alone():  # a slower rank may need long after the others have ended their parts
        features = distributed.on_every_rank(
            lambda: embed_images(embed_batch, own, device=device, batch_size=batch_size)
        )
    parts = distributed.all_gather_objects((len(features.rows), features.rows.shape[1], features.bad))
    bad = tuple(image for *_, part in parts for image in part)
    images.tally.add(bad)
    require_images(sum(count for count, *_ in parts))
    if not len(features.rows):  # a rank without images does not know D
        features = replace(features, rows=torch.empty(0, max(width for _, width, _ in parts)))
    return replace(features, bad=bad)


def gather_on_main(share: Features) -> Features | None:
    """Return the features of all ranks on the main rank; None on the others."""
    counts = distributed.all_gather_objects(len(share.rows))
    rows = distributed.gather_rows_on_main(share.rows, counts)
    labels = distributed.gather_rows_on_main(share.labels, counts)
    return None if rows is None or labels is None else replace(share, rows=rows, labels=labels)


def from_main(features: Features | None) -> Features:
    """Return the main rank's features to all ranks; the others give None."""
    if distributed.world_size() == 1:
        assert features is not None, "the main rank has them"
        return features
    facts = None if features is None else (features.extract_s, features.bad)
    extract_s, bad = distributed.all_gather_objects(facts)[0] or (0.0, ())
    rows = distributed.rows_from_main(None if features is None else features.rows)
    labels = distributed.rows_from_main(None if features is None else features.labels)
    return Features(rows=rows, labels=labels, extract_s=extract_s, bad=bad)


def on_all_ranks(share: Features) -> Features:
    """Return the features of all ranks on each of them, in the order of the ranks."""
    return from_main(gather_on_main(share))


def shard_of(features: Features) -> Features:
    """Return this rank's part of features that every rank holds, without a copy."""
    part = own_part(len(features.rows))
    return replace(features, rows=features.rows[part.start : part.stop], labels=features.labels[part.start : part.stop])


def count_batch(tally: ReadTally, num_read: int, bad: Sequence[BadImage]) -> list[int]:
    """Record the unreadable images of a training batch on all ranks; return the number of readable ones on each rank.

    Raises:
        ValueError: On all ranks: too many images can't be read (see ReadTally).

    """
    ones = [1] * distributed.world_size()
    counts = distributed.all_gather_rows(torch.tensor([[num_read, len(bad)]]), ones)  # (R, 2)
    if counts[:, 1].any():
        tally.add(image for part in distributed.all_gather_objects(tuple(bad)) for image in part)
    return [int(count) for count in counts[:, 0]]
