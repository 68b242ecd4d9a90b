"""Continues prompts with text and pictures: all rows in one batch, and only ids that the grammar allows are scored.

With guidance each row has others in the batch that have read other prompts, such as one without the request
(``guidance.py``). In a picture all of them predict the next code, and read the one that is chosen.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from rebus.model.cached_llama import CachedLlama
from rebus.model.cached_rows import CachedRows
from rebus.model.cached_visual import CachedVisual, VisualModel
from rebus.model.code_spans import CodeSpans
from rebus.model.continuation import Continuation, Decoding, Event, Request, Row
from rebus.model.grammar import Grammar, Ranges
from rebus.model.llama_parts import llama_parts
from rebus.model.picture_positions import num_positions
from rebus.model.token_reduction import prompt_row
from rebus.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_CACHE_BYTES = 4 * 2**30


class Engine:
    """A language model, arranged for decoding.

    Args:
        model: whose weights to use: a stock Llama, or one built like it (``llama_parts.py``); or one that reads and
            writes a picture position by position (``visual_llama.py``), in torch alone.
        vocabulary: that it was made for.
        native: whether to decode in C++ where that can be.
        int8: whether to round matrices to 8 bits, and to decode in torch: less to read, where there is no compiler.
        max_cache_bytes: memory for the keys and values of a batch.
    """

    def __init__(
        self,
        model: "PreTrainedModel | VisualModel",
        vocabulary: Vocabulary,
        *,
        native: bool = True,
        int8: bool = False,
        max_cache_bytes: int = MAX_CACHE_BYTES,
    ):
        self.vocabulary = vocabulary
        self.grammar = Grammar(vocabulary)
        self.visual: CachedVisual | None = None
        if isinstance(model, VisualModel):
            if model.vocabulary != vocabulary:
                raise ValueError(f"model must be made for {vocabulary}, got one for {model.vocabulary}")
            self.body = CachedLlama(model.decoding_parts(), native=False, int8=int8)
            self.visual = CachedVisual(model, self.body)
        else:
            size = model.config.vocab_size
            if size != vocabulary.size:
                raise ValueError(f"model must have the vocabulary's {vocabulary.size} ids, got {size}")
            self.body = CachedLlama(llama_parts(model), native=native, int8=int8)
        self.codes_per_position = 1 if self.visual is None else len(vocabulary.layout.streams)
        self.spans = CodeSpans(self.body, self.grammar)
        self.device = self.body.parts.head.device
        self.max_cache_bytes = max_cache_bytes
        self._known: CachedRows | None = None

    def generate(self, requests: Sequence[Request], decoding: Decoding, *, keep: bool = False) -> list[Continuation]:
        """Returns what follows each prompt: whole pictures, and text until ``eos``, which is then the last.

        A picture that would not fit into the model's positions is not begun. A row depends on its request alone, not
        on the rows beside it; a row whose logits make no sense ends, and the others go on.

        Args:
            requests: one for each row.
            decoding: how they are continued.
            keep: whether the keys and values stay in memory until the next call, so that it need not read again what
                its prompts have in common with these rows, as the next turn of a chat has. Only of a stock model.

        Raises:
            ValueError: if there are no requests, a prompt is empty or leaves no room, its branches are not those that
                guidance asks for, a picture is to start where none may be or to have a size that none may have, the
                model cannot do what is asked for, or the batch needs too much memory.
        """
        rows = self._rows(requests, decoding)
        for _ in self._decode(rows, requests, decoding, keep):
            pass
        return [Continuation(row.ids, row.ended) for row in rows if row.ended]

    def stream(
        self, requests: Sequence[Request], decoding: Decoding, *, keep: bool = False, preview_every: int | None = None
    ) -> Iterator[Event]:
        """Yields what ``generate`` returns piece by piece, as it comes; who stops asking stops the work.

        Args:
            requests: as for ``generate``.
            decoding: as for ``generate``.
            keep: as for ``generate``.
            preview_every: codes after which the open pictures are told of; only when they are whole by default.

        Raises:
            ValueError: as ``generate``, at once.
        """
        if preview_every is not None and preview_every < 1:
            raise ValueError(f"preview_every must be at least 1, got {preview_every}")
        rows = self._rows(requests, decoding)
        steps = self._decode(rows, requests, decoding, keep, preview_every)
        return (event for _ in steps for row in rows for event in row.news())

    @torch.inference_mode()
    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]
    ) -> list[Float[Tensor, " ids"]]:
        """Returns the log-probability in nats of each id of the text that follows a prompt, given those before it.

        It is that among the ids of text and control, as in training.

        Args:
            prompts: ids, all outside a picture.
            texts: one for each prompt, with which it fits into the model's positions.
        """
        longest = max(map(len, texts))
        padded = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=self.device)
        num_slots = max(map(len, prompts)) + longest
        if self.visual is None:
            cache = self.body.start(prompts, num_slots)
        else:
            cache = self.visual.start(prompts, [()] * len(prompts), num_slots)
        columns = []
        for ids in padded.split(1, dim=1):
            logits = self.body.logits(cache.last, 0, self.vocabulary.control_range[1])
            columns.append(logits.log_softmax(dim=-1).gather(1, ids))
            cache.read(ids.contiguous())
        return [row[: len(text)] for row, text in zip(torch.cat(columns, dim=1), texts, strict=True)]

    @torch.inference_mode()
    def code_log_likelihoods(
        self, prompts: Sequence[Sequence[int]], codes: Sequence[Sequence[int]]
    ) -> Float[Tensor, "pictures codes"]:
        """Returns the log-probability in nats of each code of a picture that follows a prompt, given those before it.

        All are read in one pass. It is the probability among the codes of a stream, without guidance.

        Args:
            prompts: ids up to the first code; the pictures are of one size.
            codes: ids of the codes of a picture for each prompt.
        """
        assert self.visual is None
        cache = self.body.start(prompts, max(map(len, prompts)) + len(codes[0]))
        ids, hidden = torch.tensor(codes, device=self.device), cache.last.unsqueeze(1)
        if ids.shape[1] > 1:
            cache.read(ids[:, :-1].contiguous())
            hidden = torch.cat([hidden, cache.hidden], dim=1)
        likelihoods, num_streams = torch.empty(ids.shape, device=self.device), len(self.vocabulary.layout.streams)
        for stream in range(num_streams):
            (start, stop), places = self.vocabulary.code_range(stream), slice(stream, None, num_streams)
            logits = self.body.logits(rearrange(hidden[:, places], "rows codes dim -> (rows codes) dim"), start, stop)
            each = logits.log_softmax(dim=-1).gather(1, ids[:, places].reshape(-1, 1) - start)
            likelihoods[:, places] = rearrange(each, "(rows codes) 1 -> rows codes", rows=len(ids))
        return likelihoods

    def _rows(self, requests: Sequence[Request], decoding: Decoding) -> list[Row]:
        """Returns a row for each request, once all of them are seen to be right."""
        if not requests:
            raise ValueError("requests must be at least one, got none")
        if decoding.by_level and not self.vocabulary.layout.levels:
            raise ValueError("by_level must be False for codes without levels, got True")
        if self.visual is not None:
            self.visual.check(requests, decoding)
        elif any(request.features for request in requests):
            raise ValueError("features must be left out for a stock model, which reads codes, got some")
        guidance, rows = decoding.guidance, []
        for index, request in enumerate(requests):
            if len(request.others) != guidance.num_others:
                got = f"{len(request.others)} for row {index}"
                raise ValueError(f"guidance must have {guidance.num_others} other prompts, got {got}")
            if request.start_picture and request.num_pictures < 1:
                got = request.num_pictures
                raise ValueError(f"num_pictures must be at least 1 to start with a picture, got {got}")
            lengths = [self._num_positions(prompt) for prompt in (request.prompt, *request.others)]
            size = request.picture_size  # one that no picture may have is refused here
            picture_length = self.vocabulary.picture_length(size, self.codes_per_position)
            most = self.body.parts.max_positions - (picture_length if request.start_picture else 1)
            for length in lengths:
                if not 1 <= length <= most:
                    raise ValueError(f"a prompt must have 1 to {most} ids, got {length}")
            room = self.body.parts.max_positions - max(lengths)
            rows.append(Row(index, self.grammar, request, room, codes_per_position=self.codes_per_position))
        self._num_slots(rows, _branches(rows, requests))  # refuses too many before any work
        return rows

    def _num_positions(self, ids: Sequence[int]) -> int:
        return len(ids) if self.visual is None else num_positions(ids, self.vocabulary)

    @torch.inference_mode()
    def _decode(
        self,
        rows: list[Row],
        requests: Sequence[Request],
        decoding: Decoding,
        keep: bool,
        preview_every: int | None = None,
    ) -> Iterator[None]:
        """Continues rows until all have ended; comes back after each step."""
        cache = self._read_prompts(rows, requests, decoding)
        given = [len(row.ids) for row in rows]
        try:
            while any(row.legal() for row in rows):
                if self.visual is not None or not self.spans.draw(rows, cache, decoding, preview_every):
                    self._extend(rows, cache.last, decoding)
                    if any(row.legal() for row in rows):
                        self._read_newest(rows, cache)
                for row in rows:
                    if preview_every is not None and row.state.num_codes % preview_every == 0:
                        row.preview()
                yield
            yield  # for rows that had nothing to do
        finally:
            for index, ids in enumerate(cache.ids):  # the newest id of a row may not have been read
                row = index % len(rows)
                cache.ids[index] = [*ids, *rows[row].ids[given[row] :]][:-1]
            self._known = cache if keep and decoding.reduction is None and self.visual is None else None

    def _read_prompts(self, rows: list[Row], requests: Sequence[Request], decoding: Decoding) -> CachedRows:
        """Returns a batch of all branches, those of the rows' own prompts first, that has read the prompts."""
        prompts = _branches(rows, requests)
        num_slots = self._num_slots(rows, prompts)
        if self.visual is not None:
            features = [request.features for request in requests] * (len(prompts) // len(requests))
            return self.visual.start(prompts, features, num_slots)
        if decoding.reduction is None:
            return self.body.start(prompts, num_slots, self._known)
        embeddings, reduction = self.body.parts.embeddings, decoding.reduction
        reduced = [
            prompt_row(prompt[: len(prompt) - len(row.ids)], row.ids, embeddings, self.grammar, reduction)
            for prompt, row in zip(prompts, cycle(rows), strict=False)
        ]
        return self.body.start_reduced(reduced, num_slots, reduction)

    def _num_slots(self, rows: list[Row], prompts: list[list[int]]) -> int:
        """Returns how many positions the longest row may come to have.

        Raises:
            ValueError: if the keys and values of so many take too much memory.
        """
        num_slots = max(map(self._num_positions, prompts)) + max(row.most_to_come() for row in rows)
        num_bytes = self.body.cache_bytes(len(prompts), num_slots)
        if num_bytes > self.max_cache_bytes:
            got = f"{num_bytes} for {len(prompts)} rows of {num_slots} ids"
            raise ValueError(f"the cache of a batch must be at most {self.max_cache_bytes} bytes, got {got}")
        return num_slots

    def _read_newest(self, rows: list[Row], cache: CachedRows) -> None:
        """Lets every branch of each row read its newest id; rows that have ended read whatever they ended with."""
        if self.visual is not None:
            return self.visual.read([row.newest() or [0] for row in rows], cache)
        ids = torch.tensor([row.ids[-1] if row.ids else 0 for row in rows], device=self.device)
        cache.read(ids.repeat(len(cache.ids) // len(rows)).unsqueeze(1))

    def _extend(self, rows: list[Row], hidden: Float[Tensor, "batch dim"], decoding: Decoding) -> None:
        """Gives every row that has not ended its next id."""
        alike: dict[tuple[Ranges, tuple[float, ...]], list[Row]] = {}
        for row in rows:
            if ranges := row.legal():
                num_codes = self.grammar.num_picture_codes(row.state)
                weights = decoding.guidance.weights(row.state.num_codes, num_codes) if num_codes else (1.0,)
                alike.setdefault((ranges, weights), []).append(row)
        for (ranges, weights), together in alike.items():
            if self.visual is not None and ranges[0][0] >= self.vocabulary.control_range[1]:
                self.visual.extend(together, hidden, len(rows), weights, decoding.picture)
                continue
            if ranges[-1][1] - ranges[0][0] == 1:  # nothing to choose
                for row in together:
                    row.take(ranges[0][0])
                continue
            sampling = decoding.picture if self.grammar.num_picture_codes(together[0].state) else decoding.text
            logits = self.logits(hidden, [row.index for row in together], len(rows), ranges, weights)
            if sampling.repetition_penalty != 1:
                past = [[*row.prompt, *row.ids] for row in together]
                logits = sampling.penalized(logits, past, ranges[0][0])
            uniform = torch.cat([torch.rand(1, generator=row.generator) for row in together])
            chosen = (self.body.choose(logits, sampling, uniform) + ranges[0][0]).tolist()
            has_failed = (~(logits < float("inf"))).any(dim=-1).tolist()
            for row, token, failed in zip(together, chosen, has_failed, strict=True):
                row.fail() if failed else row.take(token)

    def logits(
        self,
        hidden: Float[Tensor, "batch dim"],
        indices: list[int],
        num_rows: int,
        ranges: Ranges,
        weights: tuple[float, ...],
    ) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from the first range to the last; -inf for those between ranges.

        Args:
            hidden: final states of all rows, branch by branch.
            indices: the rows that are asked for.
            num_rows: rows of a branch.
            ranges: ids that may come next.
            weights: of each branch; those of weight 0 are not computed.
        """
        start, stop = ranges[0][0], ranges[-1][1]
        branches = rearrange(hidden, "(branches rows) dim -> branches rows dim", rows=num_rows)[:, indices]
        logits = self.body.guided_logits(branches, weights, start, stop)
        for (_, gap), (after, _) in pairwise(ranges):
            logits[:, gap - start : after - start] = float("-inf")
        return logits


def _branches(rows: list[Row], requests: Sequence[Request]) -> list[list[int]]:
    """Returns what each row has to read first, branch by branch."""
    branches = zip(*((request.prompt, *request.others) for request in requests), strict=True)
    return [[*prompt, *row.ids] for branch in branches for prompt, row in zip(branch, rows, strict=True)]
