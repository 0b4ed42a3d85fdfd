"""Data sets that are written or looked at before a run: benchmarks, packed copies, checks and the toy world."""
