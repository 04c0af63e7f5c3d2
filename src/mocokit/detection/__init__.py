"""Fine-tune detectors from a backbone and measure their average precision.

May import `config`, `engine`, `data` and `nets`.
"""
