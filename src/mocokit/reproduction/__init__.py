"""Reproduce the papers' tables: the run behind each cell, and the table with the numbers found so far.

May import `run`, `plan` and everything below.
"""
