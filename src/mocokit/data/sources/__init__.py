"""Find images in folders, lists, archives, IDX files and tar shards, and read them as numbered records.

May import `randomness` and `settings`.
"""
