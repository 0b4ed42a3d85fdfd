"""Metrics as pure functions of scores, their intervals, and the report and model card that show them."""
