"""The training loop: trainer, optimiser step, health, checkpoints, parallel runs."""
