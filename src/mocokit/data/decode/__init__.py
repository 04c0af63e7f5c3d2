"""Decode the bytes of an image file into pixels.

May import `data/sources` for its limits on file sizes.
"""
