"""The tasks: one folder each, with model, metrics and pipeline, and one line in `registry.py`."""
