"""All recipes by name; a recipe that stands here is trained, tested and compared like the others."""

from collections.abc import Callable
from functools import partial

from rebus.train.recipes import grids, queries, semantic
from rebus.train.recipes.sizes import Size
from rebus.train.tokenizer_stage import TokenizerStageConfig

Recipe = Callable[[Size], TokenizerStageConfig]

RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (
        grids.llamagen,
        grids.parti,
        grids.ett,
        grids.fqgan,
        grids.wetok,
        grids.tokenbridge,
        grids.meditok,
        grids.atoken,
        queries.titok,
        queries.one_d_piece,
        queries.flextok,
        queries.gigatok,
        queries.robusttok,
        queries.instella,
        queries.layton,
        queries.karl,
        queries.hita,
        queries.restok,
        queries.comit,
        queries.textok,
        semantic.seed,
        semantic.seed2,
        semantic.slot_mllm,
        semantic.lavit,
        semantic.xomni,
        semantic.illume,
        semantic.illume_plus,
        semantic.tokenflow,
        semantic.dualtoken,
    )
}


def presets() -> dict[str, Callable[[], TokenizerStageConfig]]:
    """Returns for the command line each recipe at mini size, and as ``NAME_published`` at published size."""
    small = {name: partial(recipe, "mini") for name, recipe in RECIPES.items()}
    return small | {f"{name}_published": partial(recipe, "published") for name, recipe in RECIPES.items()}
