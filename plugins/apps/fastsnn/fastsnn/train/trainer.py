"""`Trainer` and `TrainConfig`, from fastsnn_train."""

from fastsnn_train import TrainConfig, Trainer

__all__ = ["TrainConfig", "Trainer"]
