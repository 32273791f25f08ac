"""Training: loaders, losses, schedules, strategies, checkpoints, linear probe and OOD detector."""
