"""Training: the one trainer, its callbacks and checkpoints, batches, devices, seeds."""

__all__: list[str] = []
