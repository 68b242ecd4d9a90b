"""The choice of a quantizer: any one config of these fits where features become codes."""

from rebus.tokenizers.quantizers.in_turn import InTurnConfig
from rebus.tokenizers.quantizers.none import ContinuousConfig
from rebus.tokenizers.quantizers.parallel import ParallelConfig
from rebus.tokenizers.quantizers.product import ProductConfig
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.simple import SimpleConfig

QuantizerConfig = SimpleConfig | ResidualConfig | ProductConfig | ParallelConfig | InTurnConfig | ContinuousConfig
