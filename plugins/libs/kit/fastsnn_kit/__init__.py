"""Conformance checks of models, exporters, scopes and trackers, which core's kit finds where this is installed."""

__version__ = "0.1.0"
