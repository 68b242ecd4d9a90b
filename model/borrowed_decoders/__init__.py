"""Diffusion models that users already own, as decoders of codes."""
