"""Sparsity as a dial: how silent a language model may become, chosen site by site on text."""

from fastsnn_tune.curve import Point
from fastsnn_tune.loss_goal import LossTuned, tune_to_loss
from fastsnn_tune.search import Tuned, tune

__version__ = "0.1.0"
__all__ = ["LossTuned", "Point", "Tuned", "tune", "tune_to_loss"]
