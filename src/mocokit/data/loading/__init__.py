"""Put images in order, make batches in threads or worker processes, and bring them to the device.

May import the rest of `data`, except `data/packing`.
"""
