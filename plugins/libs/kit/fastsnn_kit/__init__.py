"""The conformance kit: what components of each kind promise; `fastsnn_core.testing` finds it where it is installed."""

__version__ = "0.1.0"
