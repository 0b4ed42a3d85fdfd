"""Inference with trained models: pipelines that read clips, encode them and compute results."""
