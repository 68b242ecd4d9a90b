"""The language model, its decode engine, the diffusion decoder, and the saved folder that holds them together."""
