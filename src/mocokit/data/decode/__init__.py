"""Decode image files into pixels.

May import `data/sources` for its limits on file sizes.
"""
