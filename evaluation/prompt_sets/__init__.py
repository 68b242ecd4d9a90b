"""Public sets of prompts, read by path: their schemas, pictures laid out for their own scorers, and scores had here."""
