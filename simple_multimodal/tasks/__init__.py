"""The tasks: a folder for each with its model, its metrics and what uses it, and one line in `registry.py`."""
