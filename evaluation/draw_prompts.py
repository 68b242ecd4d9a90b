"""Draws a public set of prompts into the folder that its own scorer reads; goes on where it was stopped.

python -m rebus.evaluation.draw_prompts geneval evaluation_metadata.jsonl --output pictures/geneval
python -m rebus.evaluation.draw_prompts longtext text_prompts.jsonl --output pictures/longtext --samples 4
python -m rebus.evaluation.draw_prompts compbench color_val.txt --output pictures/color --samples 10
python -m rebus.evaluation.draw_prompts dpg dpg_bench/prompts --output pictures/dpg --samples 4

Of GenEval, only prompts that the emoji of the shipped model cover are drawn, unless --all is given, and our judge's
results are written to results.jsonl, which GenEval's summary_scores.py reads. What the report scores it draws itself.
"""

import hashlib
import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.geneval_benchmark import covered_prompts, geneval_plan
from rebus.evaluation.geneval_folder import judge_folder
from rebus.evaluation.prompt_sets.compbench import read_compbench
from rebus.evaluation.prompt_sets.contract import PlannedPicture, Prompt, limited
from rebus.evaluation.prompt_sets.dpg import read_dpg
from rebus.evaluation.prompt_sets.drawing import draw_planned, drawable
from rebus.evaluation.prompt_sets.geneval import GenEvalPrompt, read_geneval
from rebus.evaluation.prompt_sets.longtext import read_longtext
from rebus.evaluation.prompt_sets.parti import read_parti
from rebus.model.command_line import CommandParser, spinner
from rebus.model.rebus import Rebus

READERS = {"parti": read_parti, "longtext": read_longtext, "dpg": read_dpg, "compbench": read_compbench}
"""By set, all but GenEval, of which more is done."""
DECIDES = ("dtype", "set", "samples", "wording")
"""Flags that decide what is in the folder, beside the prompts and the model."""


def main(argv: list[str] | None = None) -> None:
    """Draws the set that the command line names."""
    parser = _parser()
    options = parser.parse(argv)
    with parser.refusing():
        _check(options)
        plan, covered, told = _planned(options)
        detector = Detector.load(options.judge) if covered else None
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        plan, refused = drawable(model, plan)
        drawn_by = {name: getattr(options, name) for name in DECIDES}
        drawn_by |= {"model_hash": model.saved.hash, "prompts_sha256": told["prompts_sha256"]}
        with spinner(f"drawing {len(plan)} pictures"):
            draw_planned(model, plan, options.output, drawn_by)
        told |= {"pictures": len(plan), "refused": dict(Counter(refused.values()))}
        if detector is not None:
            told |= judge_folder(detector, covered, plan, options.output, EmojiPack.open())
    for name, value in told.items():
        print(f"{name}: {value}")
    if options.json:
        print(json.dumps({"model": str(options.model), **told}))


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    parser.add_argument("set", choices=("geneval", *READERS), help="which prompts they are")
    parser.add_argument("prompts", type=Path, help="their file; of DPG-Bench the folder of texts, or the table")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--samples", type=int, default=4, help="pictures of each prompt (default: 4)")
    parser.add_argument("--limit", type=int, help="most prompts of each task or category")
    parser.add_argument("--all", action="store_true", help="of GenEval, draw what our judge cannot judge, too")
    parser.add_argument(
        "--wording", choices=("as_is", "reworded"), default="as_is", help="GenEval's words, or those of our captions"
    )
    parser.add_argument("--judge", type=Path, default=SHIPPED_JUDGE, help="saved detector (default: the shipped one)")
    parser.add_model_flags()
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _check(options: Namespace) -> None:
    if options.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {options.samples}")
    if options.set != "geneval" and (options.all or options.wording != "as_is"):
        raise ValueError(f"--all and --wording must go with geneval, got {options.set}")
    if options.all and options.wording != "as_is":
        raise ValueError(f"--all must go with prompts as they are, got --wording {options.wording}")


def _planned(options: Namespace) -> tuple[list[PlannedPicture], Sequence[GenEvalPrompt], dict[str, Any]]:
    """Returns what to draw, which prompts of GenEval are covered, and how many prompts there are."""
    if options.set != "geneval":
        prompts = READERS[options.set](options.prompts)
        kept = prompts if options.limit is None else limited(prompts, options.limit)
        told = {"prompts": len(prompts), "prompts_sha256": _sha256(prompts)}
        return [one for prompt in kept for one in prompt.planned(options.samples)], (), told
    pack, prompts = EmojiPack.open(), read_geneval(options.prompts)
    concepts = mini_concepts(pack)
    covered, counts = covered_prompts(prompts, pack, concepts)
    wanted = prompts if options.all else covered
    kept = wanted if options.limit is None else limited(wanted, options.limit)
    plan = geneval_plan(kept, pack, concepts, options.samples, options.wording)
    return plan, covered, {**counts, "prompts_sha256": _sha256(prompts)}


def _sha256(prompts: Sequence[Prompt]) -> str:
    return hashlib.sha256(repr([(prompt.id, prompt.text) for prompt in prompts]).encode()).hexdigest()


if __name__ == "__main__":
    main()
