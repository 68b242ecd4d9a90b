"""Decoding a picture's codes with guidance: this engine against what one would run instead, side by side in one run.

python bench/decode.py --sizes 10M 25M

The others, given the same random weights, prompts and number of codes: ``generate`` of ``transformers`` with its own
guidance (the faster of float32 and bfloat16), and the usual hand-written loop, in which both branches of guidance are
rows of one batch (bfloat16, cache of ``transformers``). The engine runs in bfloat16 too: in torch alone, in torch with
matrices of 8-bit integers, and with its step in C++, where there is a compiler. Each ratio is of median times; the
engine's codes in torch and in C++ are first held against two whole passes in float32.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM
from transformers.utils import logging

from rebus.model.continuation import Decoding, Request
from rebus.model.engine import Engine
from rebus.model.guidance import Guidance
from rebus.model.language_model import LanguageModelConfig
from rebus.model.native_library import native_library
from rebus.model.native_llama import SOURCE
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.tokenizers.vocabulary import Vocabulary

SIZES = {
    "10M": LanguageModelConfig(dim=192, num_layers=6, num_heads=3, num_kv_heads=3, ffn_dim=512),
    "25M": LanguageModelConfig(dim=320, num_layers=10, num_heads=5, num_kv_heads=5, ffn_dim=848),
    "100M": LanguageModelConfig(dim=768, num_layers=10, num_heads=12, num_kv_heads=12, ffn_dim=2048),
}
NUM_CODES, PROMPT_LENGTH, GUIDANCE, TOP_K = 64, 32, 3.0, 100
VOCABULARY = Vocabulary(40_000 - 8192 - 4, CodeLayout("grid", NUM_CODES, (Stream("code", 8192),), (8, 8)))
FIRST_CODE, LAST_CODE = VOCABULARY.code_range(0)


def prompts(num_rows: int, seed: int) -> list[list[int]]:
    """Returns prompts that end where a picture begins."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY.num_text, (num_rows, PROMPT_LENGTH - 1), generator=generator)
    return [[*row, VOCABULARY.begin_picture] for row in ids.tolist()]


def by_engine(engine: Engine, num_rows: int, guidance: float = GUIDANCE, temperature: float = 1.0) -> list[list[int]]:
    """Returns the codes of one picture a row."""
    pairs = zip(prompts(num_rows, 0), prompts(num_rows, 1), strict=True)
    branches = Guidance(scale=guidance)
    requests = [
        Request(
            prompt=asked[:-1],
            others=(other[:-1],) * branches.num_others,
            max_text_tokens=0,
            num_pictures=1,
            start_picture=True,
            seed=seed,
        )
        for seed, (asked, other) in enumerate(pairs)
    ]
    picture = Sampling(temperature, top_k=TOP_K)
    rows = engine.generate(requests, Decoding(guidance=branches, picture=picture))
    return [row.ids[1:-1] for row in rows]


def by_transformers(model: Any, num_rows: int) -> Tensor:
    """Decodes with ``generate`` and its guidance, which passes each branch by itself."""
    return model.generate(
        torch.tensor(prompts(num_rows, 0)),
        negative_prompt_ids=torch.tensor(prompts(num_rows, 1)),
        guidance_scale=GUIDANCE,
        do_sample=True,
        top_k=TOP_K,
        min_new_tokens=NUM_CODES,
        max_new_tokens=NUM_CODES,
    )


@torch.inference_mode()
def by_loop(model: LlamaForCausalLM, num_rows: int) -> list[Tensor]:
    """Decodes with a loop as in the code of Janus: both branches as one batch, the head over the whole vocabulary."""
    ids, cache, codes = torch.tensor(prompts(num_rows, 0) + prompts(num_rows, 1)), DynamicCache(), []
    for _ in range(NUM_CODES):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        asked, other = logits[:, FIRST_CODE:LAST_CODE].chunk(2)
        kept, places = (other + GUIDANCE * (asked - other)).topk(TOP_K)
        chosen = places.gather(1, torch.multinomial(kept.softmax(-1), 1))
        codes.append(chosen)
        ids = (chosen + FIRST_CODE).repeat(2, 1)
    return codes


@torch.inference_mode()
def check(model: LlamaForCausalLM, native: bool) -> None:
    """Asserts that the likeliest codes are those of two whole passes of ``transformers`` in float32."""
    codes = by_engine(Engine(model, VOCABULARY, native=native), 3, temperature=0.0)
    asked, other = (
        model(torch.tensor([[*prompt, *row[:-1]] for prompt, row in zip(prompts(3, seed), codes, strict=True)])).logits
        for seed in (0, 1)
    )
    guided = (other + GUIDANCE * (asked - other))[:, PROMPT_LENGTH - 1 :, FIRST_CODE:LAST_CODE]
    assert (guided.argmax(-1) + FIRST_CODE).tolist() == codes, "the engine's codes are not those of transformers"


def seconds(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Returns the median time of each, all in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if index:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def bandwidth(num_bytes: int) -> float:
    """Returns how many bytes a second are read of so many in a row, by whatever reads them fastest."""
    numbers, vector, best = torch.ones(num_bytes // 4096, 1024), torch.ones(1024), float("inf")
    for read in (numbers.sum, numbers.max, partial(torch.mv, numbers, vector)):
        for _ in range(20):
            start = time.perf_counter()
            read()
            best = min(best, time.perf_counter() - start)
    return num_bytes / best


def measure(config: LanguageModelConfig, repeats: int) -> dict[str, dict[str, float]]:
    """Returns the figures of one size of model, by name and then by path of the engine."""
    model = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval()
    small = config.build(VOCABULARY, torch.Generator().manual_seed(0)).eval().bfloat16()
    paths = {"torch": Engine(small, VOCABULARY, native=False), "int8": Engine(small, VOCABULARY, int8=True)}
    check(model, native=False)
    if native_library(SOURCE) is not None:
        check(model, native=True)
        paths["native"] = Engine(small, VOCABULARY)
    figures: dict[str, dict[str, float]] = {}
    for rows in (1, 16):
        contenders: dict[str, Callable[[], object]] = {
            "float32": partial(by_transformers, model, rows),
            "bfloat16": partial(by_transformers, small, rows),
            "loop": partial(by_loop, small, rows),
        }
        for name, engine in paths.items():
            contenders[name] = partial(by_engine, engine, rows)
            contenders[f"{name} unguided"] = partial(by_engine, engine, rows, 1.0)
        took = seconds(contenders, repeats)
        library = min(took["float32"], took["bfloat16"])
        figures[f"cfg_b{rows}_vs_hf"] = {name: library / took[name] for name in paths}
        figures[f"cfg_b{rows}_vs_batched_loop"] = {name: took["loop"] / took[name] for name in paths}
        figures[f"codes_per_second_b{rows}"] = {name: rows * NUM_CODES / took[name] for name in paths}
        if rows == 1:
            figures["cfg_overhead"] = {name: took[name] / took[f"{name} unguided"] for name in paths}
            unread = (VOCABULARY.size - LAST_CODE + FIRST_CODE) * config.dim
            num_bytes = 2 * (sum(one.numel() for one in small.parameters()) - unread)
            limit = NUM_CODES * num_bytes / bandwidth(num_bytes)
            figures["roofline_share"] = {name: limit / took[f"{name} unguided"] for name in paths}
    return figures


def main() -> None:
    """Prints the table, and with ``--json`` one object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="models of so many parameters")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    chosen = parser.parse_args()
    if chosen.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {chosen.repeats}")
    logging.set_verbosity_error()
    figures = {size: measure(SIZES[size], chosen.repeats) for size in chosen.sizes}
    names = list(figures[chosen.sizes[0]])
    paths = list(figures[chosen.sizes[0]][names[0]])
    table = Table("figure", *(f"{size}, {path}" for size in figures for path in paths))
    for name in names:
        table.add_row(name, *(f"{value:.2f}" for size in figures for value in figures[size][name].values()))
    Console(width=120).print(table)
    print(f"peak memory of all together: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if chosen.json:
        by_name = {
            name: {path: {size: figures[size][name][path] for size in figures} for path in paths} for name in names
        }
        print(json.dumps(by_name))


if __name__ == "__main__":
    main()
