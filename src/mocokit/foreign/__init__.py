"""Checkpoints of other projects: recognised by their keys, read without running code from them."""
