"""Read other projects' checkpoints: recognise the project by its keys, and run no code from the file.

May import `config`, `engine`, `nets`, and `export` for torchvision's names of ViT parameters.
"""
