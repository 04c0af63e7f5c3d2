"""Turn stored images into batches of two augmented views.

May import `randomness` and `settings`; knows no network, no method and no rank.
"""
