"""Train and use models over text, audio and video."""

__version__ = "0.1.0.dev0"
