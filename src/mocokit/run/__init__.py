"""Put a run together: config to objects, pre-training, resuming, exporting, importing, verifying, the demo.

May import everything but `plan`, `reproduction` and `cli`.
"""
