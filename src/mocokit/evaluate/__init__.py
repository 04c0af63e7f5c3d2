"""Measure how good a frozen or fine-tuned backbone is, by published protocols.

May import `engine`, `data`, `nets`, `distributed` and `report`; never `config` or the training loop.
"""
