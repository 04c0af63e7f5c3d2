"""MoCo v2 in one screen, on random images: the step of Algorithm 1, without the engine around it.

python examples/pretrain_minimal.py
"""

import torch

from mocokit import Encoder, GroupLayout, MoCo, ViewBatch, build_backbone, build_head

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
    query = images + 0.1 * torch.randn_like(images)  # two views; real ones come from mocokit.data
    key = images.flip(3)
    views = ViewBatch(query=query, key=key, image_ids=torch.arange(64) + 64 * step)
    batch = moco.prepare(views, step)  # momentum update, then the keys
    (micro,) = moco.layout.micro_batches(64)  # one micro-batch here
    loss, rows = moco.loss(batch, micro)  # InfoNCE against the keys and the queue
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    moco.remember(batch, rows)  # enqueue: only now, so that no key is its own negative
    print(f"step {step}  loss {rows['loss'].mean():.3f}  contrast_acc {rows['contrast_acc'].float().mean():.2f}")
