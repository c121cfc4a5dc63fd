"""Sparsity as a dial: how silent a language model may become, chosen site by site on text."""

from fastsnn_tune.curve import Point
from fastsnn_tune.search import Tuned, tune

__version__ = "0.1.0"
__all__ = ["Point", "Tuned", "tune"]
