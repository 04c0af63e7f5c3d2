"""Declare the settings of a run, the presets, and how both are read from and written to TOML.

May import `methods`, whose settings it holds, and `settings`.
"""
