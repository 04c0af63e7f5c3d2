"""Contrastive methods, one file each: the maths of one global batch, its settings and what it costs.

May import `nets`, `losses`, `distributed` and `data/batch`; never the config or the engine.
"""
