"""Fine-tune detectors from a backbone and measure their average precision.

May import `evaluate`, `engine`, `data` and `nets`.
"""
