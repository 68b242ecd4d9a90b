"""Says whether a model's judgement of its own drafts is worth anything, by judges that had no part in it.

python -m rebus.train.self_enhance --model assets/mini --output runs/self
python -m rebus.evaluation.kept_drafts --model assets/mini --drafts runs/self/drafts

How many are right of the first drafts, which nobody chose; of those with the best mark, which ``best_of`` would keep;
of those that the model keeps to learn from; and of those that it rejects. What is judged is kept in ``judged`` beside
the drafts, so that a command that was stopped goes on where it stood.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from rebus.data.emoji import EmojiPack
from rebus.data.judged_drafts import Draft, JudgedDrafts, read_drafts
from rebus.data.scenes import TASKS
from rebus.evaluation.benchmark import attempted
from rebus.evaluation.detector import SHIPPED_JUDGE, Detector
from rebus.evaluation.intervals import Score, wilson
from rebus.evaluation.judges import Judge
from rebus.evaluation.sign_reader import SignReader
from rebus.model.command_line import CommandParser, spinner
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus
from rebus.tokenizers.tokens import Tokens

CHOICES = ("first", "best mark", "kept", "rejected")
FIRST_OF_KEPT = "first, where one was kept"
_BATCH = 16

Marks = Mapping[str, bool | None]
"""Of one prompt by choice: whether the draft is right, None where the judge failed. A choice of none is left out."""


def chosen(judged: JudgedDrafts) -> dict[str, Draft]:
    """Returns the drafts of a prompt that are compared."""
    best = max(judged.drafts, key=lambda one: one.mark)
    found = zip(CHOICES, (judged.drafts[0], best, judged.kept, judged.rejected), strict=True)
    return {name: draft for name, draft in found if draft is not None}


def marks_of(judged: Sequence[JudgedDrafts], model: Rebus, judge: Judge) -> list[Marks]:
    """Returns the marks of each prompt; a draft that is chosen twice is painted and judged once."""
    places = [
        (row, judged[row].drafts.index(one)) for row in range(len(judged)) for one in chosen(judged[row]).values()
    ]

    def verdicts(part: Sequence[tuple[int, int]]) -> list[bool]:
        drafts = [judged[row].drafts[column] for row, column in part]
        tokens = Tokens.cat([model.saved.vocabulary.unflatten(one.codes) for one in drafts])
        drawings = model.paint(tokens, seed=[judged[row].seed for row, _ in part])
        pictures = np.stack([np.asarray(one.image) for one in drawings])
        return [one.passed for one in judge.verdicts([judged[row].scene for row, _ in part], pictures)]

    found, _ = attempted(verdicts, {f"{row}/{column}": (row, column) for row, column in places}, _BATCH)
    return [
        {name: found.get(f"{row}/{one.drafts.index(draft)}") for name, draft in chosen(one).items()}
        for row, one in enumerate(judged)
    ]


def figures(tasks: Sequence[str], marks: Sequence[Marks]) -> dict[str, dict[str, Score]]:
    """Returns by choice the scores of each task that was asked for, and ``all``, that of all prompts."""
    both = [{**one, FIRST_OF_KEPT: one["first"]} if "kept" in one else dict(one) for one in marks]
    found: dict[str, dict[str, Score]] = {}
    for name in (*CHOICES[:2], FIRST_OF_KEPT, *CHOICES[2:]):
        given = [(task, mark) for task, one in zip(tasks, both, strict=True) if (mark := one.get(name)) is not None]
        groups = {task: [mark for other, mark in given if other == task] for task in TASKS}
        groups["all"] = [mark for _, mark in given]
        found[name] = {group: wilson(several) for group, several in groups.items() if several}
    return found


def table(found: Mapping[str, Mapping[str, Score]]) -> str:
    """Returns the figures as Markdown."""
    lines = [f"| drafts | {' | '.join((*TASKS, 'all'))} |", f"|---{'|---' * (len(TASKS) + 1)}|"]
    for name, scores in found.items():
        cells = [f"{one.score:.2f} (n {one.n})" if (one := scores.get(group)) else "-" for group in TASKS]
        total = scores.get("all")
        cells.append(f"{total.score:.2f} ({total.low:.2f} to {total.high:.2f}; n {total.n})" if total else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Judges the drafts that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--drafts", type=Path, required=True, help="folder of drafts of that model")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    with parser.refusing(), spinner("judging"):
        paths = sorted(options.drafts.glob("*.jsonl"))
        if not paths:
            raise ValueError(f"--drafts must be a folder of drafts, got none in {options.drafts}")
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        judge = Judge(Detector.load(SHIPPED_JUDGE), SignReader(), EmojiPack.open())
        tasks, marks = [], []
        for path in paths:
            judged, kept = read_drafts(path), options.drafts.parent / "judged" / f"{path.stem}.json"
            if not kept.exists():
                write_whole({kept: f"{json.dumps(marks_of(judged, model, judge))}\n".encode()})
            marks += json.loads(kept.read_text())
            tasks += [one.scene.task for one in judged]
    scores = figures(tasks, marks)
    print(table(scores))
    if options.json:
        told = {name: {group: asdict(one) for group, one in several.items()} for name, several in scores.items()}
        print(json.dumps({"model": str(options.model), **told}))


if __name__ == "__main__":
    main()
