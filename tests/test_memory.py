"""The estimate of memory against DeepSpeed's own, the paper's, and what autograd really keeps."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from rebus.model.language_model import DOCUMENT_ATTENTION, Documents
from rebus.train import pretrain, sft
from rebus.train.config import OptimConfig, RunConfig
from rebus.train.dry_run import launch_command
from rebus.train.loop import train
from rebus.train.memory import Memory, ModelSizes, activation_bytes, estimate, gibibytes
from rebus.train.out_of_memory import advice

ROWS, LENGTH = 2, 61
RUN = RunConfig(output=Path("unused"), steps=1, batch_size=64)
BARE = ModelSizes(
    weights=7_500_000_000,
    trainable=7_500_000_000,
    largest_layer=262_144_000,
    matrices=0,
    loaded_bytes=4 * 7_500_000_000,
)


def llama(num_layers: int, device: str = "cpu") -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=20,
        intermediate_size=112,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        return LlamaForCausalLM(config)


def run_of(**changes: Any) -> RunConfig:
    return replace(RUN, **changes)


def states(need: Memory) -> int:
    return need.weights + need.gradients + need.optimizer


def test_sizes_are_written_as_people_read_them() -> None:
    sizes = {1013 << 20: "1,013 MiB", 5 << 19: "2.5 MiB", 1 << 30: "1 GiB", 1234 << 30: "1,234 GiB"}
    assert {number: gibibytes(number) for number in sizes} == sizes


@pytest.mark.parametrize("world", [1, 4, 16])
def test_model_states_are_those_of_deepspeed(world: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    for offload in (False, True):
        run = run_of(deepspeed=True, zero_stage=2, offload=offload)
        host, device = estimate_zero2_model_states_mem_needs(
            BARE.weights, num_gpus_per_node=world, cpu_offload=offload, additional_buffer_factor=1
        )
        need = estimate(BARE, run, world, 0)
        assert (need.host * world, states(need)) == pytest.approx((host, device), rel=1e-6)
        host, device, _ = estimate_zero3_model_states_mem_needs(
            BARE.weights,
            BARE.largest_layer,
            num_gpus_per_node=world,
            cpu_offload=offload,
            cpu_offload_params=offload,
            zero_init=False,
            additional_buffer_factor=1,
        )
        need = estimate(BARE, replace(run, zero_stage=3), world, 0)
        assert (need.host * world, states(need)) == pytest.approx((host, device), rel=1e-6)


def test_model_states_are_those_of_the_paper() -> None:
    own_float32_gradients = 4 * BARE.weights / 64  # which the paper leaves out
    for stage, gigabytes in ((1, 31.4), (2, 16.6)):  # Figure 1: 7.5 billion weights, 64 processes
        need = estimate(BARE, run_of(zero_stage=stage), 64, 0)
        assert (states(need) - own_float32_gradients) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_plain_states_are_what_a_process_holds() -> None:
    model = llama(2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.0" not in name)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    model(input_ids=torch.ones(1, 3, dtype=torch.int64)).logits.sum().backward()
    optimizer.step()
    need = estimate(ModelSizes.of(model), run_of(dtype="float32"), 1, 0)
    assert need.weights == sum(one.nbytes for one in model.parameters())
    assert need.gradients == sum(one.grad.nbytes for one in model.parameters() if one.grad is not None)
    moments = [one[name] for one in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert need.optimizer == sum(one.nbytes for one in moments)
    model.lm_head.weight.ds_numel = model.lm_head.weight.numel()  # pyright: ignore[reportAttributeAccessIssue]
    model.lm_head.weight.data = torch.empty(0)  # as ZeRO 3 does
    assert estimate(ModelSizes.of(model), run_of(dtype="float32"), 1, 0) == need
    averaged = estimate(ModelSizes.of(model), run_of(dtype="float32", ema=0.9), 1, 0)
    assert averaged.optimizer == need.optimizer + need.gradients


def kept_bytes(model: LlamaForCausalLM, rounded: bool) -> int:
    """Bytes that a forward pass of the body keeps for the backward pass, the parameters apart."""
    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, Tensor] = {}  # holds them, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    by_documents = model.config._attn_implementation == DOCUMENT_ATTENTION
    documents = Documents((LENGTH,) * ROWS, torch.arange(LENGTH).repeat(ROWS, 1))
    options = {"attention_mask": None, "documents": documents} if by_documents else {}
    ids = torch.randint(97, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=rounded),
    ):
        positions = torch.arange(LENGTH).expand(ROWS, -1)
        output = model.model(input_ids=ids, position_ids=positions, use_cache=False, **options)
    del output
    return sum(one.untyped_storage().nbytes() for address, one in kept.items() if address not in parameters)


@pytest.mark.parametrize("attention", ["sdpa", DOCUMENT_ATTENTION])
@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "DeepSpeed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_are_what_autograd_keeps(dtype: str, sharded: bool, attention: str) -> None:
    model = llama(3).train()
    model.set_attn_implementation(attention)
    if sharded and dtype == "bfloat16":
        model.bfloat16()  # as DeepSpeed does
    sizes, run = ModelSizes.of(model), run_of(dtype=dtype)
    copies = estimate(sizes, run, 1, 0).weights - 4 * sizes.weights - 2 * 97 * 48 if not sharded else 0
    wanted = activation_bytes(sizes, run, ROWS, LENGTH, sharded) + (copies if dtype == "bfloat16" else 0)
    assert kept_bytes(model, dtype == "bfloat16") == pytest.approx(wanted, rel=0.01)


def test_recomputing_keeps_the_inputs_of_blocks() -> None:
    run = run_of(dtype="float32", activation_checkpointing=True)
    measured, reckoned = [], []
    for num_layers in (3, 5):
        model = llama(num_layers).train()
        reckoned.append(activation_bytes(ModelSizes.of(model), run, ROWS, LENGTH, False))
        model.activation_checkpointing_enable({"use_reentrant": False})
        measured.append(kept_bytes(model, False))
    assert measured[1] - measured[0] == reckoned[1] - reckoned[0] == 2 * ROWS * LENGTH * 48 * 4


def test_advice_makes_the_need_smaller_with_each_change() -> None:
    model = llama(3, "meta")
    run = run_of(ema=0.9, zero_stage=1)
    text = advice(model, run, 8, 512, torch.device("cuda"))
    flags = re.findall(r"--run\.(\w+) (\w+)", text)
    assert flags == [
        ("activation_checkpointing", "true"),
        ("accumulation", "8"),
        ("zero_stage", "2"),
        ("offload", "true"),
    ]
    needs = [float(number) for number in re.findall(r"([\d.]+) MiB(?= in each|\), --|\)$)", text)]
    assert len(needs) == 1 + len(flags) and needs == sorted(set(needs), reverse=True)
    on_one = advice(model, replace(run, accumulation=64), 1, 512, torch.device("cuda"))
    assert on_one.endswith(" MiB)") and "--run.deepspeed true --run.zero_stage 2 --run.offload true (" in on_one
    alone = run_of(dtype="float32", batch_size=1, activation_checkpointing=True)
    assert advice(model, alone, 1, 512, torch.device("cpu")).endswith("shorter rows, a smaller model or more processes")


class GreedyStage:
    """Asks for more memory than there is."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(3, 5)
        self.parts: dict[str, str] = {}

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        return torch.ones(4, 3)

    def loss(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model(batch).sum() + torch.empty(2**55).sum(), {}

    def validate(self) -> dict[str, float]:
        return {}

    def samples(self, folder: Path) -> None:
        pass

    def export(self, folder: Path) -> None:
        pass


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    run = RunConfig(output=tmp_path, steps=1, batch_size=4, dtype="float32", device="cpu")
    message = r"an estimated 0.000305 MiB in each process \(weights 7.63e-05 MiB.*: --run.accumulation 4 \("
    with pytest.raises(MemoryError, match=message):
        train(GreedyStage(), run, OptimConfig(lr=1.0), run)


def test_dry_runs_show_all_and_write_nothing(
    exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = ["--image_tokenizer", str(exports / "image_tokenizer"), "--run.batch_size", "16"]
    commands = {
        "pretrain": (pretrain.main, parts),
        "sft": (sft.main, [*parts, "--pretrained", str(exports / "language_model")]),
    }
    for name, (main, flags) in commands.items():
        for processes, launcher in (([], "python"), (["2"], "torchrun --standalone --nproc_per_node 2")):
            with pytest.raises(SystemExit) as left:
                main([*flags, "--dry_run", *processes])
            assert not left.value.code
            printed = capsys.readouterr().out
            assert '"batch_size": 16' in printed and ("DeepSpeed:" in printed) == bool(processes)
            assert "> ZeRO 1 " in printed if processes else "> one process" in printed
            assert printed.endswith(f"\n{launcher} -m rebus.train.{name} {' '.join(flags)}\n")
    with pytest.raises(SystemExit, match="2"):
        pretrain.main([*parts, "--dry_run", "3"])
    assert "run.batch_size must be a multiple of 3 processes, got 16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_launch_commands() -> None:
    assert launch_command("a.b", ["--c", "d e"], 1) == "python -m a.b --c 'd e'"
    many = "torchrun --nnodes 3 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint FIRST_NODE:29500 -m a.b"
    assert launch_command("a.b", [], 24) == f"{many}    # on every node"
    assert "--nnodes 3 --nproc_per_node 4" in launch_command("a.b", [], 12)
