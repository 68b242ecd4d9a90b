"""Draws groups of pictures for prompts: codes by the engine from the policy as it is, pixels by the decoder.

A prompt is read once for all pictures of its group, and each of them is drawn by a seed of its own.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from rebus.data.rendering import render_prompt
from rebus.data.samples import Message
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import Scene
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.sampling import Sampling
from rebus.model.writing import MOST_ROWS
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.code_policy import CodeRows, PolicyConfig, code_rows


@runtime_checkable
class Painter(Protocol):
    """Paints codes, as a ``DecoderPipeline`` does."""

    def render(self, tokens: Tokens, *, steps: int, seed: Sequence[int]) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures in [0, 1]."""
        ...


@dataclass(frozen=True)
class Asked:
    """A prompt, and the seeds of the pictures that are to be drawn for it."""

    scene: Scene
    prompt: str
    seeds: tuple[int, ...]


def asked_for(samples: SceneSamples, tasks: Mapping[str, float], place: str, group_size: int) -> Asked:
    """Returns a prompt for a scene of any task, as often as its weight, with so many seeds.

    Args:
        samples: of the split that prompts may come from.
        tasks: weights.
        place: in the training, of which everything is a pure function.
        group_size: seeds.
    """
    rng = random.Random(f"{place}/prompt")
    (task,) = rng.choices(tuple(tasks), tuple(tasks.values()))
    scene, prompt = samples.prompt(rng, task)
    seeds = (random.Random(f"{place}/{draft}/draft").getrandbits(63) for draft in range(group_size))
    return Asked(scene, prompt, tuple(seeds))


class Studio:
    """Everything that draws, but for the weights that change."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        painter: Painter,
        policy: PolicyConfig,
        painting_steps: int,
    ) -> None:
        self.vocabulary, self.text_tokenizer, self.painter = vocabulary, text_tokenizer, painter
        self.policy, self.painting_steps = policy, painting_steps
        self.decoding = Decoding(picture=Sampling(temperature=policy.temperature), guidance=policy.guided())

    @torch.no_grad()
    def write(self, model: PreTrainedModel, asked: Sequence[Asked]) -> list[list[list[int]]]:
        """Returns the vocabulary ids of the codes of each picture of each prompt.

        Raises:
            FloatingPointError: if the model's logits are no numbers.
        """
        engine, requests = Engine(model, self.vocabulary), self.requests(asked)
        rows = [
            row
            for start in range(0, len(requests), MOST_ROWS)
            for row in engine.generate(requests[start : start + MOST_ROWS], self.decoding)
        ]
        if any(row.ended == "not_a_number" for row in rows):
            raise FloatingPointError("logits of a rollout must be numbers, got others")
        codes = (row.ids[1:-1] for row in rows)  # between the tokens that open and close the picture
        groups = [[next(codes) for _ in one.seeds] for one in asked]
        assert all(len(row) == self.vocabulary.num_codes for group in groups for row in group)
        return groups

    def requests(self, asked: Sequence[Asked]) -> list[Request]:
        """Returns what the engine is asked for: one picture for each seed of each prompt."""
        return [
            Request(
                prompt=prompt,
                others=tuple(others),
                max_text_tokens=0,
                num_pictures=1,
                start_picture=True,
                seed=seed,
            )
            for one in asked
            for prompt, *others in [self._prompts(one.prompt)]
            for seed in one.seeds
        ]

    def paint(self, asked: Sequence[Asked], codes: Sequence[Sequence[Sequence[int]]]) -> list[list[Image.Image]]:
        """Returns each picture, painted with the seed that it was drawn with."""
        tokens = [self.vocabulary.unflatten(row) for group in codes for row in group]
        seeds = [seed for one in asked for seed in one.seeds]
        painted = iter(list(self._painted(tokens, seeds)))
        return [[next(painted) for _ in group] for group in codes]

    def rows(self, prompts: Sequence[str], codes: Sequence[Sequence[Sequence[int]]]) -> CodeRows:
        """Returns the pictures of each prompt after it, for all branches of guidance."""
        branches = zip(
            *(self._prompts(prompt) for prompt, group in zip(prompts, codes, strict=True) for _ in group), strict=True
        )
        begun = [[[*prompt, self.vocabulary.begin_picture] for prompt in branch] for branch in branches]
        return code_rows(begun, [row for group in codes for row in group])

    def _painted(self, tokens: Sequence[Tokens], seeds: Sequence[int]) -> Iterator[Image.Image]:
        for start in range(0, len(tokens), MOST_ROWS):
            part = slice(start, start + MOST_ROWS)
            pixels = self.painter.render(Tokens.cat(tokens[part]), steps=self.painting_steps, seed=seeds[part])
            pixels = rearrange((pixels * 255).round().byte().cpu(), "batch rgb height width -> batch height width rgb")
            yield from (Image.fromarray(one.numpy()) for one in pixels)

    def _prompts(self, prompt: str) -> list[list[int]]:
        """Returns the ids of a prompt and of what guidance compares it with: a message that asks for nothing."""
        messages = [(prompt,), ()][: 1 + self.decoding.guidance.num_others]
        return [render_prompt([Message("user", parts)], self.text_tokenizer, self.vocabulary) for parts in messages]
