"""The crossformer that fuses the encoders' tokens."""
