"""Backbones, heads, and the layers they need.

May import `settings`, and `distributed` because BatchNorm groups can span ranks.
"""
