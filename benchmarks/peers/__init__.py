"""Scripts that mocokit is timed against: complete MoCo v2 training as a user would write it."""
