"""The training loop and what it stands on: schedules, optimizer, checkpoints, metrics."""
