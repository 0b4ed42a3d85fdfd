"""Training: the arguments, the trainer, and the evaluation that runs inside it."""
