"""Predict or measure what a run costs, and write batch scripts for clusters.

May import `run` and everything below.
"""
