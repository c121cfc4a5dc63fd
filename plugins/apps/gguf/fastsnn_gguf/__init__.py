"""GGUF files of llama.cpp as a source of conversions: ``fastsnn convert model.gguf --to model.snn``."""

from fastsnn_gguf.source import GgufSource

__version__ = "0.1.0"
__all__ = ["GgufSource"]
