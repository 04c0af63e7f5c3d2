"""MoCo v2 in one screen, on random images: the step of Algorithm 1, without the engine around it.

python examples/pretrain_minimal.py
"""

import torch

from mocokit import Encoder, GroupLayout, MoCo, build_backbone, build_head

torch.manual_seed(0)
backbone = build_backbone("resnet10_w32", stem="imagenet")
moco = MoCo(
    Encoder(backbone, build_head(256, 128, mlp=True)),  # (N, 3, H, W) -> unit rows (N, 128)
    dim=128,
    queue_size=512,  # K negatives
    temperature=0.2,
    key_momentum=0.99,
    layout=GroupLayout(bn_groups=4),  # 4 BatchNorm groups of 16 in one process
    shuffle_order=lambda step, size: torch.randperm(size, generator=torch.Generator().manual_seed(step)),
)
optimizer = torch.optim.SGD(moco.encoder_q.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

for step in range(10):
    images = torch.randn(64, 3, 32, 32)
    query = images + 0.1 * torch.randn_like(images)  # two views; use mocokit.data for real ones
    key = images.flip(3)
    moco.prepare(query, key, image_ids=torch.arange(64) + 64 * step, step=step)  # momentum update, keys
    for loss in moco.micro_losses():  # InfoNCE against the queue; one micro-batch here
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    moco.remember()  # enqueue: only now, so that no key is its own negative
    loss_now = moco.row_metrics["loss"].mean()
    print(f"step {step}  loss {loss_now:.3f}  contrast_acc {moco.row_metrics['contrast_acc'].float().mean():.2f}")
