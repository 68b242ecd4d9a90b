"""Judges, benchmarks on held-out scenes, and the report that prints their scores."""
