"""Whether a run is learning, in plain words."""

from collections.abc import Mapping

MAX_BN_LEAK = 0.1
"""Largest `bn_leak` (a cosine) that passes for noise; healthy runs on the embedded sample stay within 0.03."""

LEAK_AFTER_STEPS = 200
"""Before, the encoders change so fast that neighbouring batches differ by more than their images."""


def warnings_of_config(
    *,
    method: str = "moco",
    bn_groups: int,
    shuffle: bool,
    queue_size: int,
    num_images: int,
    mask_same_image: bool,
    batchnorm: bool = True,
) -> list[str]:
    """What a user should know before the run starts; without `batchnorm` in the encoder, nothing can leak there."""
    lines = list[str]()
    if method == "memory-bank":
        return lines  # its positives are of another batch: no company to recognise (MoCo v1 sec. 3.3)
    if method in ("simclr", "moco-v3"):
        if batchnorm and bn_groups > 1:
            lines.append(
                f"method.bn_groups={bn_groups}: both views of an image are normalised in the same company, which the "
                "loss can recognise instead of the image; the papers have one group over all devices, bn_groups=1"
            )
        return lines
    if not batchnorm:
        if shuffle:
            lines.append(
                "method.shuffle=True: without BatchNorm in the encoder it only costs time; leave it out with "
                "--method.no-shuffle"
            )
    elif bn_groups == 1:
        lines.append(
            "method.bn_groups=1: shuffling BN has no effect with one group, so a query can recognise its key by the "
            "BatchNorm statistics that they share; use 2 groups or more"
        )
    elif not shuffle:
        lines.append(
            "method.shuffle=False: query and key share BatchNorm statistics, so the loss can fall without learning"
        )
    if method == "moco" and queue_size > num_images and not mask_same_image:
        lines.append(
            f"method.queue_size={queue_size}: more negatives than the {num_images} images, so that each image is its "
            "own negative; use a queue smaller than the data set, or method.mask_same_image"
        )
    return lines


def warnings_of_metrics(metrics: Mapping[str, float], *, step: int) -> list[str]:
    """What the numbers of a log line after `step` steps say is going wrong."""
    lines = []
    if step >= LEAK_AFTER_STEPS and metrics.get("bn_leak", 0.0) > MAX_BN_LEAK:
        lines.append(
            f"BatchNorm leak: queries are {metrics['bn_leak']:.2f} nearer to the keys of other images in their own "
            "BatchNorm group than to those of other batches; use method.bn_groups of 2 or more with method.shuffle on"
        )
    return lines


class NonFiniteLossError(ArithmeticError):
    """The loss or a gradient became NaN or infinite; the message says at which step and what to try."""

    def __init__(self, step: int, last_good: str) -> None:
        super().__init__(
            f"loss or gradient is not finite at step {step}; {last_good}. Try a lower optim.lr, "
            "optim.warmup_epochs=1, or run.precision=fp32 if it was fp16"
        )
