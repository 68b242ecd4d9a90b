"""Continues prompts with text and pictures: all rows in one batch, and only ids that the grammar allows are scored.

With guidance each row has a second one in the batch that has read another prompt, such as one without the request. In
a picture both predict the next code, and the logits are ``other + guidance * (asked - other)``.

Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598, sec. 3.2.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.cached_llama import CachedLlama
from rebus.model.grammar import Grammar
from rebus.model.llama_parts import llama_parts
from rebus.model.sampling import Sampling
from rebus.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of ids, ascending."""


class Engine:
    """A stock language model, arranged for decoding.

    Args:
        model: whose weights to use: a Llama, or one built like it (``llama_parts.py``).
        vocabulary: that it was made for.
        native: whether to decode in C++ where that can be.
    """

    def __init__(self, model: "PreTrainedModel", vocabulary: Vocabulary, *, native: bool = True):
        if model.config.vocab_size != vocabulary.size:
            raise ValueError(f"model must have the vocabulary's {vocabulary.size} ids, got {model.config.vocab_size}")
        self.vocabulary = vocabulary
        self.grammar = Grammar(vocabulary)
        self.device = model.lm_head.weight.device
        self.body = CachedLlama(llama_parts(model), native=native)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        unconditional: Sequence[Sequence[int]] | None = None,
        guidance: float = 1.0,
        text: Sampling,
        picture: Sampling,
        max_text_tokens: int,
        num_pictures: int,
        start_picture: bool = False,
        seeds: Sequence[int],
    ) -> list[list[int]]:
        """Returns the ids that follow each prompt: whole pictures, and text until ``eos``, which is then the last.

        A row that does not end in ``eos`` has used up its ids of text or the positions of the model; a picture that
        would not fit into those is not begun. A row depends on its prompts and seed, not on the rows beside it.

        Args:
            prompts: ids to continue, all outside a picture.
            unconditional: for each row the prompt to be guided away from.
            guidance: how far; 1 is none.
            text: how ids outside pictures are drawn; they are never guided.
            picture: how codes are drawn.
            max_text_tokens: most ids of text, ``eos`` among them.
            num_pictures: most pictures.
            start_picture: whether each row begins with a picture.
            seeds: for each row that of its random draws.

        Raises:
            ValueError: if the lists are not equally many, a prompt is empty or leaves no room, or a picture is to
                start where none may be.
        """
        others = [] if unconditional is None or guidance == 1 else list(unconditional)
        numbers = [len(prompts), len(seeds), len(prompts if unconditional is None else unconditional)]
        if not prompts or len(set(numbers)) != 1:
            got = "{} prompts, {} seeds, {} unconditional".format(*numbers)
            raise ValueError(f"prompts must be at least one, with as many seeds and unconditional prompts, got {got}")
        if start_picture and num_pictures < 1:
            raise ValueError(f"num_pictures must be at least 1 to start with a picture, got {num_pictures}")
        longest = [max(len(row) for row in pair) for pair in zip(prompts, others or prompts, strict=True)]
        rows = [
            _Row(self.grammar, self.body.max_positions - length, max_text_tokens, num_pictures, seed)
            for length, seed in zip(longest, seeds, strict=True)
        ]
        first = [self.vocabulary.begin_picture] if start_picture else []
        self._check_prompts([*prompts, *others], first)
        for row in rows:
            for token in first:
                row.take(token)
        num_new = min(num_pictures * (self.vocabulary.num_codes + 2) + max_text_tokens, max(row.room for row in rows))
        cache = self.body.start([[*prompt, *first] for prompt in (*prompts, *others)], max(longest) + num_new + 1)
        while self._extend(rows, cache.last, guidance if others else 1.0, text, picture):
            ids = torch.tensor([row.ids[-1] for row in rows], device=self.device)
            cache.read(ids.repeat(2 if others else 1).unsqueeze(1))
        return [row.ids for row in rows]

    @torch.inference_mode()
    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, " rows"]:
        """Returns the log-probability in nats of each text after its prompt, among all that may stand outside pictures.

        Args:
            prompts: ids, all outside a picture.
            texts: one for each prompt, with which it fits into the model's positions.
        """
        longest = max(map(len, texts))
        padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.device)
        given = torch.tensor([[index < len(text) for index in range(longest)] for text in texts]).to(padded.device)
        cache = self.body.start(prompts, max(map(len, prompts)) + longest)
        total = torch.zeros(len(prompts), device=padded.device)
        for index in range(longest):
            logits = self.body.logits(cache.last, 0, self.vocabulary.control_range[1])
            ids = padded[:, index : index + 1]
            total += logits.log_softmax(dim=-1).gather(1, ids).squeeze(1) * given[:, index]
            cache.read(ids)
        return total

    def _check_prompts(self, prompts: Sequence[Sequence[int]], first: list[int]) -> None:
        most = self.body.max_positions - (self.vocabulary.num_codes + 2 if first else 1)
        for prompt in prompts:
            if not 1 <= len(prompt) <= most:
                raise ValueError(f"a prompt must have 1 to {most} ids, got {len(prompt)}")

    def _extend(
        self,
        rows: "list[_Row]",
        hidden: Float[Tensor, "batch dim"],
        guidance: float,
        text: Sampling,
        picture: Sampling,
    ) -> bool:
        """Gives every unfinished row its next id; returns whether any row is still unfinished."""
        members: dict[Ranges, list[int]] = {}
        for index, row in enumerate(rows):
            if ranges := row.legal():
                members.setdefault(ranges, []).append(index)
        for ranges, indices in members.items():
            together = [rows[index] for index in indices]
            in_picture = together[0].state.inside
            if ranges[-1][1] - ranges[0][0] == 1:  # nothing to choose
                chosen = [ranges[0][0]] * len(together)
            else:
                logits = self.logits(hidden, indices, ranges, guidance if in_picture else 1.0)
                uniform = torch.cat([torch.rand(1, generator=row.generator) for row in together]).to(logits.device)
                sampling = picture if in_picture else text
                chosen = (sampling.choose(logits, uniform) + ranges[0][0]).tolist()
            for row, token in zip(together, chosen, strict=True):
                row.take(token)
        return any(row.legal() for row in rows)

    def logits(
        self, hidden: Float[Tensor, "batch dim"], indices: list[int], ranges: Ranges, guidance: float
    ) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from the first range to the last; -inf for those between ranges.

        Args:
            hidden: final states of all rows, and with guidance of as many others after them.
            indices: the rows that are asked for.
            ranges: ids that may come next.
            guidance: 1 reads the rows themselves alone.
        """
        start, stop = ranges[0][0], ranges[-1][1]
        rows = indices if guidance == 1 else [*indices, *(index + len(hidden) // 2 for index in indices)]
        logits = self.body.logits(hidden[rows], start, stop)
        if guidance != 1:
            asked, other = logits.chunk(2)
            logits = other + guidance * (asked - other)
        for (_, gap), (after, _) in pairwise(ranges):
            logits[:, gap - start : after - start] = float("-inf")
        return logits


class _Row:
    """One continuation, and what it may still hold."""

    def __init__(self, grammar: Grammar, room: int, text_left: int, pictures_left: int, seed: int):
        self.grammar, self.vocabulary = grammar, grammar.vocabulary
        self.room, self.text_left, self.pictures_left = room, text_left, pictures_left
        self.generator = torch.Generator().manual_seed(seed)
        self.state = grammar.start()
        self.ids: list[int] = []

    def legal(self) -> Ranges:
        """Returns the ids that may come next; none if the row is finished."""
        ranges = self.grammar.legal(self.state)
        if self.state.inside:
            return ranges
        if min(self.text_left, self.room) < 1 or (self.ids and self.ids[-1] == self.vocabulary.eos):
            return ()
        if self.pictures_left and self.room >= self.vocabulary.num_codes + 2:
            return ranges
        begin = self.vocabulary.begin_picture
        return tuple(one for one in ranges if one != (begin, begin + 1))

    def take(self, token: int) -> None:
        """Appends an id."""
        before, self.state = self.state, self.grammar.advance(self.state, token)
        self.ids.append(token)
        self.room -= 1
        if token == self.vocabulary.begin_picture:
            self.pictures_left -= 1
        elif not before.inside:
            self.text_left -= 1
