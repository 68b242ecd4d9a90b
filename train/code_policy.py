"""How probable a language model in training finds the codes of pictures: one pass over whole pictures, with gradients.

It is the very policy that the engine draws by: a softmax over the codes of a stream, at a temperature, perhaps guided.
No code is cut off by top-k or top-p, so every code that may be drawn has a probability, and the ratio of two policies
is what importance sampling asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from rebus.model.guidance import Guidance
from rebus.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How codes are drawn."""

    temperature: float = 1.0
    """By which logits are divided."""
    guidance: float = 1.0
    """How far to go from what is drawn unasked to what is drawn when asked; 1 is none, and half the work."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        self.guided()

    def guided(self) -> Guidance:
        """Returns the guidance, as the engine wants it."""
        return Guidance(scale=self.guidance)


@dataclass(frozen=True, eq=False)
class CodeRows:
    """Prompts with the pictures that follow them, filled up on the right, where nothing earlier can look."""

    ids: Int[Tensor, "branch_rows length"]
    """Branch by branch: the prompts, then what guidance compares with."""
    first: Int[Tensor, " branch_rows"]
    """Places that predict the first code."""
    codes: Int[Tensor, "rows codes"]
    """Vocabulary ids."""


@dataclass(frozen=True, eq=False)
class CodeScores:
    """What a policy says of codes."""

    log_likelihoods: Float[Tensor, "rows codes"]
    """Of the codes that were drawn, in nats."""
    entropies: Float[Tensor, "rows codes"]
    """Of all codes that might have been."""


def code_rows(branches: Sequence[Sequence[Sequence[int]]], codes: Sequence[Sequence[int]]) -> CodeRows:
    """Returns pictures after prompts as a batch.

    Args:
        branches: for each branch of guidance a prompt for each picture, up to the control token that opens it.
        codes: vocabulary ids of the codes of each picture, all of one number.
    """
    drawn = torch.tensor(codes)
    rows = [
        torch.cat([torch.tensor(prompt), each])
        for prompts in branches
        for prompt, each in zip(prompts, drawn, strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.stack([F.pad(row, (0, longest - len(row))) for row in rows])
    first = torch.tensor([len(prompt) - 1 for prompts in branches for prompt in prompts])
    return CodeRows(ids, first, drawn)


def score_codes(model: PreTrainedModel, vocabulary: Vocabulary, rows: CodeRows, policy: PolicyConfig) -> CodeScores:
    """Returns what the policy of a stock model says of pictures."""
    num_codes, device = rows.codes.shape[1], rows.ids.device
    output = model.model(input_ids=rows.ids, use_cache=False).last_hidden_state
    places = rows.first.unsqueeze(1) + torch.arange(num_codes, device=device)
    hidden = output.gather(1, places.unsqueeze(2).expand(-1, -1, output.shape[2]))
    hidden = rearrange(hidden, "(branches rows) codes dim -> branches rows codes dim", rows=len(rows.codes))
    weights = policy.guided().weights(0, num_codes)
    head, num_streams = model.lm_head.weight, len(vocabulary.layout.streams)
    likelihoods, entropies = (torch.zeros(rows.codes.shape, device=device) for _ in range(2))
    for stream in range(num_streams):
        (start, stop), part = vocabulary.code_range(stream), slice(stream, None, num_streams)
        each = F.linear(hidden[:, :, part], head[start:stop]).float()
        logits = torch.stack([weight * one for weight, one in zip(weights, each, strict=True)]).sum(dim=0)
        log_probabilities = (logits / policy.temperature).log_softmax(dim=-1)
        drawn = (rows.codes[:, part] - start).unsqueeze(2)
        likelihoods[:, part] = log_probabilities.gather(2, drawn).squeeze(2)
        entropies[:, part] = -(log_probabilities.exp() * log_probabilities).sum(dim=2)
    return CodeScores(likelihoods, entropies)
