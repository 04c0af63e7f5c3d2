"""Write a backbone in the layout of another library, and prove that the features are equal there.

May import `engine`, `nets` and `detection`, whose recipes it writes down for Detectron2.
"""
