"""Parts of a model that learn at their own rate or not at all."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rebus.train.config import OptimConfig
from rebus.train.parameter_groups import freeze, parameter_groups
from rebus.train.runtime import recompute_activations
from rebus.train.updates import PlainUpdater, adamw

OPTIM = OptimConfig(lr=1e-2)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=13,
            hidden_size=8,
            num_hidden_layers=11,
            num_attention_heads=2,
            intermediate_size=12,
            tie_word_embeddings=True,
        )
    )


def test_only_matrices_that_are_no_embeddings_decay(model: LlamaForCausalLM) -> None:
    decaying, rest = adamw(model, OPTIM).param_groups
    assert decaying["weight_decay"] == OPTIM.weight_decay and rest["weight_decay"] == 0.0
    assert len(decaying["params"]) == 11 * 7 and len(rest["params"]) == 11 * 2 + 2
    assert decaying["rate"] == rest["rate"] == 1.0


def test_parts_are_whole_names_and_the_longest_counts(model: LlamaForCausalLM) -> None:
    rates = {"model": 0.5, "model.layers.1": 0.25, "lm_head": 3.0}
    groups = parameter_groups(model, replace(OPTIM, rates=rates))
    rate_of = {id(parameter): group["rate"] for group in groups for parameter in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    assert {rate_of[id(one)] for one in model.model.layers[1].parameters()} == {0.25}
    assert {rate_of[id(one)] for one in model.model.layers[10].parameters()} == {0.5}
    assert rate_of[id(model.lm_head.weight)] == 3.0  # tied to model.embed_tokens, whose longest name is "model"


def test_steps_are_as_long_as_the_rates_say(model: LlamaForCausalLM) -> None:
    optim = replace(OPTIM, rates={"model.layers.2": 0.1}, frozen=("model.layers.1", "model.norm"), weight_decay=0.0)
    freeze(model, optim)
    ids = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(0))
    updater = PlainUpdater(model, lambda batch: (model(input_ids=batch, labels=batch).loss, {}), optim)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    updater.update([ids], 1e-2)
    # The first step of Adam is as long as its rate wherever there is a gradient.
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.state_dict().items()}
    for name, length in moved.items():
        part = ".".join(name.split(".")[:3])
        wanted = {"model.layers.1": 0.0, "model.norm.weight": 0.0, "model.layers.2": 1e-3}.get(part, 1e-2)
        assert length == pytest.approx(wanted, rel=0.05), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"frozen": ("model.layer",)},
            r"optim.frozen must name .* \(model.embed_tokens, model.layers, model.norm\), got",
        ),
        ({"frozen": ("model.layers.11",)}, r"\(model.layers.0, .*, model.layers.10\), got model.layers.11"),
        ({"rates": {"body": 0.1}}, r"optim.rates must name parts of the model \(model, lm_head\), got body"),
        ({"frozen": ("model",)}, r"optim.frozen must leave something that learns, got \['model'\]"),
    ],
)
def test_unknown_parts_are_refused(model: LlamaForCausalLM, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(model, replace(OPTIM, **changes))


def test_recomputed_activations_give_the_same_gradients(model: LlamaForCausalLM) -> None:
    ids = torch.randint(13, (2, 7), generator=torch.Generator().manual_seed(0))

    def gradients() -> tuple[list[torch.Tensor], int]:
        saved: set[int] = set()
        model.zero_grad()

        def note(tensor: torch.Tensor) -> torch.Tensor:
            saved.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            kept = len(saved)
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None], kept

    model.train()
    plain, num_kept = gradients()
    recompute_activations(model)
    again, num_kept_again = gradients()
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert num_kept_again < num_kept / 4
