"""Models from one flat configuration."""

from fastsnn.builder.config import SNNConfig
from fastsnn.builder.model_from_config import build_model_from_config

__all__ = ["SNNConfig", "build_model_from_config"]
