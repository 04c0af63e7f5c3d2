"""Backbones, heads and the layers they need.

May import `distributed`, over which BatchNorm groups can span ranks.
"""
