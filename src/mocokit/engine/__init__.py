"""Train a method: the loop and the step, the optimizer, schedules, checkpoints, metrics and the files of a run.

May import `methods`, `data`, `nets` and `distributed`; never `config`.
"""
