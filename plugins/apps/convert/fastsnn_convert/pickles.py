"""Files that run code when they are read, and so are not."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Their endings."""
