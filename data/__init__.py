"""Samples, the emoji scenes they are made of, and the way from samples to packed batches of ids."""
