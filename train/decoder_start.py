"""Starts a decoder with the weights of a trained one, which may paint another size.

Source: Chen et al., "PixArt-Sigma", https://arxiv.org/abs/2403.04692, sec. 3.3 (a model of larger pictures starts
as one of smaller ones; features of places are interpolated).
"""

from dataclasses import replace
from pathlib import Path

from einops import repeat

from rebus.model.code_condition import GridConditionConfig
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.grid_places import resized


def start_from(decoder: DiffusionDecoder, folder: Path) -> DiffusionDecoder:
    """Gives a decoder the weights, and the vocabulary of texts, of a trained one, which is returned.

    Args:
        decoder: the one to start.
        folder: of the trained one; it may paint other sizes, shift times otherwise, and have the same features of a
            code for all patches of a cell, where the other has some for each, but differs in nothing else.

    Raises:
        ValueError: if the folder holds no decoder, one of other codes, or one that differs in more.
    """
    trained = DiffusionDecoder.load(folder, tokenizer_hash=decoder.tokenizer_hash)
    own, other = _sizeless(decoder.config), _sizeless(trained.config)
    weights, parts = trained.state_dict(), decoder.patches_per_side**2
    # Codes finer than patches are merged by weights of their own, which another size may lack.
    same = own == other and weights.keys() == decoder.state_dict().keys()
    if not same or trained.patches_per_side not in (1, decoder.patches_per_side):
        wanted = f"a decoder that differs in sizes, time_shift and condition.per_patch alone from {decoder.config}"
        raise ValueError(f"start must be {wanted}, got {trained.config}")
    weights["patch_positions"] = resized(trained.patch_positions, trained.whole_grid, decoder.whole_grid)
    if trained.patches_per_side < decoder.patches_per_side:
        for name in [name for name in weights if name.startswith("embed_codes.")]:
            weights[name] = repeat(weights[name], "codes dim -> codes (parts dim)", parts=parts)
    decoder.load_state_dict(weights)
    if trained.text is not None and decoder.text is not None:
        decoder.text.pieces = trained.text.pieces
    return trained


def _sizeless(config: DecoderConfig) -> DecoderConfig:
    condition = config.condition
    if isinstance(condition, GridConditionConfig):
        condition = replace(condition, per_patch=False)
    smallest = (config.patch, config.patch)
    return replace(config, latent_size=smallest, latent_sizes=(), time_shift=1.0, condition=condition)
