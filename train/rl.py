r"""Reinforcement learning of drawing: a saved model learns from what its own pictures, once painted, are worth.

python -m rebus.train.detector --preset reward
python -m rebus.train.rl --preset mini --model assets/mini --run.output runs/rl

For each prompt of the training split a group of pictures is drawn; what is better than the mean of its group becomes
likelier (``grpo_loss.py``). Pictures are drawn by temperature and guidance alone, so that the policy that draws is the
one that learns (``code_policy.py``). Its probabilities before the update come from a full pass over the pictures, as do
those after it: the ratio of both is 1 at the first update of a rollout, whatever rounding the engine does.

The judges of ``rebus.evaluation`` have no part in it; they see the export.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM

from rebus.data.emoji import EmojiPack
from rebus.model.rebus import Rebus
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.grpo_loss import GrpoConfig
from rebus.train.loop import launch
from rebus.train.rewards.choice import RewardsConfig
from rebus.train.rewards.reading import ReadingRewardConfig
from rebus.train.rewards.scene_objects import ObjectsRewardConfig
from rebus.train.rewards.scoring import Scorer
from rebus.train.rewards.sign_text import SignRewardConfig
from rebus.train.rl_stage import RlConfig, RlStage
from rebus.train.rollouts import Studio
from rebus.train.runtime import launched_processes, loaded_dtype, pick_device


def rl_stage(config: RlConfig, pack: EmojiPack) -> RlStage:
    """Returns the stage with the saved model.

    Raises:
        ValueError: if the folder holds no saved model, or a reward lacks what it needs.
    """
    scorer = Scorer(config.rewards.chosen(), config.rewards.workers)
    processes = launched_processes()
    rebus = Rebus.load(config.model, device=str(pick_device(config.run, processes)))
    options = {"dtype": loaded_dtype(config.run, processes), "use_safetensors": True, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(rebus.saved.path("language_model"), **options)
    tokenizer, policy = rebus.writer.text_tokenizer, config.policy
    studio = Studio(rebus.saved.vocabulary, tokenizer, rebus.painter, policy, config.painting_steps)
    parts = {name: sha[:16] for name, sha in rebus.saved.weights.items()}
    return RlStage(config, pack, model, studio, scorer, parts)


def mini() -> RlConfig:
    """A model that learns to draw unguided and at full spread, as the shipped one did; half an hour on one core."""
    return RlConfig(
        run=RunConfig(output=Path("runs/rl"), steps=200, batch_size=64, log_every=2, validate_every=40, save_every=10),
        optim=OptimConfig(lr=1.5e-4, warmup_steps=10, cooldown_fraction=0.3, weight_decay=0.0),
        model=Path("assets/mini"),
        rewards=RewardsConfig(
            objects=ObjectsRewardConfig(detector=Path("runs/reward_detector/export")), sign=SignRewardConfig()
        ),
        updates_per_rollout=2,
        # Divided by the spread, the noise of groups in which all pictures are good would be as loud as any reward.
        grpo=GrpoConfig(divide_by_spread=False, least_spread=0.02, clip_high=0.28),
        # What the model draws well anyhow has nothing to teach.
        tasks={"one": 0.2, "two": 0.15, "position": 0.1, "count": 0.35, "sign": 0.2},
        num_validation=48,
        keep_policies=True,
    )


def tiny() -> RlConfig:
    """A training of seconds, for tests."""
    return RlConfig(
        run=RunConfig(output=Path("runs/rl_tiny"), steps=4, batch_size=8, dtype="float32", log_every=1),
        optim=OptimConfig(lr=1e-3, warmup_steps=1, weight_decay=0.0),
        model=Path("runs/model_tiny"),
        rewards=RewardsConfig(reading=ReadingRewardConfig(model=Path("runs/model_tiny")), workers=0),
        group_size=4,
        painting_steps=1,
        num_validation=2,
    )


PRESETS = {"mini": mini, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains a saved model by rewards as the command line says."""
    config = parse(PRESETS, argv, __doc__)
    launch("rl", lambda: rl_stage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
