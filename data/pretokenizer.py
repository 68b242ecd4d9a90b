"""One shard of ids from the records behind it: the pure outcome of these, whoever makes it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from rebus.data.bad_data import BadDataConfig, BadDataLog, BadRecord, Position
from rebus.data.records import Record
from rebus.data.rendering import Rendered, render
from rebus.data.samples import Sample, pictures, with_tokens
from rebus.data.shards import Shard, ShardCounts, ShardsInfo, draft_of, publish, shard_path, write_shard
from rebus.data.sources import Source
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens

_PICTURES_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class PretokenizeConfig:
    """What is turned into shards, by what, and where they go."""

    source: Source
    """The samples; pictures are fitted to the image tokenizer's size, whatever its links say."""
    image_tokenizer: Path
    """Folder of the image tokenizer."""
    text_tokenizer: Path
    """Folder of a language model with its text tokenizer, ours or a stock one."""
    output: Path
    """Folder of the shards."""
    records_per_shard: int = 1024
    """Records behind each shard."""
    max_ids: int = 1024
    """Ids of the longest sample that is kept."""
    bad_data: BadDataConfig = BadDataConfig()
    """How many bad records are borne; each shard's are written beside it."""

    def __post_init__(self) -> None:
        for name in ("records_per_shard", "max_ids"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Pretokenizer:
    """Makes the shards of one collection, any of them, in any order."""

    def __init__(self, config: PretokenizeConfig):
        self.image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
        self.text_tokenizer = TextTokenizer.load(config.text_tokenizer)
        self.vocabulary = self.text_tokenizer.vocabulary(self.image_tokenizer.layout)
        links = replace(config.source.links, size_px=self.image_tokenizer.config.image_size_px)
        self.config, self.source = config, replace(config.source, links=links)
        self._records: Iterator[tuple[Record | BadRecord, Position]] = iter(())
        self._next: int | None = None
        """Number of the record that ``_records`` yields next."""

    def info(self) -> ShardsInfo:
        """Returns what the shards are made of."""
        return ShardsInfo(
            image_tokenizer=self.image_tokenizer.hash,
            text_tokenizer=self.text_tokenizer.hash,
            vocabulary=self.vocabulary.to_dict(),
            source=str(self.source.records),
            schema=self.source.schema,
            records_per_shard=self.config.records_per_shard,
            max_ids=self.config.max_ids,
        )

    def shard(self, number: int) -> ShardCounts:
        """Returns the counts of a shard, which it makes if it is not there; no records if it lies behind the last.

        The last one of a collection is always made again, for there may be more records by now.
        """
        path = shard_path(self.config.output, number)
        if path.exists() and (counts := Shard(path).counts).records == self.config.records_per_shard:
            return counts
        quarantine = path.with_suffix(".bad.jsonl")
        draft = draft_of(quarantine)
        log = BadDataConfig(quarantine=draft, max_rate=1.0).build()
        rendered: list[Rendered] = []
        samples: list[tuple[Sample, Position]] = []
        for record, position in self._records_of(number):
            try:
                samples.append((self.source.sample(record), position))
            except BadRecord as error:
                log.skip(error, position)
            if sum(len(pictures(sample)) for sample, _ in samples) >= _PICTURES_AT_ONCE:
                rendered += self._rendered(samples, log)
                samples = []
        rendered += self._rendered(samples, log)
        log.close()
        if not rendered and not log.bad:
            return ShardCounts(0, 0, {})
        if log.bad:
            publish(draft, quarantine)
        else:
            quarantine.unlink(missing_ok=True)  # a maker was killed before its shard, with other luck at fetching
        return write_shard(path, rendered, log.bad)

    def _records_of(self, number: int) -> Iterator[tuple[Record | BadRecord, Position]]:
        """Returns the records behind a shard; where they come after those read last, reading goes on from there."""
        start = number * self.config.records_per_shard
        if self._next is None or start < self._next:
            self._records = self.source.records.read(start)
        else:
            deque(islice(self._records, start - self._next), maxlen=0)
        self._next = start + self.config.records_per_shard
        return islice(self._records, self.config.records_per_shard)

    def _rendered(self, samples: list[tuple[Sample, Position]], log: BadDataLog) -> list[Rendered]:
        """Returns the ids of samples that are not too long."""
        codes = iter(self._codes([sample for sample, _ in samples]))
        found = []
        for sample, position in samples:
            coded = with_tokens(sample, list(islice(codes, len(pictures(sample)))))
            rendered = render(coded, self.text_tokenizer, self.vocabulary)
            if len(rendered.ids) <= self.config.max_ids:
                found.append(rendered)
                continue
            message = f"a sample must have at most {self.config.max_ids} ids, got {len(rendered.ids)}"
            log.skip(BadRecord("too_long", message), position)
        return found

    def _codes(self, samples: list[Sample]) -> list[Tokens]:
        pixels = [picture.pixels for sample in samples for picture in pictures(sample)]
        if not pixels:
            return []
        images = rearrange(np.stack([array for array in pixels if array is not None]), "b h w c -> b c h w")
        tokens = self.image_tokenizer.encode(torch.from_numpy(np.ascontiguousarray(images)))
        return [tokens.row(index) for index in range(len(pixels))]
