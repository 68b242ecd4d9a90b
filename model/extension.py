"""More ids for a pretrained language model: rows for control tokens, size tokens and codes behind those of its text.

Any stock causal language model of the families in ``llama_parts.py`` can be extended, with tied matrices or not, and
stays a stock one. A base may have more rows than its tokenizer has pieces (Qwen2.5: 151,936 for 151,665), only because
its makers rounded up. No text leads to them, so control tokens and codes begin in their place, right behind the last
piece, and the extended model has exactly as many rows as its vocabulary has ids.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from rebus.model.llama_parts import FAMILIES
from rebus.tokenizers.vocabulary import Vocabulary

_NUM_MIXED = 16


@torch.no_grad()
def extend(model: PreTrainedModel, vocabulary: Vocabulary, generator: torch.Generator) -> None:
    """Gives a model the ids of a vocabulary; those of text keep their rows, and all else that the model computes.

    Each new row is a random mean of 16 rows of text, so it lies in their convex hull: no new id can outscore all old
    ones, and a pretrained model goes on as before. The new rows have the mean and 2 / 17 of the covariance of the old.
    Where embedding and head are two matrices, an id is mixed from the same old ids in both.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models",
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
    Differs: exactly in the hull, where a normal distribution of the same mean and covariance is so only nearly.

    Args:
        model: on any device, of any number format; changed in place.
        vocabulary: whose text pieces are those of the model's tokenizer.
        generator: of the processor, whatever the device.

    Raises:
        ValueError: if the model is of a family that is not decoded here, or has fewer rows than there are pieces.
    """
    if model.config.model_type not in FAMILIES:
        raise ValueError(f"model must be one of {', '.join(FAMILIES)}, got {model.config.model_type}")
    num_text = vocabulary.num_text
    if (num_rows := len(_matrices(model)[0])) < num_text:
        raise ValueError(f"model must have a row for each of the {num_text} text pieces, got {num_rows}")
    model.resize_token_embeddings(vocabulary.size, mean_resizing=False)
    shape = (vocabulary.size - num_text, _NUM_MIXED)
    chosen = torch.randint(num_text, shape, generator=generator)
    shares = torch.empty(shape).exponential_(generator=generator)
    shares = shares / shares.sum(dim=1, keepdim=True)
    for matrix in _matrices(model):
        matrix[num_text:] = _mixed(matrix[:num_text], chosen, shares).to(matrix)
    assert model.generation_config is not None  # which every model that can generate has
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = vocabulary.bos, vocabulary.eos
        config.pad_token_id = vocabulary.pad


def _matrices(model: PreTrainedModel) -> tuple[Float[Tensor, "ids dim"], Float[Tensor, "ids dim"]]:
    """Returns the embedding and the head, which may be one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
    return embedding.weight, head.weight


def _mixed(
    rows: Float[Tensor, "old dim"], chosen: Int[Tensor, "new mixed"], shares: Float[Tensor, "new mixed"]
) -> Float[Tensor, "new dim"]:
    """Returns weighted sums of rows, in float32."""
    mixed = torch.zeros(len(chosen), rows.shape[1], device=rows.device)
    for indices, share in zip(chosen.to(rows.device).T, shares.to(rows.device).T, strict=True):
        mixed += share.unsqueeze(1) * rows[indices].float()
    return mixed
