"""Training: one loop, and one file for each stage."""
