"""What decoding does otherwise for a model that reads and writes a picture position by position (``visual_llama.py``).

Inside a picture one pass yields the codes of all streams of a position. Rows still hold flat ids; the slots of the
cache are positions.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rebus.model.cached_llama import CachedLlama
from rebus.model.cached_rows import CachedRows
from rebus.model.continuation import Decoding, Request, Row
from rebus.model.llama_parts import LlamaParts
from rebus.model.picture_positions import GivenFeatures, given_features, to_positions
from rebus.model.sampling import Sampling
from rebus.tokenizers.vocabulary import Vocabulary

PictureFeatures = tuple[Float[Tensor, "picture_positions feature_dim"] | None, ...]
"""Of the pictures of a prompt in turn, as in ``Request``."""


@runtime_checkable
class VisualModel(Protocol):
    """What decoding asks of such a model; ``VisualLlama`` says what each returns."""

    vocabulary: Vocabulary

    def decoding_parts(self) -> LlamaParts:
        """Returns the weights of the body."""
        ...

    def embed(
        self, ids: Int[Tensor, "positions streams"], given: GivenFeatures | None = None
    ) -> Float[Tensor, "positions dim"]:
        """Returns what the first block reads."""
        ...

    def is_vision(self, ids: Int[Tensor, "*batch streams"]) -> Bool[Tensor, "*batch"]:
        """Returns which positions are those of pictures."""
        ...

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns the codes of the next position; -1 where logits are no numbers."""
        ...


class CachedVisual:
    """Reads positions of pictures and of text."""

    def __init__(self, model: VisualModel, body: CachedLlama) -> None:
        self.model, self.vocabulary, self.body = model, model.vocabulary, body

    def check(self, requests: Sequence[Request], decoding: Decoding) -> None:
        """Raises if something is asked for that is not done here.

        Raises:
            ValueError: for guesses, reduction, a repetition penalty on codes, a picture that is given or left
                unfinished, or features that fit no picture.
        """
        refused = [("guesses", decoding.guesses, 0), ("reduction", decoding.reduction, None)]
        refused += [("by_level", decoding.by_level, False)]
        refused += [("repetition_penalty of pictures", decoding.picture.repetition_penalty, 1.0)]
        for name, got, allowed in refused:
            if got != allowed:
                raise ValueError(f"{name} must be {allowed} for a model that draws whole positions, got {got}")
        if any(request.begun or request.leave_at is not None for request in requests):
            raise ValueError("begun and leave_at must be left out for a model that draws whole positions, got them")
        for index, request in enumerate(requests):
            own, *others = (one.count(self.vocabulary.begin_picture) for one in (request.prompt, *request.others))
            if request.features and (len(request.features) != own or max(others, default=0) > own):
                got = f"{len(request.features)} and {others} in other prompts in row {index}"
                raise ValueError(f"features must be one for each of the prompt's {own} pictures, got {got}")

    def start(
        self, prompts: Sequence[Sequence[int]], features: Sequence[PictureFeatures], num_slots: int
    ) -> CachedRows:
        """Returns a batch that has read a prompt in each row, with room for ``num_slots`` positions in the longest.

        Rows that are the same are read once.

        Args:
            prompts: flat ids.
            features: of the pictures of each; those beyond its last picture are left out.
            num_slots: positions that the longest row will have at most.
        """
        keys = [(*prompt, *map(id, shown)) for prompt, shown in zip(prompts, features, strict=True)]
        different = dict(zip(keys, zip(prompts, features, strict=True), strict=True))
        vectors = [to_positions(torch.tensor(list(ids)), self.vocabulary) for ids, _ in different.values()]
        vectors = [ids.to(self.body.parts.embeddings.device) for ids in vectors]
        embedded = [self._embed(ids, shown) for ids, (_, shown) in zip(vectors, different.values(), strict=True)]
        lengths = list(map(len, vectors))
        is_alone = len(different) == len(prompts)
        cache = self.body.rows(lengths, num_slots if is_alone else max(lengths))
        embeddings = pad_sequence(embedded, batch_first=True, padding_side="left")
        is_vision = [self.model.is_vision(ids) for ids in vectors]
        cache.read_embeddings(
            embeddings,
            torch.arange(max(lengths), device=embeddings.device) - cache.starts,
            is_vision=pad_sequence(is_vision, batch_first=True, padding_side="left"),
        )
        places = {key: index for index, key in enumerate(different)}
        return cache if is_alone else cache.spread([places[key] for key in keys], num_slots)

    def read(self, newest: Sequence[Sequence[int]], cache: CachedRows) -> None:
        """Lets every branch of each row read the ids of its newest position."""
        num_streams = len(self.vocabulary.layout.streams)
        vectors = [[*ids, *[-1] * (num_streams - len(ids))] for ids in newest]
        ids = torch.tensor(vectors, device=cache.starts.device).repeat(len(cache.ids) // len(newest), 1)
        positions = cache.num_read - cache.starts
        cache.read_embeddings(
            self.model.embed(ids).unsqueeze(1), positions, is_vision=self.model.is_vision(ids).unsqueeze(1)
        )

    def extend(
        self,
        rows: Sequence[Row],
        hidden: Float[Tensor, "batch dim"],
        num_rows: int,
        weights: Sequence[float],
        sampling: Sampling,
    ) -> None:
        """Gives rows the codes of their next position; those whose logits are no numbers fail.

        Args:
            rows: which; all are to be weighed alike.
            hidden: final states of all rows of the batch, branch by branch.
            num_rows: rows of a branch.
            weights: of the branches.
            sampling: of codes.
        """
        branches = rearrange(hidden, "(branches rows) dim -> branches rows dim", rows=num_rows)
        starts = [self.vocabulary.code_range(stream)[0] for stream in range(len(self.vocabulary.layout.streams))]
        uniforms = torch.stack([torch.rand(len(starts), generator=row.generator) for row in rows])
        codes = self.model.draw(branches[:, [row.index for row in rows]], weights, sampling, uniforms)
        for row, chosen in zip(rows, codes.tolist(), strict=True):
            if min(chosen) < 0:
                row.fail()
                continue
            for start, code in zip(starts, chosen, strict=True):
                row.take(start + code)

    def _embed(self, ids: Int[Tensor, "positions streams"], shown: PictureFeatures) -> Float[Tensor, "positions dim"]:
        if not shown:
            return self.model.embed(ids)
        is_code = ids[:, 0] >= self.vocabulary.control_range[1]
        number = int(is_code.sum()) // self.vocabulary.layout.num_positions
        return self.model.embed(ids, given_features(ids, self.vocabulary, shown[:number]))
