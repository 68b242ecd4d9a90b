"""Guessing codes ahead: how many codes a pass of the shipped model yields, and what that is worth in time.

python bench/speculation.py --model assets/mini

Pictures of training prompts are drawn one by one as the model is set to: code by code, and with windows of guesses
(``model/speculation.py``). Times are ratios to code by code on the same path, torch alone and C++, in one run; a pass
over several guesses is always torch's.
"""

import argparse
import json
import random
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.rendering import render_prompt
from rebus.data.samples import Message
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.llama_weights import read_language_model
from rebus.model.native_library import native_library
from rebus.model.native_llama import SOURCE
from rebus.model.rebus import Rebus

WINDOWS = (2, 4, 8, 16)


def prompts(rebus: Rebus, number: int) -> list[list[int]]:
    """Returns the ids of training prompts of all tasks."""
    pack = EmojiPack.open()
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "train"))
    texts = [samples.prompt(random.Random(f"speculation/{index}"))[1] for index in range(number)]
    return rebus.writer.prompts([(Message("user", (text,)),) for text in texts])


def draw(engine: Engine, prompt: list[int], other: list[int], decoding: Decoding) -> float:
    """Draws one picture; returns how long that took."""
    others = (other,) * decoding.guidance.num_others
    request = Request(prompt=prompt, others=others, max_text_tokens=0, num_pictures=1, start_picture=True)
    start = time.perf_counter()
    engine.generate([request], decoding)
    return time.perf_counter() - start


@torch.inference_mode()
def codes_per_pass(engine: Engine, prompt: list[int], other: list[int], decoding: Decoding) -> float:
    """Returns how many codes of one picture a pass over guesses yielded."""
    begin, num_codes = engine.vocabulary.begin_picture, engine.vocabulary.num_codes
    branches = [prompt, other][: 1 + decoding.guidance.num_others]
    cache = engine.body.start([[*ids, begin] for ids in branches], len(prompt) + num_codes + decoding.guesses + 1)
    speculation = engine.spans.speculation(cache, decoding, torch.Generator().manual_seed(0), num_codes)
    speculation.draw([engine.vocabulary.code_range(0)[0]] * num_codes, 0)
    return num_codes / speculation.num_passes


def measure(rebus: Rebus, number: int) -> dict[str, dict[int, float]]:
    """Returns the figures by name and window."""
    asked = prompts(rebus, number)
    other = render_prompt([Message("user", ())], rebus.writer.text_tokenizer, rebus.saved.vocabulary)
    weights = read_language_model(rebus.saved.path("language_model"), rebus.device, rebus.writer.dtype)
    paths = ("torch",) if native_library(SOURCE) is None else ("torch", "native")
    engines = {name: Engine(weights, rebus.saved.vocabulary, native=name == "native") for name in paths}
    plain = rebus.saved.settings.decoding()
    figures: dict[str, dict[int, float]] = {"codes_per_pass": {}, **{f"speedup_{name}": {} for name in paths}}
    for guesses in WINDOWS:
        ahead = replace(plain, guesses=guesses)
        yields = [codes_per_pass(engines["torch"], prompt, other, ahead) for prompt in asked]
        figures["codes_per_pass"][guesses] = statistics.mean(yields)
        for name, engine in engines.items():
            pairs = [(draw(engine, prompt, other, plain), draw(engine, prompt, other, ahead)) for prompt in asked]
            before, after = (statistics.median(times) for times in zip(*pairs, strict=True))
            figures[f"speedup_{name}"][guesses] = before / after
    return figures


def main() -> None:
    """Prints the table, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("assets/mini"), help="folder of a saved model")
    parser.add_argument("--number", type=int, default=16, help="pictures that are drawn")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if chosen.number < 1:
        parser.error(f"--number must be at least 1, got {chosen.number}")
    figures = measure(Rebus.load(chosen.model), chosen.number)
    table = Table("figure", *(f"{guesses} guesses" for guesses in WINDOWS))
    for name, values in figures.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    Console(width=120).print(table)
    if chosen.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
