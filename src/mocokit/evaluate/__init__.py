"""Measure how good a frozen or fine-tuned backbone is, by published protocols.

May import `engine`, `data`, `nets` and `distributed`; never the training loop.
"""
