"""How much memory a process of a training needs, reckoned from sizes alone, and what would make it less.

Weights, gradients and optimizer follow the formulas of ZeRO: of each number of a model, mixed precision keeps 2 bytes
as a weight, 2 as a gradient, and in float32 a weight, both moments of Adam and a gradient; a stage divides some of them
among N processes. Activations are what autograd keeps of a Llama's blocks for the backward pass.

Source: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
https://arxiv.org/abs/1910.02054; the functions ``estimate_zero2_model_states_mem_needs`` and ``estimate_zero3_...`` of
DeepSpeed, which add the float32 gradients and, at stage 3, the largest layer.
Differs: frozen weights have neither gradients nor moments. Left out: buffers of communication (DeepSpeed's buckets hold
up to 5e8 numbers), what adapters keep of their inputs, CUDA itself and fragmentation, some gigabytes in all.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from rebus.model.cross_entropy import TILE_SIZE
from rebus.model.language_model import DOCUMENT_ATTENTION
from rebus.train.config import RunConfig
from rebus.train.runtime import Processes, uses_deepspeed


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The numbers of a model that decide over memory; those of blocks are 0 where it is no Llama."""

    weights: int
    trainable: int
    largest_layer: int
    """Weights of the largest module of its own, which stage 3 gathers."""
    matrices: int
    """Weights of linear layers, of which autocast makes copies."""
    loaded_bytes: int
    """What the weights take as they lie here, before DeepSpeed rounds them."""
    vocabulary: int = 0
    layers: int = 0
    dim: int = 0
    heads: int = 0
    head_dim: int = 0
    kv_heads: int = 0
    ffn_dim: int = 0
    attends_by_documents: bool = False
    """Whether attention keeps its probabilities, as ``document_attention`` does."""

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSizes":
        """Returns the sizes of a model, which may lie on the meta device."""
        own = [sum(_numel(one) for one in module.parameters(recurse=False)) for module in model.modules()]
        linear = {id(module.weight): module.weight for module in model.modules() if isinstance(module, nn.Linear)}
        counted: dict[str, Any] = {
            "weights": sum(_numel(one) for one in model.parameters()),
            "trainable": sum(_numel(one) for one in model.parameters() if one.requires_grad),
            "largest_layer": max(own),
            "matrices": sum(_numel(one) for one in linear.values()),
            "loaded_bytes": sum(_numel(one) * one.element_size() for one in model.parameters()),
        }
        config: Any = getattr(model, "config", None)
        if not hasattr(config, "num_hidden_layers") or not hasattr(config, "intermediate_size"):
            return cls(**counted)
        heads = config.num_attention_heads
        return cls(
            **counted,
            vocabulary=config.vocab_size,
            layers=config.num_hidden_layers,
            dim=config.hidden_size,
            heads=heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            kv_heads=config.num_key_value_heads,
            ffn_dim=config.intermediate_size,
            attends_by_documents=config._attn_implementation == DOCUMENT_ATTENTION,
        )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a process needs at once."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """The scores of all positions over a tile of the vocabulary, in float32 and as they are multiplied."""
    host: int
    """Beside the device, in the host's memory: what is offloaded, or the weights before training begins."""

    @property
    def device(self) -> int:
        """All that lies on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def estimate(sizes: ModelSizes, run: RunConfig, world: int, row_length: int) -> Memory:
    """Returns the memory of each of ``world`` processes; with a ``row_length`` of 0, without activations."""
    sharded = uses_deepspeed(run, Processes(0, world, 0))
    rows = max(1, run.batch_size // (world * run.accumulation))
    states = _sharded_states(sizes, run, world) if sharded else _plain_states(sizes, run)
    return Memory(
        **states,
        activations=activation_bytes(sizes, run, rows, row_length, sharded),
        logits=rows * row_length * min(sizes.vocabulary, TILE_SIZE) * (4 + (2 if run.dtype == "bfloat16" else 4)),
    )


def _plain_states(sizes: ModelSizes, run: RunConfig) -> dict[str, int]:
    """Returns what one process without DeepSpeed keeps: all in float32, and autocast's copies of matrices."""
    copies = 2 * sizes.matrices if run.dtype == "bfloat16" else 0
    averages = 4 * sizes.trainable if run.ema is not None else 0
    moments = 8 * sizes.trainable
    weights = 4 * sizes.weights
    gradients = 4 * sizes.trainable
    return {"weights": weights + copies, "gradients": gradients, "optimizer": moments + averages, "host": weights}


def _sharded_states(sizes: ModelSizes, run: RunConfig, world: int) -> dict[str, int]:
    """Returns what DeepSpeed keeps at each stage."""
    if run.sharding == 0:
        return _plain_states(sizes, run)
    width = 2 if run.dtype == "bfloat16" else 4
    weights, gradients = width * sizes.weights, width * sizes.trainable
    shard = sizes.trainable // world
    master, own_gradients, host = 12 * shard, 4 * shard, sizes.loaded_bytes
    if run.offload:
        host = max(host, master + own_gradients + (weights // world if run.sharding == 3 else 0))
        master = own_gradients = 0
    if run.sharding == 1:
        gradients += own_gradients
    elif run.sharding == 2:
        gradients = own_gradients + (0 if run.offload else gradients // world)
    else:
        weights = width * sizes.largest_layer + (0 if run.offload else weights // world)
        gradients = width * sizes.largest_layer + own_gradients
    averages = 4 * sizes.trainable if run.ema is not None else 0
    return {"weights": weights, "gradients": gradients, "optimizer": master + averages, "host": host}


def activation_bytes(sizes: ModelSizes, run: RunConfig, rows: int, row_length: int, sharded: bool) -> int:
    """Returns what a forward pass of rows keeps for the backward pass, without the head.

    With h = dim, q and k = width of all queries and of all keys, f = ffn_dim, a = heads, c = bytes of a product, r =
    bytes of the residual stream, each position of a block keeps

        2 (4 + r) h    for each norm its input in float32 and its output before the weights,
        m c h          the inputs of the products after the norms: m = 2, or 5 where autocast rounds it for each,
        (2 q + 2 k) c  queries, keys, values and what attention returns,
        4 a + 8        the sums of attention's exponentials, and the norms' scales,
        4 f c          the gate before and after its nonlinearity, the values beside it, and their product.

    Attention by documents keeps instead keys and values for each head, (4 q) c, and the probabilities, a c for each
    position of the document: reckoned as if each row was one document, the most it can be. Recomputing keeps r h a
    position and block, and all of one block at a time.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
    https://arxiv.org/abs/2205.05198, derived as in sec. 4.1.
    Differs: a gated feed-forward layer, shared keys, no dropout, no parallelism, norms as ``transformers`` writes them,
    and no matrix of probabilities where attention is fused.
    """
    product = 2 if run.dtype == "bfloat16" else 4
    residual = 2 if run.dtype == "bfloat16" and sharded else 4
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    if sizes.attends_by_documents:
        attention = 4 * queries * product + sizes.heads * product * row_length
    else:
        attention = (2 * queries + 2 * keys) * product + 4 * sizes.heads
    norms = 2 * (4 + residual) * sizes.dim + 8
    inputs = (2 if product == residual else 5) * product * sizes.dim
    block = norms + inputs + attention + 4 * sizes.ffn_dim * product
    if run.activation_checkpointing:
        blocks = sizes.layers * residual * sizes.dim + block
    else:
        blocks = sizes.layers * block
    last_norm, cosines = (4 + residual) * sizes.dim + 4, 2 * sizes.head_dim * residual
    return rows * row_length * (blocks + last_norm + cosines + 8) if sizes.layers else 0


def _numel(parameter: Tensor) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())  # one that ZeRO 3 has scattered is empty


def gibibytes(number: int) -> str:
    """Returns a number of bytes as people read it."""
    size, unit = (number / 2**30, "GiB") if number >= 2**30 else (number / 2**20, "MiB")
    return f"{size:,.0f} {unit}" if size >= 100 else f"{size:.3g} {unit}"
