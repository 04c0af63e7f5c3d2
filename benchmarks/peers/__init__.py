"""What mocokit is timed against: complete MoCo v2 scripts as their users would write them."""
