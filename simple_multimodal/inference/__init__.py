"""A trained model in use: what reads clips for it and runs it."""
