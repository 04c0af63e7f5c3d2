"""Reproduce the papers' tables: what each cell runs, and the table as it fills.

May import `run`, `plan` and everything below.
"""
