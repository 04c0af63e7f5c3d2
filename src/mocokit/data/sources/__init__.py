"""Find images in folders, lists, archives, IDX files, tar shards and Python objects, and read them by number.

May import `randomness`, `settings` and, for the pixels of PIL images, `data/decode`.
"""
