"""Tools that write or inspect data sets before a run: benchmarks, packed copies, checks and the toy world."""
