"""Starts a decoder with the weights of a trained one, which may paint another size.

Source: Chen et al., "PixArt-Sigma", https://arxiv.org/abs/2403.04692, sec. 3.3 (a model of larger pictures starts
as one of smaller ones; features of places are interpolated).
"""

from dataclasses import replace
from pathlib import Path

from rebus.model.decoder import DiffusionDecoder
from rebus.model.grid_places import resized


def start_from(decoder: DiffusionDecoder, folder: Path) -> None:
    """Gives a decoder the weights, and the vocabulary of texts, of a trained one.

    Args:
        decoder: the one to start.
        folder: of the trained one; it may paint other sizes, and shift times otherwise, but differs in nothing else.

    Raises:
        ValueError: if the folder holds no decoder, one of other codes, or one that differs in more.
    """
    trained = DiffusionDecoder.load(folder, tokenizer_hash=decoder.tokenizer_hash)
    own, other = decoder.config, trained.config
    free = {"latent_size": other.latent_size, "latent_sizes": other.latent_sizes, "time_shift": other.time_shift}
    weights = trained.state_dict()
    # Codes finer than patches are merged by weights of their own, which another size may lack.
    if replace(own, **free) != other or weights.keys() != decoder.state_dict().keys():
        raise ValueError(f"start must be a decoder that differs in sizes and time_shift alone from {own}, got {other}")
    weights["patch_positions"] = resized(trained.patch_positions, trained.whole_grid, decoder.whole_grid)
    decoder.load_state_dict(weights)
    if trained.text is not None and decoder.text is not None:
        decoder.text.pieces = trained.text.pieces
