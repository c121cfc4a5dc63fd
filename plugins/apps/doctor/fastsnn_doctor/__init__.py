"""What this installation is, and what is wrong with it."""

__version__ = "0.1.0"
