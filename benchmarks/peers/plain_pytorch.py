"""MoCo v2 as a plain PyTorch loop; the second peer.

MoCo v1's Algorithm 1 and MoCo v2's augmentation, with torchvision transforms on PIL images, a DataLoader and one
process. Shuffling BN is left out: with a single BatchNorm group it changes nothing.

    python benchmarks/peers/plain_pytorch.py --data photos/ --out backbone.pt --arch resnet18 --image-size 64

Shapes: N images, C embedding dimension, K queue size.
"""

import argparse
import copy
import math
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mocokit.nets.backbones import build_backbone, feature_dim


class GaussianBlur:
    """Gaussian blur with a radius drawn from 0.1 to 2 pixels (SimCLR's, used by MoCo v2)."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the blurred image."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class TwoCrops:
    """Transform from an image to its query view and key view."""

    def __init__(self, size: int) -> None:
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([GaussianBlur()], p=0.5),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return two random views of the image."""
        return self.view(image), self.view(image)


class Photos(Dataset[tuple[Tensor, Tensor]]):
    """Data set of two views of each JPEG file in a folder."""

    def __init__(self, folder: str, size: int) -> None:
        self.paths = sorted(Path(folder).rglob("*.jpg"))
        self.transform = TwoCrops(size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


class MoCo(nn.Module):
    """Query encoder, key encoder and queue.

    Args:
        backbone: (N, 3, H, W) -> (N, D).
        queue_size: K.
        dim: C.

    """

    queue: Tensor

    def __init__(self, backbone: nn.Module, queue_size: int = 65536, dim: int = 128) -> None:
        super().__init__()
        width = feature_dim(backbone)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dim))
        self.encoder_q = nn.Sequential(backbone, head)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(dim, queue_size), dim=0))  # (C, K)
        self.pointer = 0

    @torch.no_grad()
    def update_key_encoder(self, momentum: float = 0.999) -> None:
        """Move the key encoder towards the query encoder."""
        for parameter_q, parameter_k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            parameter_k.mul_(momentum).add_(parameter_q, alpha=1 - momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys; K must be a multiple of N."""
        self.queue[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(keys)) % self.queue.shape[1]

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the loss of a batch, and enqueue its keys."""
        q = F.normalize(self.encoder_q(query), dim=1)  # (N, C)
        with torch.no_grad():
            self.update_key_encoder()
            k = F.normalize(self.encoder_k(key), dim=1)  # (N, C)
        positive = torch.einsum("nc,nc->n", q, k).unsqueeze(1)  # (N, 1)
        negative = torch.einsum("nc,ck->nk", q, self.queue.clone().detach())  # (N, K)
        logits = torch.cat([positive, negative], dim=1) / 0.2  # (N, 1+K)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        self.enqueue(k)
        return F.cross_entropy(logits, labels)


def build_optimizer(model: MoCo, lr: float) -> torch.optim.SGD:
    """Return MoCo v2's SGD."""
    return torch.optim.SGD(model.encoder_q.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)


def train_step(model: MoCo, optimizer: torch.optim.Optimizer, query: Tensor, key: Tensor) -> Tensor:
    """Run one optimizer step and return the loss."""
    loss: Tensor = model(query, key)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


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
    backbone = build_backbone(args.arch, stem=args.stem)
    model = MoCo(backbone, args.queue_size).to(device)
    optimizer = build_optimizer(model, args.lr)
    loader = DataLoader(
        Photos(args.data, args.image_size),
        batch_size=args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
    )
    for epoch in range(args.epochs):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * epoch / args.epochs))
        total_loss = torch.zeros((), device=device)
        for query, key in loader:
            total_loss += train_step(model, optimizer, query.to(device), key.to(device))
        print(f"epoch: {epoch:>02}, loss: {float(total_loss) / len(loader):.5f}", flush=True)
    torch.save(backbone.state_dict(), args.out)


if __name__ == "__main__":
    main()
