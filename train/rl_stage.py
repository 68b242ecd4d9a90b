"""The stage of reinforcement learning: draws groups of pictures, has them rewarded, and makes the better ones likelier.

A rollout is drawn by the weights as they are at its first update; so its batch is a pure function of step and weights,
and a run that goes on from a checkpoint draws what it would have drawn. Where a checkpoint falls between two updates on
one rollout, the rollout is in it.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import TASK_WEIGHTS, SceneSamples
from rebus.data.scenes import TASKS
from rebus.model.trained_weights import ALL_WEIGHTS, FullTraining, LoraTraining, TrainingChoice
from rebus.train.checkpoint import write_folder
from rebus.train.code_policy import CodeScores, PolicyConfig, score_codes
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.grpo_loss import (
    EntropyGuard,
    FixedKl,
    GrpoConfig,
    KlWeight,
    clipped_losses,
    kl_estimates,
    mean_over_codes,
)
from rebus.train.rewards.choice import RewardsConfig
from rebus.train.rewards.scoring import Scorer, Scores, Scoring
from rebus.train.rl_batch import Group, RlBatch, informative, means, plain, rl_batch
from rebus.train.rollout_sheet import rollout_sheet
from rebus.train.rollouts import Asked, Studio, asked_for
from rebus.train.runtime import autocast, launched_processes, to_device


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """A whole reinforcement learning."""

    run: RunConfig
    """Updates, pictures of a rollout (``batch_size``), folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    model: Path
    """Folder of the saved model to start from; as it is now, it is the reference."""
    training: TrainingChoice = ALL_WEIGHTS
    """What of the model trains; with adapters there is no second model in memory."""
    rewards: RewardsConfig
    """What pictures are worth."""
    group_size: int = 8
    """Pictures of a prompt."""
    updates_per_rollout: int = 1
    """Updates on the same pictures; only beyond the first does the clipping act."""
    policy: PolicyConfig = PolicyConfig()
    """How codes are drawn."""
    grpo: GrpoConfig = GrpoConfig()
    """How rewards move the policy."""
    kl: KlWeight = FixedKl()
    """How the distance from the reference weighs."""
    entropy: EntropyGuard = EntropyGuard()
    """What is done where the policy becomes too sure."""
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASK_WEIGHTS))
    """How often scenes of each task are asked for."""
    painting_steps: int = 4
    """Evaluations of the decoder."""
    num_validation: int = 24
    """Held-out prompts whose pictures a validation rewards; nothing is learned from them."""
    show_every: int | None = 50
    """Updates between two rollouts that are saved to be looked at; none are without it."""

    keep_policies: bool = False
    """Whether each validation leaves the policy as it is then in ``policies``: judges that have no part in the training
    can tell by it where rewards rise and drawings do not get better."""

    def __post_init__(self) -> None:
        size = self.group_size
        _check(size >= 2, "group_size must be at least 2, for a picture is measured against the others", size)
        _check(
            self.run.batch_size % size == 0,
            f"run.batch_size must be a multiple of group_size {size}",
            self.run.batch_size,
        )
        for name in ("updates_per_rollout", "painting_steps", "num_validation", "show_every"):
            value = getattr(self, name)
            _check(value is None or value >= 1, f"{name} must be at least 1", value)
        known = set(self.tasks) <= set(TASKS) and any(self.tasks.values()) and min(self.tasks.values()) >= 0
        _check(known, f"tasks must weigh some of {', '.join(TASKS)}", self.tasks)
        dropout = self.training.dropout if isinstance(self.training, LoraTraining) else 0.0
        _check(dropout == 0, "training.dropout must be 0, for a policy is one and the same before an update", dropout)
        adapted = not isinstance(self.training, FullTraining)
        _check(
            not (adapted and self.optim.frozen), "optim.frozen must be empty where not all trains", self.optim.frozen
        )
        _check(self.run.sharding < 3, "run.zero_stage must be below 3, for the model draws in between", 3)


class RlStage:
    """Prompts in, pictures, rewards, and the codes of good pictures made likelier."""

    def __init__(
        self,
        config: RlConfig,
        pack: EmojiPack,
        model: PreTrainedModel,
        studio: Studio,
        scorer: Scorer,
        parts: dict[str, str],
    ) -> None:
        """Takes a model and what draws and rewards with it; ``rl_stage`` reads them from folders.

        Raises:
            ValueError: if the groups do not divide among the processes and micro-batches.
        """
        self.config, self.model, self.studio, self.scorer, self.parts = config, model, studio, scorer, parts
        self.vocabulary, self.processes = studio.vocabulary, launched_processes()
        self.num_groups = config.run.batch_size // config.group_size
        num_parts = self.processes.world * config.run.accumulation
        _check(
            self.num_groups % num_parts == 0, f"groups of a rollout must be a multiple of {num_parts}", self.num_groups
        )
        self.trained = config.training.prepare(model, self.vocabulary, config.run.seed)
        self.reference = self.trained.reference()
        concepts = mini_concepts(pack)
        self.training, self.held_out = (
            SceneSamples(SceneSampler(pack, concepts, split)) for split in ("train", "held_out")
        )
        self.kl_weight = config.kl.weight
        self._begun = -1
        self._kl: float | None = None
        self._groups: dict[int, Group] = {}
        self._seconds: dict[str, float] = {}
        self._handed_out = 0.0
        self._shown: Image.Image | None = None

    def batch(self, step: int, rank: int, world: int) -> RlBatch:
        """Returns this rank's groups of the rollout that the step learns from; the first step of one draws it."""
        arrived = time.monotonic()
        begun = step - step % self.config.updates_per_rollout
        if begun != self._begun:
            self._next_rollout(begun)
        numbers = range(self.num_groups)[rank::world]
        self._seconds = dict.fromkeys(("draw_seconds", "paint_seconds", "likelihood_seconds", "reward_seconds"), 0.0)
        self._seconds["update_seconds"] = arrived - self._handed_out if self._handed_out else 0.0
        if not set(numbers) <= self._groups.keys():
            for groups in self.processes.gathered(self._roll_out(begun, numbers)):
                self._groups |= {group.number: group for group in groups}
        own = [self._groups[number] for number in numbers]
        taught = informative(own, self.config.grpo)
        rows = self.studio.rows([group.prompt for group in taught], [group.codes for group in taught])
        batch = rl_batch(rows, taught, own, self.kl_weight, self.config.grpo)
        batch.metrics.update({name: torch.tensor(value) for name, value in self._seconds.items()})
        self._handed_out = time.monotonic()
        return batch

    def loss(self, batch: RlBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the clipped loss of the codes with their distance from the reference, and what the rollout was."""
        scores = score_codes(self.model, self.vocabulary, batch.rows, self.config.policy)
        current = scores.log_likelihoods
        losses, clipped = clipped_losses(current, batch.old, batch.advantages, self.config.grpo)
        distances, entropy = kl_estimates(current, batch.reference), scores.entropies.mean()
        loss = mean_over_codes(losses + batch.kl_weight * distances, batch.kept, batch.num_targets)
        metrics = {
            **batch.metrics,
            "kl": distances.detach().mean(),
            "kl_weight": batch.kl_weight,
            "entropy": entropy.detach(),
            "clip_share": clipped.float().mean(),
        }
        return loss + self.config.entropy.loss(entropy, batch.reference_entropy), metrics

    def data_state(self, step: int) -> dict[str, Any]:
        """Returns the weight of the distance, and the rollout if there are updates on it still to come."""
        open_rollout = step % self.config.updates_per_rollout > 0
        groups = [asdict(self._groups[number]) for number in sorted(self._groups)] if open_rollout else []
        return {"begun": self._begun, "kl_weight": self.kl_weight, "kl": self._mean_kl(), "groups": groups}

    def load_data_state(self, state: dict[str, Any]) -> None:
        """Goes on with the rollout that was under way."""
        self._begun, self.kl_weight, self._kl = state["begun"], state["kl_weight"], state["kl"]
        self._groups = {group["number"]: Group(**group) for group in state["groups"]}

    def validate(self) -> dict[str, float]:
        """Returns the mean rewards of pictures for held-out prompts, always the same prompts and seeds."""
        asked = [
            asked_for(self.held_out, {TASKS[index % len(TASKS)]: 1.0}, f"validation/{index}", 1)
            for index in range(self.config.num_validation)
        ]
        pictures = self.studio.paint(asked, self.studio.write(self.trained.stock(), asked))
        scores = self._scoring(asked, pictures).scores()
        self._shown = self._sheet(asked, pictures, scores)
        return means(scores)

    def samples(self, folder: Path) -> None:
        """Writes the pictures of the last validation with their rewards, and the policy where it is kept."""
        if self._shown is not None:
            self._shown.save(folder / "held_out.png")
        if self.config.keep_policies:
            step = self._begun + self.config.updates_per_rollout
            write_folder(self.config.run.output / "policies" / f"{step:06}", self.export)

    def export(self, folder: Path) -> None:
        """Writes the language model in bfloat16 and its text tokenizer, as stock ``transformers`` files.

        Adapters are merged, and written once more by themselves into ``adapter``.
        """
        self.trained.stock_copy().bfloat16().save_pretrained(folder)
        self.studio.text_tokenizer.save(folder, self.vocabulary)
        self.trained.save_adapter(folder / "adapter")

    def _next_rollout(self, begun: int) -> None:
        kl = self._mean_kl()
        if kl is not None:
            self.kl_weight = self.config.kl.following(self.kl_weight, kl)
        self._begun, self._kl, self._groups = begun, None, {}

    def _mean_kl(self) -> float | None:
        """Returns how far the policy of the newest rollout is from the reference."""
        return fmean(group.kl for group in self._groups.values()) if self._groups else self._kl

    def _roll_out(self, step: int, numbers: Sequence[int]) -> list[Group]:
        """Returns groups drawn by the policy as it is."""
        config, size = self.config, self.config.group_size
        places = [f"{config.run.seed}/{step}/{number}" for number in numbers]
        asked = [asked_for(self.training, config.tasks, place, size) for place in places]
        with self._timed("draw_seconds"):
            codes = self.studio.write(self.trained.stock(), asked)
        with self._timed("paint_seconds"):
            pictures = self.studio.paint(asked, codes)
        with self._timed("reward_seconds"):
            scoring = self._scoring(asked, pictures)
        with self._timed("likelihood_seconds"):
            old, reference = self._likelihoods(asked, codes)
        with self._timed("reward_seconds"):
            scores = scoring.scores()
        if all(total != total for total in scores.totals):
            raise RuntimeError(f"a reward must succeed for some picture, got none in step {step}: {scores.problems}")
        self._show(step, numbers[0], asked, pictures, scores)
        distances = kl_estimates(old.log_likelihoods, reference.log_likelihoods)
        return [
            Group(
                number=number,
                prompt=one.prompt,
                codes=drawn,
                totals=plain(scores.totals[part]),
                rewards={name: plain(values[part]) for name, values in scores.each.items()},
                old=old.log_likelihoods[part].tolist(),
                reference=reference.log_likelihoods[part].tolist(),
                entropy=reference.entropies[part].mean().item(),
                kl=distances[part].mean().item(),
            )
            for number, one, drawn, part in zip(numbers, asked, codes, _parts(len(asked), size), strict=True)
        ]

    def _likelihoods(
        self, asked: Sequence[Asked], codes: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[CodeScores, CodeScores]:
        """Returns what the policy that drew and the reference say of the codes."""
        device = self.model.device
        rows = to_device(self.studio.rows([one.prompt for one in asked], codes), device)
        with torch.no_grad(), autocast(self.config.run, device):
            policy = score_codes(self.model, self.vocabulary, rows, self.config.policy)
            with self.reference() as model:
                nn.Module.to(model, device)
                reference = score_codes(model, self.vocabulary, rows, self.config.policy)
        return policy, reference

    def _scoring(self, asked: Sequence[Asked], pictures: Sequence[Sequence[Image.Image]]) -> Scoring:
        """Begins to reward the pictures."""
        pairs = [(one, picture) for one, group in zip(asked, pictures, strict=True) for picture in group]
        columns = {"scene": [one.scene for one, _ in pairs]}
        return self.scorer.start([one.prompt for one, _ in pairs], [picture for _, picture in pairs], columns)

    def _show(
        self,
        step: int,
        number: int,
        asked: Sequence[Asked],
        pictures: Sequence[Sequence[Image.Image]],
        scores: Scores,
    ) -> None:
        """Saves a rollout to be looked at, if it is due: a sheet, and prompts, rewards and problems as JSON."""
        every, last = self.config.show_every, step + self.config.updates_per_rollout - 1
        if every is None or (step % every and step // every == last // every):
            return
        folder = self.config.run.output / "rollouts"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:06}-group-{number}.png"
        self._sheet(asked, pictures, scores).save(path)
        told = {
            "prompts": [one.prompt for one in asked],
            "totals": plain(scores.totals),
            "rewards": {name: plain(values) for name, values in scores.each.items()},
            "problems": scores.problems,
        }
        path.with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")

    def _sheet(self, asked: Sequence[Asked], pictures: Sequence[Sequence[Image.Image]], scores: Scores) -> Image.Image:
        parts = _parts(len(asked), len(pictures[0]))
        named = {"total": scores.totals, **scores.each}
        marks = [{name: plain(values[part]) for name, values in named.items()} for part in parts]
        return rollout_sheet([one.prompt for one in asked], pictures, marks)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._seconds[name] += time.monotonic() - start


def _parts(number: int, size: int) -> list[slice]:
    """Returns where each of a number of groups lies, laid end to end."""
    return [slice(start, start + size) for start in range(0, number * size, size)]


def _check(holds: bool, wanted: str, got: object) -> None:
    if not holds:
        raise ValueError(f"{wanted}, got {got}")
