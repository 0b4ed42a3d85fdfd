"""Contrast and matching of texts and clips, alone or together with the masked objectives of pre-training."""
