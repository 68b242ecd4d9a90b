"""The quantizers that hold no other: what a residual, product or other combination may be made of."""

from rebus.tokenizers.quantizers.binary import BinarySphericalConfig, LookupFreeConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.index_backprop import IndexBackpropConfig
from rebus.tokenizers.quantizers.scalar_after_training import ScalarAfterTrainingConfig
from rebus.tokenizers.quantizers.shared_index import SharedIndexConfig
from rebus.tokenizers.quantizers.simvq import SimVQConfig
from rebus.tokenizers.quantizers.vector import VectorConfig

SimpleConfig = (
    FiniteScalarConfig
    | VectorConfig
    | SimVQConfig
    | IndexBackpropConfig
    | LookupFreeConfig
    | BinarySphericalConfig
    | ScalarAfterTrainingConfig
    | SharedIndexConfig
)
