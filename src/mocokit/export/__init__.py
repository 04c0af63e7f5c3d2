"""Weights in the layout of other libraries."""
