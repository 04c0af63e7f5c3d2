"""Backbones, heads and the layers they need."""
