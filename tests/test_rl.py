"""Reinforcement learning on a world small enough to learn a rule in seconds."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from transformers import AutoModelForCausalLM

from rebus.data.captions import canonical_caption
from rebus.data.emoji import EmojiPack
from rebus.data.splits import is_held_out
from rebus.model.rebus import Rebus
from rebus.model.trained_weights import ALL_WEIGHTS, LoraTraining, NewRowsTraining
from rebus.train import rl
from rebus.train.code_policy import PolicyConfig, code_rows, score_codes
from rebus.train.config import OptimConfig, parse
from rebus.train.grpo_loss import AdaptiveKl, EntropyGuard, FixedKl, GrpoConfig
from rebus.train.loop import train
from rebus.train.rewards.choice import RewardsConfig
from rebus.train.rewards.scoring import Scorer
from rebus.train.rewards.sign_text import SignRewardConfig
from rebus.train.rl_batch import Group, informative, rl_batch
from rebus.train.rl_stage import RlStage
from rebus.train.rollouts import Studio, asked_for

MODEL = Path(__file__).parent.parent / "assets" / "mini"
LORA = LoraTraining(rank=3)
LOW = 5
"""Codes below this are rewarded; there are 15."""


class PixelPainter:
    """Paints each code as a pixel as bright as its number."""

    def render(self, tokens, *, steps, seed):
        assert len(seed) == len(tokens.ids)
        gray = rearrange(tokens.ids[..., 0], "batch (rows columns) -> batch rows columns", rows=3) / 255
        return gray.unsqueeze(1).expand(-1, 3, -1, -1)


@dataclass(frozen=True, kw_only=True)
class LowCodes:
    """The share of codes that are low; fails where ``fails`` says so of the first."""

    weight: float = 1.0
    fails: tuple[int, ...] = ()

    def check(self):
        pass

    def build(self):
        return self

    def __call__(self, prompts, completions, *, scene):
        assert len(prompts) == len(scene) == len(completions)
        marks = []
        for picture in completions:
            codes = list(picture.convert("L").tobytes())
            if codes[0] in self.fails:
                raise ValueError("a code that cannot be seen")
            marks.append(sum(code < LOW for code in codes) / len(codes))
        return marks


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture
def stage_of(saved_model, pack):
    """Makes a stage over the tiny model, whose codes are seen as they are."""

    def make(config, reward=LowCodes()):  # noqa: B008
        rebus = Rebus.load(saved_model)
        model = AutoModelForCausalLM.from_pretrained(saved_model, dtype=torch.float32)
        tokenizer = rebus.writer.text_tokenizer
        studio = Studio(rebus.saved.vocabulary, tokenizer, PixelPainter(), config.policy, config.painting_steps)
        return RlStage(config, pack, model, studio, Scorer({"low": reward}, 0), {"model": "tiny"})

    return make


def config_of(output, **changes):
    run = {name: changes.pop(name) for name in ("steps", "batch_size", "accumulation") if name in changes}
    config = replace(rl.tiny(), **changes)
    return replace(config, run=replace(config.run, output=output, **run))


def measures(output, key):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def run(stage, config):
    return train(stage, config.run, config.optim, config)


@pytest.mark.slow
def test_a_model_learns_what_is_rewarded(stage_of, tmp_path):
    config = config_of(tmp_path, steps=40, batch_size=32, group_size=8, kl=FixedKl(weight=0.0), show_every=20)
    config = replace(config, keep_policies=True)
    config = replace(config, optim=replace(config.optim, lr=1e-2), entropy=EntropyGuard(share=0.3))
    assert run(stage_of(config), config)
    course = measures(tmp_path, "reward")
    assert abs(course[0] - LOW / 15) < 0.1 and min(course[-3:]) > 0.8
    assert measures(tmp_path, "kl")[0] == 0 and measures(tmp_path, "kl")[-1] > 0.1
    assert measures(tmp_path, "validation/reward")[-1] > 0.8  # of held-out prompts, too
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policies" / "000040") is not None
    assert {path.name for path in (tmp_path / "rollouts").iterdir()} == {
        f"step-{step:06}-group-0.{kind}" for step in (0, 20) for kind in ("json", "png")
    }


@pytest.mark.slow
def test_a_rollout_is_a_function_of_seed_step_and_weights_and_divides_among_processes(stage_of, tmp_path):
    config = config_of(tmp_path, batch_size=16, accumulation=2)
    one, again = (stage_of(config).batch(3, 0, 1) for _ in range(2))
    assert torch.equal(one.rows.ids, again.rows.ids) and torch.equal(one.advantages, again.advantages)
    assert torch.equal(one.old, again.old)
    stage = stage_of(config)
    parts = [stage.batch(3, rank, 2) for rank in range(2)]  # as two micro-batches ask for it
    codes = torch.cat([part.rows.codes for part in parts]).unflatten(0, (4, 4))[[0, 2, 1, 3]].flatten(0, 1)
    assert torch.equal(codes, one.rows.codes)
    assert not torch.equal(stage.batch(4, 0, 1).rows.codes, one.rows.codes)
    with torch.no_grad():
        stage.model.lm_head.weight.mul_(9)
    assert not torch.equal(stage.batch(3, 0, 1).rows.codes, one.rows.codes)


def test_prompts_are_of_the_training_split_and_the_tasks_that_are_asked_for(stage_of, tmp_path, pack):
    stage = stage_of(config_of(tmp_path, tasks={"sign": 3.0, "two": 1.0}))
    asked = [asked_for(stage.training, stage.config.tasks, str(index), 2) for index in range(40)]
    assert not any(is_held_out(one.scene) for one in asked)
    assert {one.scene.task for one in asked} == {"sign", "two"}
    assert all(one.prompt == canonical_caption(one.scene, pack) for one in asked)
    assert len({seed for one in asked for seed in one.seeds}) == 80


@pytest.mark.parametrize(
    ("guidance", "training"),
    [
        (1.0, ALL_WEIGHTS),
        (1.5, ALL_WEIGHTS),
        pytest.param(1.0, LORA, marks=pytest.mark.slow),
        pytest.param(1.0, NewRowsTraining(), marks=pytest.mark.slow),
    ],
)
def test_before_an_update_the_policy_is_the_one_that_drew_and_the_reference(stage_of, tmp_path, guidance, training):
    policy = PolicyConfig(temperature=0.8, guidance=guidance)
    stage = stage_of(config_of(tmp_path, policy=policy, training=training))
    batch = stage.batch(0, 0, 1)
    loss, metrics = stage.loss(batch)
    assert torch.equal(batch.old, batch.reference)
    assert metrics["clip_share"] == 0 and metrics["kl"].abs() < 1e-6 and metrics["entropy"] > 1
    assert loss.detach().abs() < 1e-5  # advantages of a group add up to nothing
    loss.backward()
    assert max(one.grad.abs().max() for one in stage.model.parameters() if one.grad is not None) > 1e-4
    trained = {id(one) for one in stage.model.parameters() if one.requires_grad}
    with stage.reference() as reference:
        assert all(one.grad is None for one in reference.parameters() if id(one) not in trained)


def group(number, totals):
    rows = [[-1.0, -2.0]] * len(totals)
    return Group(
        number=number,
        prompt="a dog",
        codes=[[7, 8]] * len(totals),
        totals=totals,
        rewards={"low": totals},
        old=rows,
        reference=rows,
        entropy=1.0,
        kl=0.0,
    )


def test_groups_that_teach_nothing_are_left_out_and_make_the_others_no_louder():
    groups = [group(0, [0.5, 0.5]), group(1, [0.2, 0.4]), group(2, [0.3, None])]

    def batch(least_spread):
        config = GrpoConfig(divide_by_spread=False, least_spread=least_spread)
        taught = informative(groups, config)
        rows = code_rows([[[1]] * 2 * len(taught)], [[7, 8]] * 2 * len(taught))
        return taught, rl_batch(rows, taught, groups, 0.0, config)

    every, some, none = (batch(least_spread) for least_spread in (0.0, 0.1, 9.0))
    assert [[one.number for one in taught] for taught, _ in (every, some, none)] == [[0, 1, 2], [1], [0]]
    assert all(one.num_targets == 10 and one.metrics == every[1].metrics for _, one in (some, none))
    assert torch.equal(some[1].advantages, every[1].advantages[2:4])
    assert every[1].kept.tolist() == [True] * 5 + [False]
    assert some[1].kept.all() and not none[1].kept.any()  # an update needs something, be it without effect


@pytest.mark.slow
@pytest.mark.parametrize("training", [ALL_WEIGHTS, LORA])
def test_updates_on_one_rollout_clip_and_leave_the_reference_alone(stage_of, tmp_path, training):
    config = config_of(tmp_path, updates_per_rollout=3, steps=4, grpo=GrpoConfig(clip_low=0.01, clip_high=0.01))
    config = replace(config, optim=replace(config.optim, lr=1e-2), training=training)
    stage = stage_of(config)
    rows = stage.batch(0, 0, 1).rows

    @torch.no_grad()
    def likelihoods(model):
        return score_codes(model, stage.vocabulary, rows, config.policy).log_likelihoods

    with stage.reference() as reference:
        before = likelihoods(reference)
    assert run(stage, config)
    clipped = measures(tmp_path, "clip_share")
    assert clipped[0] == 0 and clipped[1] > 0.05 and clipped[3] == 0  # the fourth has a new rollout
    rewards = measures(tmp_path, "reward")
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3]
    with stage.reference() as reference:
        assert torch.equal(likelihoods(reference), before)
    assert (likelihoods(stage.model) - before).abs().max() > 0.01


@pytest.mark.slow
def test_adapters_are_merged_into_a_stock_export(stage_of, saved_model, tmp_path):
    config = config_of(tmp_path, training=LORA)
    stage = stage_of(replace(config, optim=replace(config.optim, lr=1e-2)))
    assert run(stage, config)
    exported, base = (AutoModelForCausalLM.from_pretrained(one) for one in (tmp_path / "export", saved_model))
    weights = stage.trained.stock().bfloat16().state_dict()
    assert type(exported) is type(base) and exported.state_dict().keys() == base.state_dict().keys()
    assert all(torch.equal(one, weights[name]) for name, one in exported.state_dict().items())
    assert not torch.equal(exported.model.layers[0].mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    assert (tmp_path / "export" / "adapter" / "adapter_model.safetensors").is_file()


class Stopping:
    """A stage that is asked to stop at one of its steps."""

    def __init__(self, stage, step):
        self._stage, self._step = stage, step

    def __getattr__(self, name):
        return getattr(self._stage, name)

    def batch(self, step, rank, world):
        if step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._stage.batch(step, rank, world)

    def loss(self, batch):
        return self._stage.loss(batch)

    def data_state(self, step):
        return self._stage.data_state(step)

    def load_data_state(self, state):
        self._stage.load_data_state(state)

    def validate(self):
        return self._stage.validate()

    def samples(self, folder):
        self._stage.samples(folder)

    def export(self, folder):
        self._stage.export(folder)


@pytest.mark.slow
@pytest.mark.parametrize("training", [ALL_WEIGHTS, LORA])
def test_stopped_between_two_updates_on_a_rollout_and_resumed_equals_straight(stage_of, tmp_path, training):
    changes = {"updates_per_rollout": 2, "kl": AdaptiveKl(weight=0.1, target=1e-4), "steps": 5, "training": training}
    straight, parts = (config_of(tmp_path / name, **changes) for name in ("straight", "parts"))
    assert run(stage_of(straight), straight)
    assert not run(Stopping(stage_of(parts), 2), parts)
    assert [path.name for path in parts.run.output.glob("checkpoint-*")] == ["checkpoint-3"]
    assert run(stage_of(parts), parts)
    for key in ("loss", "reward", "kl", "kl_weight", "validation/reward"):
        assert measures(straight.run.output, key) == measures(parts.run.output, key)
    weights = measures(straight.run.output, "kl_weight")
    assert weights[0] == weights[1] and weights[2] == weights[3] and weights[0] != weights[2] != weights[4]
    exported = (one.run.output / "export" / "model.safetensors" for one in (straight, parts))
    assert len({path.read_bytes() for path in exported}) == 1


def test_a_failed_reward_is_counted_and_trains_nothing(stage_of, tmp_path):
    config = config_of(tmp_path, show_every=1, batch_size=16)
    stage = stage_of(config, LowCodes(fails=tuple(range(5))))
    batch = stage.batch(0, 0, 1)
    first = batch.rows.codes[:, 0] - stage.vocabulary.code_range(0)[0]
    assert batch.kept.tolist() == (first >= 5).tolist() and 0 < batch.kept.sum() < 16
    assert (batch.advantages[~batch.kept] == 0).all()
    assert batch.metrics["failed"] == pytest.approx((first < 5).float().mean().item())
    assert batch.num_targets.item() == 9 * batch.kept.sum()
    told = json.loads((tmp_path / "rollouts" / "step-000000-group-0.json").read_text())
    assert told["problems"] == {"low: ValueError: a code that cannot be seen": int((first < 5).sum())}
    assert [one is None for one in told["totals"]] == (first < 5).tolist()
    with pytest.raises(RuntimeError, match="a reward must succeed for some picture, got none in step 0"):
        stage_of(config, LowCodes(fails=tuple(range(15)))).batch(0, 0, 1)


def test_the_guard_pulls_only_where_entropy_is_low():
    guard = EntropyGuard(share=0.5, weight=0.2)
    low, high, reference = torch.tensor(0.4, requires_grad=True), torch.tensor(1.1), torch.tensor(2.0)
    assert guard.loss(low, reference).item() == pytest.approx(0.12) and guard.loss(high, reference) == 0
    guard.loss(low, reference).backward()
    assert low.grad == pytest.approx(-0.2)


@pytest.mark.slow
def test_the_command_trains_a_saved_model_and_the_export_goes_back_into_one(saved_model, tmp_path):
    from rebus.train.assemble import AssembleConfig, assemble

    flags = ["--preset", "tiny", "--model", str(saved_model), "--rewards.reading.model", str(saved_model)]
    flags += ["--run.output", str(tmp_path / "rl"), "--run.steps", "2", "--optim.lr", "0.01"]
    rl.main(flags)
    assert len(measures(tmp_path / "rl", "reading_sum")) == 2
    assert (tmp_path / "rl" / "samples" / "held_out.png").is_file()
    parts = {name: saved_model / name for name in ("image_tokenizer", "decoder", "vae")}
    saved = assemble(AssembleConfig(language_model=tmp_path / "rl" / "export", **parts, output=tmp_path / "model"))
    assert saved.weights["image_tokenizer"] == Rebus.load(saved_model).saved.weights["image_tokenizer"]
    assert Rebus.load(tmp_path / "model").draw("a cat")[0].image.size == (24, 24)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_under_deepspeed_draw_and_learn_what_one_does(tmp_path):
    flags = ["--preset", "mini", "--rewards.objects", "null", "--rewards.workers", "0", "--run.dtype", "float32"]
    flags += ["--model", str(MODEL), "--rewards.reading.model", str(MODEL), "--optim.lr", "0.001"]
    flags += ["--run.steps", "2", "--run.batch_size", "4", "--group_size", "2", "--num_validation", "1"]
    flags += ["--run.threads", "1", "--run.log_every", "1", "--show_every", "null"]
    flags += ["--grpo.least_spread", "0"]  # metrics are means over what each process learns from
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rebus.train.rl", *flags]
    command += ["--run.output", str(tmp_path / "two")]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert (tmp_path / "two" / "export" / "model.safetensors").exists(), done.stderr[-3000:]
    rl.main([*flags, "--run.output", str(tmp_path / "one")])
    for key in ("loss", "reward", "kl", "gradient_norm", "validation/reward"):
        assert measures(tmp_path / "two", key) == pytest.approx(measures(tmp_path / "one", key), rel=1e-3, abs=1e-5)
    assert measures(tmp_path / "one", "kl")[1] > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2, for a picture is measured against the others, got 1"),
        ({"group_size": 3}, "run.batch_size must be a multiple of group_size 3, got 8"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1, got 0"),
        ({"show_every": 0}, "show_every must be at least 1, got 0"),
        ({"tasks": {"seven": 1.0}}, "tasks must weigh some of one, two, count, position, background, sign, got"),
        ({"tasks": {}}, "tasks must weigh some of"),
        ({"training": LoraTraining(dropout=0.1)}, "training.dropout must be 0, for a policy is one and the same"),
        (
            {"training": LORA, "optim": OptimConfig(lr=1.0, frozen=("model.layers.0",))},
            "optim.frozen must be empty where not all trains, got",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(rl.tiny(), **changes)


def test_groups_must_divide_and_rewards_and_weights_must_make_sense(stage_of, tmp_path):
    with pytest.raises(ValueError, match="groups of a rollout must be a multiple of 4, got 2"):
        stage_of(config_of(tmp_path, accumulation=4))
    with pytest.raises(ValueError, match="at least one of objects, sign, reading, aesthetics, got none"):
        RewardsConfig()
    with pytest.raises(ValueError, match="rewards.workers must be at least 0, got -1"):
        RewardsConfig(sign=SignRewardConfig(), workers=-1)
    with pytest.raises(ValueError, match="run.zero_stage must be below 3"):
        replace(rl.tiny(), run=replace(rl.tiny().run, zero_stage=3))
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\] and weight be at least 0, got 2.0 and 0.1"):
        EntropyGuard(share=2.0)


def test_rewards_are_chosen_on_the_command_line_and_unknown_ones_are_refused(capsys):
    flags = ["--preset", "mini", "--rewards.objects", "null", "--rewards.sign.weight", "2", "--kl", "AdaptiveKl"]
    config = parse(rl.PRESETS, flags)
    assert set(config.rewards.chosen()) == {"sign"} and config.rewards.sign.weight == 2
    assert isinstance(config.kl, AdaptiveKl)
    with pytest.raises(SystemExit):
        parse(rl.PRESETS, ["--preset", "mini", "--rewards.aesthetics.weight", "2"])
    assert "aesthetics" in capsys.readouterr().err
    assert rl.mini().model == Path("assets/mini")
