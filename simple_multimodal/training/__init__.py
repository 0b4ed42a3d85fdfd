"""Training: arguments, trainer, and evaluation during training."""
