"""The layouts to choose from."""

from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.halting import HaltingQueriesConfig
from rebus.tokenizers.layouts.holistic_grid import HolisticGridConfig
from rebus.tokenizers.layouts.levels import ResidualLevelsConfig
from rebus.tokenizers.layouts.multi_scale import MultiScaleConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.layouts.queries import QueriesConfig
from rebus.tokenizers.layouts.recurrent_crops import RecurrentCropsConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.tokenizers.layouts.slots import SlotsConfig
from rebus.tokenizers.layouts.two_grids import TwoGridsConfig

LayoutConfig = (
    GridConfig
    | NestedQueriesConfig
    | QueriesConfig
    | HolisticGridConfig
    | SlotsConfig
    | SelectMergeConfig
    | RecurrentCropsConfig
    | MultiScaleConfig
    | HaltingQueriesConfig
    | ResidualLevelsConfig
    | TwoGridsConfig
)
