"""Contrast and matching of texts and clips, alone or beside the masked objectives of pre-training."""
