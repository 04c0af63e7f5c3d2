"""Order the images, make batches in worker processes or threads, and copy them to the device.

May import the rest of `data`, except `data/packing`.
"""
