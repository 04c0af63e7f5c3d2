"""Write images into tar shards and back into files.

May import the rest of `data`, except `data/loading`.
"""
