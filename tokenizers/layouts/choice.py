"""The layouts to choose from."""

from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig

LayoutConfig = GridConfig | NestedQueriesConfig
