"""Worked examples; each runs by itself from the folder above."""
