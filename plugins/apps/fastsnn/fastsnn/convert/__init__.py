"""Conversion, under the SDK's name."""

from fastsnn_convert import convert

__all__ = ["convert"]
