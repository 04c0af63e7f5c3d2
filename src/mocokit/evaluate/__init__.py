"""Measure how good a frozen or fine-tuned backbone is, by published protocols.

May import `config`, `engine`, `data`, `nets`, `distributed` and `report`; never the training loop.
"""
