"""What verbs share: progress, argument types, checks of targets, a warning about contended cores."""

__version__ = "0.1.0"
