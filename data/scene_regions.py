"""What each cell of a scene shows: the ground, an object's name or a letter of the sign."""

import string

import torch
from jaxtyping import Int
from torch import Tensor

from rebus.data.scenes import LATTICE_PX, SCENE_SIZE_PX, SIGN_HEIGHT_PX, Scene

GRID_SIDE = SCENE_SIZE_PX // LATTICE_PX
GROUND = 0


class SceneRegions:
    """Numbers the things that a cell may show: 0 is the ground, then the concepts, then the letters A to Z."""

    def __init__(self, concepts: tuple[str, ...]) -> None:
        self._numbers = {name: number for number, name in enumerate((*concepts, *string.ascii_uppercase), start=1)}

    @property
    def num_names(self) -> int:
        """How many things there are, with the ground."""
        return 1 + len(self._numbers)

    def cells(self, scene: Scene) -> Int[Tensor, " cells"]:
        """Returns the number of what each lattice cell shows, in raster order; an object fills its whole box."""
        grid = torch.full((GRID_SIDE, GRID_SIDE), GROUND)
        for item in scene.items:
            row, column, side = item.y // LATTICE_PX, item.x // LATTICE_PX, item.size // LATTICE_PX
            grid[row : row + side, column : column + side] = self._numbers[item.concept_id]
        if scene.sign is not None:
            height = SIGN_HEIGHT_PX // LATTICE_PX
            rows = slice(0, height) if scene.sign_on_top else slice(GRID_SIDE - height, GRID_SIDE)
            first = (GRID_SIDE - len(scene.sign)) // 2
            for column, letter in enumerate(scene.sign, start=first):
                grid[rows, column] = self._numbers[letter]
        return grid.flatten()
