"""Manifests, the sampler, the collator, and how a loader process handles bad samples."""
