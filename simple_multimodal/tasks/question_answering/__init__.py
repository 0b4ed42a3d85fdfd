"""Choose an answer from a fixed list to a question about a clip."""
