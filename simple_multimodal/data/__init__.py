"""Manifests, the sampler, the collator and what a loader process does about bad samples."""
