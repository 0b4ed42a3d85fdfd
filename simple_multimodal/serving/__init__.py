"""Serving trained models to many clients: requests share batches, and clips are read in processes of their own."""
