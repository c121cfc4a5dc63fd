"""Training, under the SDK's name."""

from fastsnn_train import TrainConfig, Trainer

__all__ = ["TrainConfig", "Trainer"]
