"""The language model: a stock Llama of ``transformers`` over a vocabulary of text, control tokens and picture codes.

The loss runs the stock body over packed documents. What follows a position is scored only against the ids of its kind:
a code against the codes of its stream, all else against text and control tokens, as constrained decoding will ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rebus.data.packing import PackedBatch, document_mask, leads_to
from rebus.data.rendering import NOT_TRAINED
from rebus.model.cross_entropy import linear_cross_entropy
from rebus.tokenizers.uncompiled import uncompiled
from rebus.tokenizers.vocabulary import Vocabulary

INIT_STD = 0.02
DOCUMENT_ATTENTION = "documents"
"""The name under which ``transformers`` knows ``document_attention``."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The size of a Llama with tied embeddings."""

    dim: int = 384
    """Width of the residual stream."""
    num_layers: int = 8
    """Transformer blocks."""
    num_heads: int = 6
    """Attention heads."""
    num_kv_heads: int = 6
    """Heads of keys and values; fewer than ``num_heads`` are shared."""
    ffn_dim: int = 1024
    """Width inside the gated feed-forward layers."""
    max_positions: int = 1024
    """Longest document."""

    def __post_init__(self) -> None:
        if self.dim % (2 * self.num_heads) or self.num_heads % self.num_kv_heads:
            got = f"{self.dim}, {self.num_heads} and {self.num_kv_heads}"
            raise ValueError(f"dim must be an even multiple of num_heads, and that one of num_kv_heads, got {got}")

    def build(self, vocabulary: Vocabulary, generator: torch.Generator) -> LlamaForCausalLM:
        """Builds the model with fresh weights: matrices and embeddings are normal with deviation 0.02."""
        return self.build_llama(vocabulary, vocabulary.size, generator)

    def build_llama(self, vocabulary: Vocabulary, num_ids: int, generator: torch.Generator) -> LlamaForCausalLM:
        """Builds one with fresh weights for the first ids of a vocabulary."""
        config = LlamaConfig(
            vocab_size=num_ids,
            hidden_size=self.dim,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            intermediate_size=self.ffn_dim,
            max_position_embeddings=self.max_positions,
            tie_word_embeddings=True,
            bos_token_id=vocabulary.bos,
            eos_token_id=vocabulary.eos,
            pad_token_id=vocabulary.pad,
        )
        model = LlamaForCausalLM(config)
        start_matrices(model, generator)
        return model


def start_matrices(module: nn.Module, generator: torch.Generator) -> None:
    """Gives all matrices and embeddings fresh weights, normal with deviation 0.02."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=INIT_STD, generator=generator)


def place_codes(
    model: LlamaForCausalLM,
    vocabulary: Vocabulary,
    features: Float[Tensor, "codes code_dim"],
    generator: torch.Generator,
) -> None:
    """Starts the rows of the codes of stream 0 as a random projection of their features: like codes start alike.

    The rows keep the deviation of all other fresh ones.
    """
    start, stop = vocabulary.code_range(0)
    assert len(features) == stop - start
    spread = features - features.mean(dim=0)
    spread = spread / spread.std()
    projection = torch.randn(features.shape[1], model.config.hidden_size, generator=generator)
    with torch.no_grad():
        model.lm_head.weight[start:stop] = INIT_STD * (spread @ F.normalize(projection, dim=0))


@dataclass(frozen=True, eq=False)
class HeadTargets:
    """What a part of the head is to predict, and where."""

    places: Int[Tensor, " targets"]
    """Positions, rows laid end to end, whose next id the part must predict."""
    ids: Int[Tensor, " targets"]
    """Those next ids, counted from the part's first."""
    start: int
    """First id of the part."""
    stop: int
    """One beyond its last id."""


@dataclass(frozen=True, eq=False)
class LanguageBatch:
    """Packed documents, and the targets of each part of the head: text and control, stream 0, stream 1, ..."""

    packed: PackedBatch
    document_lengths: tuple[int, ...]
    """Lengths of the documents, rows laid end to end; the padding of a row counts as one."""
    heads: tuple[HeadTargets, ...]
    num_targets: Float[Tensor, " heads"]
    """By which each part's loss is divided: its targets, or their mean over the processes that share a step."""
    mask: Bool[Tensor, "rows 1 length length"] | None = None
    """Where positions may look, if not at all that is before them in their document."""


def language_batch(packed: PackedBatch, vocabulary: Vocabulary) -> LanguageBatch:
    """Returns packed documents with their targets sorted by part of the head."""
    # A document's first id, bos, is no target, so no position has to predict across documents.
    following = F.pad(packed.targets[:, 1:], (0, 1), value=NOT_TRAINED).flatten()
    parts = [(0, vocabulary.control_range[1])]
    parts += [vocabulary.code_range(stream) for stream in range(len(vocabulary.layout.streams))]
    heads = []
    for start, stop in parts:
        places = ((following >= start) & (following < stop)).nonzero().squeeze(1)
        heads.append(HeadTargets(places, following[places] - start, start, stop))
    num_targets = torch.tensor([len(head.places) for head in heads], dtype=torch.float32)
    return LanguageBatch(packed, document_lengths(packed.documents), tuple(heads), num_targets)


def document_lengths(documents: Int[Tensor, "rows length"]) -> tuple[int, ...]:
    """Returns the lengths of the documents, rows laid end to end; the padding of a row counts as one."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    edges = starts.flatten().nonzero().squeeze(1).tolist()
    return tuple(stop - start for start, stop in zip(edges, [*edges[1:], documents.numel()], strict=True))


def loss(model: PreTrainedModel, batch: LanguageBatch) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Returns the mean negative log-likelihood of all targets in nats, and that of text and codes by themselves."""
    hidden = final_states(model, batch)
    weight = model.lm_head.weight
    sums, accuracy = [], hidden.new_zeros(())
    for head in batch.heads:
        rows = weight[head.start : head.stop]
        likelihood, right = linear_cross_entropy(hidden[head.places], rows, head.ids)
        sums.append(likelihood.sum())
        if head.start > 0:
            accuracy = accuracy + right.sum()
    likelihoods, counts = torch.stack(sums), batch.num_targets
    num_codes = counts[1:].sum().clamp_min(1)
    metrics = {
        "text_loss": likelihoods[0].detach() / counts[0].clamp_min(1),
        "code_loss": likelihoods[1:].sum().detach() / num_codes,
        "code_accuracy": accuracy / num_codes,
    }
    return likelihoods.sum() / counts.sum().clamp_min(1), metrics


def final_states(model: PreTrainedModel, batch: LanguageBatch) -> Float[Tensor, "positions dim"]:
    """Returns what the stock body makes of all rows, laid end to end."""
    packed = batch.packed
    if batch.mask is None:
        attention = attention_options(model, packed.documents, packed.positions, batch.document_lengths)
    else:
        assert model.config._attn_implementation != DOCUMENT_ATTENTION
        attention = {"attention_mask": batch.mask}
    output = model.model(input_ids=packed.ids, position_ids=packed.positions, use_cache=False, **attention)
    return rearrange(output.last_hidden_state, "rows length dim -> (rows length) dim")


def attention_options(
    model: PreTrainedModel,
    documents: Int[Tensor, "rows length"],
    positions: Int[Tensor, "rows length"],
    lengths: tuple[int, ...],
) -> dict[str, Any]:
    """Returns what tells the blocks of a model which documents there are, as its attention wants it."""
    if model.config._attn_implementation == DOCUMENT_ATTENTION:
        return {"attention_mask": None, "documents": Documents(lengths, positions)}
    return {"attention_mask": document_mask(documents, positions)}


class Documents:
    """The documents of a batch, where torch.compile does not see their lengths: it compiles for each number."""

    def __init__(self, lengths: Sequence[int], positions: Int[Tensor, "rows length"]) -> None:
        self.lengths = list(lengths)
        ends = torch.tensor(self.lengths, device=positions.device).cumsum(0) - 1
        last = positions.flatten()[ends].tolist()
        split = zip(positions.flatten().split(self.lengths), last, strict=True)
        self.hidden = [None if end in (0, len(own) - 1) else ~leads_to(own) for own, end in split]
        """Of each document in which a position goes back, what each position must not see of what is before it."""


@uncompiled  # a loop over documents, which differ from batch to batch
def document_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads length dim"],
    key: Float[Tensor, "rows kv_heads length dim"],
    value: Float[Tensor, "rows kv_heads length dim"],
    attention_mask: None,
    *,
    scaling: float,
    documents: Documents,
    **_: Any,
) -> tuple[Float[Tensor, "rows length heads dim"], None]:
    """Attends within each document by itself, with no mask over the whole row: the faster way on a CPU.

    It is an ``attn_implementation`` of ``transformers``. Equal to the stock one under ``document_mask``, except on
    padding, which is read by nobody.
    """
    del module, attention_mask
    lengths = documents.lengths
    groups, rows = query.shape[1] // key.shape[1], query.shape[0]
    flat = "rows heads length dim -> (rows length) heads dim"
    queries = (rearrange(query, flat) * scaling).to(value.dtype).split(lengths)
    shared = "rows heads length dim -> (rows length) (heads groups) dim"
    keys = repeat(key, shared, groups=groups).to(value.dtype).split(lengths)
    values = repeat(value, shared, groups=groups).split(lengths)
    longest = max(lengths)
    causal = torch.full((longest, longest), float("-inf"), dtype=value.dtype, device=value.device).triu(1)
    attended = []
    for one_query, one_key, one_value, hidden in zip(queries, keys, values, documents.hidden, strict=True):
        mask = causal[: len(one_query), : len(one_query)]
        if hidden is not None:
            mask = mask.masked_fill(hidden, float("-inf"))
        transposed = rearrange(one_key, "length heads dim -> heads dim length")
        scores = torch.baddbmm(mask, one_query.transpose(0, 1), transposed)
        attended.append((scores.softmax(dim=-1) @ one_value.transpose(0, 1)).transpose(0, 1))
    return rearrange(torch.cat(attended), "(rows length) heads dim -> rows length heads dim", rows=rows), None


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention)
