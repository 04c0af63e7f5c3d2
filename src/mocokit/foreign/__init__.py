"""Read other projects' checkpoints: recognise them by their keys, without running code from them.

May import `engine` and `nets`.
"""
