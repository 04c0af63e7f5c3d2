"""Training of a method: loop and step, optimizer, schedules, checkpoints, metrics and the files of a run.

May import `methods`, `data`, `nets` and `distributed`; never `config`.
"""
