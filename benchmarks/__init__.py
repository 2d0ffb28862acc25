"""Benchmarks: run from the top of the repository, never imported by secfed."""
