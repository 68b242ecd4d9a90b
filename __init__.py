"""Rebus: one language model that reads and writes text and pictures as one sequence of discrete tokens."""
