r"""What the reward says of a policy while it learns, and what judges say that are no part of the reward.

python -m rebus.evaluation.policy_curve --runs runs/rl/0 runs/rl/1 runs/rl/2 --model assets/mini --output runs/curve

Runs of ``rebus.train.rl`` with ``keep_policies`` leave the policy of each validation. Each of them draws the same
held-out prompts as the arms of ``arms.py`` do, one draft each, and the judges look. A reward that rises while the
judged score does not is a reward that is being deceived. What is judged is kept in ``--output``, so a curve that was
stopped goes on where it stood; there come ``curve.json`` and ``curve.png``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rebus.evaluation.arms import ArmConfig
from rebus.evaluation.chosen_judges import shipped_judges
from rebus.evaluation.trials import ArmsConfig, compare
from rebus.model.command_line import SHIPPED_MODEL, CommandParser
from rebus.model.saved import SavedModel, with_language_model

REWARD = "validation/reward"
"""The metric of ``rebus.train.rl`` that is drawn beside the judged scores."""
Points = Mapping[int, float]
"""Values by number of updates."""


def policies(run: Path) -> dict[int, Path]:
    """Returns the policies that a run kept, by the number of updates before them.

    Raises:
        ValueError: if it kept none.
    """
    found = {int(path.name): path for path in sorted((run / "policies").glob("[0-9]*"))}
    if not found:
        raise ValueError(f"{run} must be a run of rebus.train.rl with --keep_policies true, got no policies in it")
    return found


def rewards(run: Path) -> dict[int, float]:
    """Returns the mean reward of the held-out prompts of each validation of a run.

    Raises:
        ValueError: if it has no metrics.
    """
    if not (run / "metrics.jsonl").is_file():
        raise ValueError(f"{run} must hold metrics.jsonl, got no such file")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[REWARD] for line in lines if REWARD in line}


def arms_of(runs: Sequence[Path], model: SavedModel, output: Path) -> dict[str, ArmConfig]:
    """Returns an arm for each number of updates after which all runs kept a policy, from none on.

    Args:
        runs: of one training from several seeds.
        model: what they started from; its other parts paint.
        output: where the policies are made into saved models.

    Raises:
        ValueError: if a run kept no policies.
    """
    kept = [policies(run) for run in runs]
    arms = {"0": ArmConfig(models=(model.folder,))}
    for updates in sorted(set.intersection(*map(set, kept))):
        folders = [output / "models" / f"{number}-{updates:06}" for number in range(len(runs))]
        for folder, each in zip(folders, kept, strict=True):
            with_language_model(model, each[updates], folder)
        arms[str(updates)] = ArmConfig(models=tuple(folders))
    return arms


def plot(judged: Mapping[str, Mapping[str, Any]], rewarded: Sequence[Points], file: Path) -> None:
    """Draws the judged scores with their intervals above the rewards of each run.

    Args:
        judged: for each judge the estimates by number of updates.
        rewarded: for each run the rewards.
        file: a .png.
    """
    from matplotlib.figure import Figure  # comes with the extra "evaluation"

    figure = Figure(figsize=(7, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for judge, estimates in judged.items():
        places, scores = list(map(int, estimates)), [one["score"] for one in estimates.values()]
        reach = [[one["score"] - one["low"], one["high"] - one["score"]] for one in estimates.values()]
        above.errorbar(places, scores, yerr=list(zip(*reach, strict=True)), marker="o", capsize=3, label=judge)
    for number, points in enumerate(rewarded):
        below.plot(list(points), list(points.values()), marker="o", label=f"run {number}")
    above.set(ylabel="judged right, mean of all tasks")
    below.set(ylabel="reward of held-out prompts", xlabel="updates")
    for axes in (above, below):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> None:
    """Judges the policies that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="of rebus.train.rl, one of each seed")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="what they started from")
    parser.add_argument("--num_prompts", type=int, default=80, help="of each drawing task (default: 80)")
    parser.add_argument("--output", type=Path, default=Path("runs/curve"), help="folder of all that is found")
    options = parser.parse(argv)
    with parser.refusing():
        rewarded = [rewards(run) for run in options.runs]
        arms = arms_of(options.runs, SavedModel.open(options.model), options.output)
        config = ArmsConfig(arms=arms, num_prompts=options.num_prompts, output=options.output)
        with Console(stderr=True).status("") as status:
            figures = compare(config, shipped_judges(), lambda said: status.update(f"updates {said}"))
    judged = {
        judge: {updates: arm["scores"]["mean"] for updates, arm in by_arm.items()}
        for judge, by_arm in figures["judges"].items()
    }
    (options.output / "curve.json").write_text(json.dumps({"judged": judged, "rewards": rewarded}, indent=1) + "\n")
    plot(judged, rewarded, options.output / "curve.png")
    for updates in arms:
        scores = ", ".join(f"{each[updates]['score']:.3f} by the {judge}" for judge, each in judged.items())
        at = [f"{points[int(updates)]:.3f}" for points in rewarded if int(updates) in points]
        print(f"{updates} updates: judged {scores}; rewards {', '.join(at) or 'none'}")


if __name__ == "__main__":
    main()
