"""Whole runs as plain loops, written from the papers' equations. Tests compare a run's loss with theirs, step by step.

No code of the engine, the methods, the losses, the optimizers or the schedules is used. Only the first weights, the
views and the permutations come from mocokit. All is done in one process on the whole batch, without micro-batches or
caches.
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mocokit.config.schema import Config
from mocokit.data.batch import ViewBatch
from mocokit.randomness import Purpose, generator, permutation
from mocokit.run.build import Parts, build_batches, build_run

Views = tuple[Tensor, Tensor, Tensor]
"""(query, key) as the encoders read them, and the images' indices."""

Loss = Callable[[int, Views], Tensor]
"""(step, views) -> mean loss of the batch."""


class Oracle:
    """The losses of a method; `after_step` updates its memory."""

    def __init__(self, config: Config, parts: Parts) -> None:
        self.config = config
        self.method: Any = config.method
        self.temperature = config.method.temperature
        self.encoder = copy.deepcopy(parts.method.encoder_q)
        self.total_steps = parts.steps_per_epoch * config.optim.epochs
        self.trained: list[nn.Parameter] = [p for p in self.encoder.parameters() if p.requires_grad]
        self.local: Tensor | None = None
        """(B, V, 3, s, s) local crops of the step, as the encoder reads them."""

    def loss(self, step: int, views: Views) -> Tensor:
        raise NotImplementedError

    def after_step(self) -> None: ...

    def embed(self, encoder: nn.Module, images: Tensor) -> Tensor:
        """Embed each BatchNorm group on its own."""
        return torch.cat([encoder(group) for group in images.chunk(self.method.bn_groups)])

    def order(self, step: int, size: int) -> Tensor:
        if not self.method.shuffle:
            return torch.arange(size)
        return torch.from_numpy(permutation(self.config.run.seed, Purpose.KEY_SHUFFLE, size, step))

    def embed_shuffled(self, encoder: nn.Module, images: Tensor, step: int) -> Tensor:
        order = self.order(step, len(images))
        slots = self.embed(encoder, images[order])
        rows = [Tensor()] * len(images)
        for slot, image in enumerate(order.tolist()):
            rows[image] = slots[slot]
        return torch.stack(rows)

    def cross_entropy(self, scores: Tensor, own: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return the mean of -log(exp(s+ / T) / sum of exp(s / T)) over the candidates that count, with the positive.

        `own` is each row's positive. Hard negatives (Robinson et al. 2021) weigh exp(beta s / T), on average 1; the
        decoupled sum (Yeh et al. 2021) is without the positive.
        """
        t: float = self.temperature
        beta: float = self.method.hardness
        rows = torch.arange(len(scores))
        counts = torch.ones_like(scores) if counts is None else counts.to(scores.dtype).clone()
        counts[rows, own] = 0.0
        tilt = (beta * scores / t).exp() * counts
        weights = tilt * counts.sum(1, keepdim=True) / tilt.sum(1, keepdim=True)
        positive = (scores[rows, own] / t).exp()
        negative = (weights * (scores / t).exp()).sum(1)
        return -(positive / (negative if self.method.decoupled else negative + positive)).log().mean()

    def crops(self) -> list[Tensor]:
        """V embeddings (B, C): SwAV sec. 3.2, BatchNorm over all crops of a group at a time."""
        if self.local is None:
            return []
        images_of_groups = self.local.chunk(self.method.bn_groups)
        groups = [torch.stack([crop for image in images for crop in image]) for images in images_of_groups]
        z = torch.cat([self.encoder(group) for group in groups])
        num_crops = self.local.shape[1]
        return [z[v::num_crops] for v in range(num_crops)]

    def queries(self, images: Tensor) -> list[Tensor]:
        """Return the queries of an image, over which its loss is the mean.

        They are the embeddings of each combination of patches, with BatchNorm over all rows of a group; or, without
        patches, the embeddings of the image and of its local crops.
        """
        grid = getattr(self.method, "patch_grid", 1)  # methods without patches have no such setting
        if grid == 1:
            return [self.embed(self.encoder, images), *self.crops()]
        px = images.shape[-1] // grid
        groups = []
        for group in images.chunk(self.method.bn_groups):
            cuts = [
                image[:, y * px : (y + 1) * px, x * px : (x + 1) * px]
                for image in group
                for y in range(grid)
                for x in range(grid)
            ]
            features = self.encoder.backbone(torch.stack(cuts)).view(len(group), grid * grid, -1)
            pairs = [(features[:, a] + features[:, b]) / 2 for a in range(grid * grid) for b in range(a)]
            z = self.encoder.predictor(self.encoder.head(torch.cat(pairs)))
            groups.append((z / z.norm(dim=1, keepdim=True)).view(len(pairs), len(group), -1))
        return list(torch.cat(groups, dim=1))


def move_keys(encoder_k: nn.Module, encoder_q: nn.Module, m: float) -> None:
    leading = dict(encoder_q.named_parameters())
    with torch.no_grad():
        for name, parameter in encoder_k.named_parameters():
            parameter.copy_(m * parameter + (1 - m) * leading[name])


class MoCoOracle(Oracle):
    """MoCo v1 Algorithm 1, and its symmetric form."""

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__(config, parts)
        self.encoder_k = copy.deepcopy(self.encoder)
        self.encoder_k.patches = None
        self.queue = parts.method.get_buffer("queue.keys").clone()
        self.queue_ids = torch.full((len(self.queue),), -1)
        self.fresh: list[tuple[Tensor, Tensor]] = []

    def loss(self, step: int, views: Views) -> Tensor:
        move_keys(self.encoder_k, self.encoder, self.method.key_momentum)
        query, key, ids = views
        contrasts = [(query, key), (key, query)] if self.method.symmetric else [(query, key)]
        losses = []
        for lead, follow in contrasts:
            with torch.no_grad():
                k = self.embed_shuffled(self.encoder_k, follow, step)
            counts = torch.ones(len(k), 1 + len(self.queue), dtype=k.dtype)
            if self.method.mask_same_image:
                counts[:, 1:] = (ids[:, None] != self.queue_ids[None]).to(k.dtype)
            each = []
            for q in self.queries(lead):
                positive = (q * k).sum(1)
                scores = torch.cat([positive[:, None], q @ self.queue.T], 1)
                each.append(self.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long), counts))
            losses.append(torch.stack(each).mean())
            self.fresh.insert(0, (k, ids))
        return sum(losses, torch.zeros(()))

    def after_step(self) -> None:
        for keys, ids in self.fresh:
            self.queue = torch.cat([self.queue[len(keys) :], keys])
            self.queue_ids = torch.cat([self.queue_ids[len(ids) :], ids])
        self.fresh = []


class EndToEndOracle(Oracle):
    """MoCo v1 fig. 2a."""

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__(config, parts)
        self.encoder_k = copy.deepcopy(self.encoder)
        self.trained = [*self.encoder.parameters(), *self.encoder_k.parameters()]

    def loss(self, step: int, views: Views) -> Tensor:
        k = self.embed_shuffled(self.encoder_k, views[1], step)
        losses = [self.cross_entropy(q @ k.T, torch.arange(len(k))) for q in self.queries(views[0])]
        return torch.stack(losses).mean()


class MemoryBankOracle(Oracle):
    """InstDisc eq. 4 with sampled negatives, and its update of features."""

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__(config, parts)
        self.bank = parts.method.get_buffer("features").clone()
        self.fresh: tuple[Tensor, Tensor] | None = None

    def loss(self, step: int, views: Views) -> Tensor:
        queries = self.queries(views[0])
        ids = views[2]
        draws = generator(self.config.run.seed, Purpose.BANK_SAMPLE, step)
        drawn = torch.from_numpy(draws.integers(len(self.bank), size=self.method.num_negatives))
        counts = torch.cat([torch.ones(len(ids), 1), (ids[:, None] != drawn[None]).float()], 1)
        self.fresh = (queries[0].detach(), ids)
        losses = []
        for q in queries:
            scores = torch.cat([(q * self.bank[ids]).sum(1)[:, None], q @ self.bank[drawn].T], 1)
            losses.append(self.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long), counts))
        return torch.stack(losses).mean()

    def after_step(self) -> None:
        assert self.fresh is not None
        for feature, index in zip(*self.fresh, strict=True):
            mixed = self.method.feature_momentum * self.bank[index] + (1 - self.method.feature_momentum) * feature
            self.bank[index] = mixed / mixed.norm()


class SimClrOracle(Oracle):
    """SimCLR Algorithm 1; the official loss is twice its mean over 2B views."""

    def loss(self, step: int, views: Views) -> Tensor:
        groups = zip(*(view.chunk(self.method.bn_groups) for view in views[:2]), strict=True)
        halves = [self.encoder(torch.cat(group)).chunk(2) for group in groups]
        z = torch.cat([half[0] for half in halves] + [half[1] for half in halves])  # (2B, C)
        partner = torch.arange(len(z)).roll(len(z) // 2)
        others = 1 - torch.eye(len(z), dtype=z.dtype)
        losses = [self.cross_entropy(z @ z.T, partner, others)]
        for crop in self.crops():  # once in the place of each view of its image
            losses.append(self.cross_entropy(torch.cat([crop, crop]) @ z.T, partner, others))
        return 2 * torch.stack(losses).mean()


class MoCoV3Oracle(Oracle):
    """MoCo v3 Algorithm 1."""

    def __init__(self, config: Config, parts: Parts) -> None:
        super().__init__(config, parts)
        self.encoder_k = copy.deepcopy(self.encoder)
        self.encoder_k.predictor = nn.Identity()
        self.encoder_k.patches = None

    def m(self, step: int) -> float:
        start: float = self.method.key_momentum
        return 1 - (1 - start) * (1 + math.cos(math.pi * step / self.total_steps)) / 2

    def factor(self) -> float:
        return 2 * self.temperature

    def loss(self, step: int, views: Views) -> Tensor:
        move_keys(self.encoder_k, self.encoder, self.m(step))
        with torch.no_grad():
            keys = [self.embed(self.encoder_k, view) for view in views[:2]]
        total = torch.zeros(())
        for view, k in zip(views[:2], reversed(keys), strict=True):
            scores = [q @ k.T for q in self.queries(view)]
            total = total + torch.stack([self.cross_entropy(s, torch.arange(len(k))) for s in scores]).mean()
        return self.factor() * total


class FastMoCoOracle(MoCoV3Oracle):
    """orashi/Fast-MoCo: cross entropy, the mean over the 6 queries of both views; m constant."""

    def m(self, step: int) -> float:
        return float(self.method.key_momentum)

    def factor(self) -> float:
        return 1 / 2


ORACLES: dict[str, type[Oracle]] = {
    "moco": MoCoOracle,
    "end-to-end": EndToEndOracle,
    "memory-bank": MemoryBankOracle,
    "simclr": SimClrOracle,
    "moco-v3": MoCoV3Oracle,
    "fast-moco": FastMoCoOracle,
}


def rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate: steps or cosine by epoch (v1, v2), or warm-up and cosine by step (SimCLR, v3).

    Fast-MoCo and the CIFAR notebook count from 1, and Fast-MoCo's warm-up starts at a quarter of the peak.
    """
    optim = config.optim
    epoch = step // steps_per_epoch
    if optim.lr_by == "step":
        warm = optim.warmup_epochs * steps_per_epoch
        total = optim.epochs * steps_per_epoch
        if config.method.name == "fast-moco":
            number = step + 1
            if number <= warm and warm > 0:
                return 0.25 * optim.lr + 0.75 * optim.lr * (number - 1) / (warm - 1)
            return optim.lr * (1 + math.cos(math.pi * (number - warm) / (total - warm))) / 2
        if step < warm:
            return optim.lr * step / warm
        return optim.lr * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
    if optim.schedule == "cosine":
        epoch += optim.lr_end == "last"
        return optim.lr * (1 + math.cos(math.pi * epoch / optim.epochs)) / 2
    return optim.lr * math.prod(0.1 for milestone in optim.milestones if epoch >= milestone)


def mover(config: Config, parameters: list[nn.Parameter], predictor: set[nn.Parameter]) -> Callable[[float], None]:
    """Return a function of the learning rate that does one optimizer step; Fast-MoCo's predictor has the peak rate."""
    optim = config.optim
    state = [torch.zeros_like(parameter) for parameter in parameters]
    if optim.name == "adamw":
        adamw = torch.optim.AdamW(parameters, weight_decay=optim.weight_decay, foreach=False)

        def move_adamw(lr: float) -> None:
            adamw.param_groups[0]["lr"] = lr
            adamw.step()

        return move_adamw

    @torch.no_grad()
    def move(scheduled: float) -> None:
        for parameter, velocity in zip(parameters, state, strict=True):
            lr = optim.lr if optim.predictor_lr == "constant" and parameter in predictor else scheduled
            assert parameter.grad is not None
            g = parameter.grad
            keeps_lr = optim.name == "lars-classic"
            if optim.name == "sgd" or parameter.ndim > 1:
                g = g + optim.weight_decay * parameter
            if optim.name != "sgd" and parameter.ndim > 1 and parameter.norm() > 0 and g.norm() > 0:
                g = 0.001 * parameter.norm() / g.norm() * g
            velocity.copy_(0.9 * velocity + (lr * g if keeps_lr else g))
            parameter.sub_(velocity if keeps_lr else lr * velocity)

    return move


def clip(parameters: list[nn.Parameter], longest: float) -> None:
    """Scale the gradient down to the length `longest`; 0: never. Fast-MoCo uses torch's, which adds 1e-6 to it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    length = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    if longest:
        for gradient in gradients:
            gradient.mul_(min(1.0, longest / (length + 1e-6)))


def oracle_losses(config: Config) -> Iterator[float]:
    """Yield the loss of each step of the run that `config` describes."""
    parts = build_run(config, torch.device("cpu"))
    oracle = ORACLES[config.method.name](config, parts)
    move = mover(config, oracle.trained, set(oracle.encoder.predictor.parameters()))
    batches = build_batches(config, parts, start_step=0, total_steps=oracle.total_steps)
    for step, batch in enumerate(batches):
        *views, oracle.local = _read(batch, parts)
        loss = oracle.loss(step, (views[0], views[1], views[2]))
        for parameter in oracle.trained:
            parameter.grad = None
        loss.backward()
        clip(oracle.trained, config.optim.clip_norm)
        move(rate(config, step, parts.steps_per_epoch))
        oracle.after_step()
        yield loss.item()


def _read(batch: ViewBatch, parts: Parts) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    mean, std = (
        torch.tensor(values, dtype=torch.float32).double().view(1, 3, 1, 1)
        for values in (parts.card.mean, parts.card.std)
    )
    views = batch.augmented()
    query, key = ((pixels.double() / 255 - mean) / std for pixels in (views.query, views.key))
    return query, key, views.image_ids, None if views.local is None else (views.local.double() / 255 - mean) / std
