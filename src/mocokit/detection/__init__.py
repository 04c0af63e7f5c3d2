"""Fine-tune detectors from a backbone and measure their average precision.

May import `engine`, `data` and `nets`; never `config`.
"""
