"""Benchmarks: one script per question, each against a peer in the same run."""
