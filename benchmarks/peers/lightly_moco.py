"""MoCo v2 with lightly, written as its documentation shows it; the first peer.

Model and loop are those of its example; transform, data set and memory bank are the documented ones; shuffling BN and
the cosine schedule are those of its tutorial. Where the documentation leaves a choice, this script takes the faster
one: workers persist over epochs.

    python benchmarks/peers/lightly_moco.py --data photos/ --out backbone.pt --arch resnet18 --image-size 64
"""

import argparse
import copy
from pathlib import Path

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader

from mocokit.nets.backbones import build_backbone, feature_dim


class MoCo(nn.Module):
    """Backbone and projection head, with a momentum copy of both.

    Args:
        backbone: (N, 3, H, W) -> (N, D).
        dim: Width of the embedding.

    """

    def __init__(self, backbone: nn.Module, dim: int = 128) -> None:
        super().__init__()
        width = feature_dim(backbone)
        self.backbone = backbone
        self.projection_head = MoCoProjectionHead(width, width, dim)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x: Tensor) -> Tensor:
        """Return query embeddings (N, C)."""
        query: Tensor = self.projection_head(self.backbone(x))
        return query

    @torch.no_grad()
    def forward_momentum(self, x: Tensor) -> Tensor:
        """Return key embeddings (N, C), computed in shuffled order."""
        x, shuffle = batch_shuffle(x)
        key: Tensor = self.projection_head_momentum(self.backbone_momentum(x))
        key = batch_unshuffle(key, shuffle)
        return key


def build_criterion(queue_size: int) -> nn.Module:
    """Return the contrastive loss, which holds the queue."""
    criterion: nn.Module = NTXentLoss(temperature=0.2, memory_bank_size=(queue_size, 128))
    return criterion


def build_optimizer(model: nn.Module, lr: float) -> torch.optim.SGD:
    """Return MoCo v2's SGD."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


def compute_loss(model: MoCo, criterion: nn.Module, x_query: Tensor, x_key: Tensor) -> Tensor:
    """Run the first half of a step (momentum update, both forwards) and return the loss."""
    update_momentum(model.backbone, model.backbone_momentum, m=0.999)
    update_momentum(model.projection_head, model.projection_head_momentum, m=0.999)
    loss: Tensor = criterion(model(x_query), model.forward_momentum(x_key))
    return loss


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Run the second half of a step: backward and optimizer."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def build_loader(args: argparse.Namespace) -> DataLoader[tuple[list[Tensor], Tensor, list[str]]]:
    """Return a loader of batches of two views from a folder of images."""
    dataset = LightlyDataset(args.data, transform=MoCoV2Transform(input_size=args.image_size))
    return DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )


def parse_arguments() -> argparse.Namespace:
    """Return the script's flags."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of JPEG files")
    parser.add_argument("--out", type=Path, required=True, help="file for the backbone's weights")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--stem", choices=("imagenet", "small"), default="imagenet")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--queue-size", type=int, default=65536)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train, print the loss of each epoch, and save the backbone."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MoCo(build_backbone(args.arch, stem=args.stem)).to(device)
    criterion = build_criterion(args.queue_size).to(device)
    optimizer = build_optimizer(model, args.lr)
    scheduler = CosineAnnealingLR(optimizer, args.epochs)
    loader = build_loader(args)
    for epoch in range(args.epochs):
        total_loss = torch.zeros((), device=device)
        for (x_query, x_key), _, _ in loader:
            loss = compute_loss(model, criterion, x_query.to(device), x_key.to(device))
            descend(optimizer, loss)
            total_loss += loss.detach()
        scheduler.step()
        print(f"epoch: {epoch:>02}, loss: {float(total_loss) / len(loader):.5f}", flush=True)
    torch.save(model.backbone.state_dict(), args.out)


if __name__ == "__main__":
    main()
