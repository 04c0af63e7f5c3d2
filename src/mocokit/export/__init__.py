"""Write a backbone in another library's format, and prove that the library computes the same features.

May import `config`, `engine`, `methods`, `nets` and `detection` (the Detectron2 configs are made from its recipes).
"""
