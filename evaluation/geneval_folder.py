"""Judges the pictures of GenEval's prompts that lie in a folder, and writes the results as GenEval does.

Source: results.jsonl of https://github.com/djghosh13/geneval, of which its evaluation/summary_scores.py makes scores.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebus.data.emoji import EmojiPack
from rebus.data.image_files import read_picture
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scenes import SCENE_SIZE_PX
from rebus.evaluation.geneval_benchmark import geneval_results
from rebus.evaluation.judges import ObjectFinder
from rebus.evaluation.prompt_sets.contract import PlannedPicture
from rebus.evaluation.prompt_sets.geneval import GenEvalPrompt

RESULTS = "results.jsonl"
_BATCH_SIZE = 16


def judge_folder(
    finder: ObjectFinder,
    covered: Sequence[GenEvalPrompt],
    plan: Sequence[PlannedPicture],
    folder: Path,
    pack: EmojiPack,
) -> dict[str, Any]:
    """Writes the results of those pictures whose prompts are covered, and returns what GenEval's summary says of them.

    Pictures are fitted to the size that judges know. The overall score is the mean of the tasks that have one.
    """
    prompts = {prompt.id: prompt for prompt in covered}
    known = [one for one in plan if one.prompt_id in prompts]
    pictures = {one.id: read_picture(folder / one.file, SCENE_SIZE_PX) for one in known}
    results, failed = geneval_results(finder, prompts, known, pictures, pack, mini_concepts(pack), _BATCH_SIZE)
    lines = [json.dumps(one.record(folder)) + "\n" for one in results.values()]
    (folder / RESULTS).write_text("".join(lines), encoding="utf-8")
    tasks: dict[str, list[bool]] = {}
    for one in results.values():
        tasks.setdefault(one.prompt.task, []).append(one.correct)
    scores = {task: sum(marks) / len(marks) for task, marks in tasks.items()}
    if scores:
        scores["overall"] = sum(scores.values()) / len(scores)
    return {"scores": scores, "failed": failed}
