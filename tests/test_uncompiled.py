"""Functions that torch.compile leaves as they are."""

import pytest
import torch

from rebus.tokenizers.uncompiled import uncompiled


@uncompiled
def summed(values):
    """Cumulative sums."""
    return inner(values)


def inner(values):
    return values.cumsum(dim=0)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_it_and_what_it_calls_are_in_no_compiled_graph():
    seen = set()

    def backend(graph, inputs):
        seen.update(node.target for node in graph.graph.nodes if node.op == "call_method")
        return graph

    compiled = torch.compile(lambda values: summed(values.abs()).prod(), backend=backend)
    values = torch.linspace(-1, 2, 7)
    assert torch.equal(compiled(values), values.abs().cumsum(dim=0).prod())
    assert "abs" in seen and "prod" in seen and "cumsum" not in seen


def test_it_is_the_function_where_nothing_is_compiled():
    assert torch.equal(summed(torch.ones(3)), torch.tensor([1.0, 2.0, 3.0]))
    assert summed.__doc__ == "Cumulative sums."
