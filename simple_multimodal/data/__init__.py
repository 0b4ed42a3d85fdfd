"""Manifests, the sampler, the collator and the toy world."""
