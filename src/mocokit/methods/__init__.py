"""Contrastive methods: the maths of one global batch."""
