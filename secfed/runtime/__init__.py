"""Where a study runs: the round loop and everything around it."""
