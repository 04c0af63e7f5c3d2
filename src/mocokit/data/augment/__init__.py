"""Draw random augmentations and apply them: reference, compiled and batched implementations that agree in each pixel.

May import `randomness`.
"""
