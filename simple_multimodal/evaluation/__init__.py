"""Metrics as pure functions of scores, their confidence intervals, and the report and model card with the results."""
