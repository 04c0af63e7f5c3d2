"""Draw augmentations, and apply them to pixels: a reference, a compiled and a batched implementation that agree.

May import `randomness`.
"""
