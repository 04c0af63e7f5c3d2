"""Write images into tar shards, and images of shards into files.

May import the rest of `data`, and `settings`.
"""
