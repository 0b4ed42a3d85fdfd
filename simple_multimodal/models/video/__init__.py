"""Video encoders, one file each."""
