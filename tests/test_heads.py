import itertools

import pytest
import torch

from rebus.model.heads import BitHeadConfig, DepthTransformerConfig, ParallelHeadsConfig
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import CodeLayout, Stream

DIM = 13
HEADS = [ParallelHeadsConfig(), DepthTransformerConfig(dim=12, num_layers=2, num_heads=3), BitHeadConfig()]
WEIGHTS = {"one branch": (1.0,), "two": (2.5, -1.5), "three": (2.0, -0.5, -0.5), "not used": (0.0, 1.0)}


def layout(*sizes: int) -> CodeLayout:
    return CodeLayout("sequence", 2, tuple(Stream(str(index), size) for index, size in enumerate(sizes)))


def built(config, *sizes):
    """A head far from uniform predictions."""
    head = config.build(DIM, layout(*sizes))
    generator = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return head.requires_grad_(False)


def hidden_states(number: int) -> torch.Tensor:
    return torch.randn(number, DIM, generator=torch.Generator().manual_seed(7))


def joint(head, hidden: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities that the loss gives to all vectors of codes, one dimension a stream."""
    every = torch.tensor(list(itertools.product(*map(range, sizes))))
    return -head.loss(hidden.expand(len(every), -1), every).view(sizes)


def guided(each: list[torch.Tensor], weights, temperature: float) -> torch.Tensor:
    """The probabilities of all vectors when every stream in turn is guided, from those of the branches alone."""
    num_streams, total = each[0].ndim, torch.zeros(each[0].shape)
    for stream in range(num_streams):
        mixed = torch.zeros(())
        for one, weight in zip(each, weights, strict=True):
            so_far = one.flatten(stream + 1).logsumexp(-1) if stream + 1 < num_streams else one
            mixed = mixed + weight * (so_far - so_far.logsumexp(-1, keepdim=True))
        step = (mixed / temperature).log_softmax(-1)
        total = total + step.view(step.shape + (1,) * (num_streams - stream - 1))
    return total.exp()


@pytest.mark.parametrize("config", HEADS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("sizes", [(8,), (4, 8), (2, 4, 2)])
def test_likelihoods_of_all_vectors_of_codes_sum_to_one(config, sizes):
    head = built(config, *sizes)
    for hidden in hidden_states(3):
        probabilities = joint(head, hidden, sizes).exp()
        torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
        assert probabilities.max() > 1.5 / probabilities.numel()  # far from uniform


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("config", HEADS, ids=lambda one: type(one).__name__)
def test_draws_follow_the_likelihoods(config, kind):
    """Two streams, drawn by a grid of numbers, so that frequencies are probabilities but for the grid's width."""
    sizes, weights, steps = (4, 8), WEIGHTS[kind], 150
    head, hidden = built(config, *sizes), hidden_states(len(weights))
    expected = guided([joint(head, one, sizes) for one in hidden], weights, temperature=0.8)
    grid = (torch.arange(steps) + 0.5) / steps
    uniforms = torch.cartesian_prod(grid, grid)
    codes = head.draw(hidden.unsqueeze(1).expand(-1, len(uniforms), -1), weights, Sampling(0.8), uniforms)
    frequencies = torch.bincount(codes[:, 0] * sizes[1] + codes[:, 1], minlength=expected.numel()).view(sizes)
    torch.testing.assert_close(frequencies / len(uniforms), expected, rtol=0, atol=1.5 / steps)


@pytest.mark.parametrize("config", HEADS, ids=lambda one: type(one).__name__)
def test_greedy_draws_and_those_of_the_likeliest_are_each_stream_s_mode(config):
    sizes = (4, 8, 2)
    head, hidden = built(config, *sizes), hidden_states(5)
    uniforms = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    greedy = head.draw(hidden.unsqueeze(0), (1.0,), Sampling(0.0), uniforms)
    assert torch.equal(greedy, head.draw(hidden.unsqueeze(0), (1.0,), Sampling(top_k=1), uniforms))
    for codes, one in zip(greedy.tolist(), hidden, strict=True):
        left = joint(head, one, sizes)
        for code in codes:
            best = left.flatten(1).logsumexp(-1) if left.ndim > 1 else left
            assert best.argmax() == code
            left = left[code]


@pytest.mark.parametrize("config", HEADS, ids=lambda one: type(one).__name__)
def test_a_row_that_is_no_number_fails_alone(config):
    head, hidden = built(config, 4, 8), hidden_states(6).view(2, 3, DIM)
    uniforms = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    whole = head.draw(hidden, (2.0, -1.0), Sampling(), uniforms)
    hidden[1, 1, 0] = float("nan")
    broken = head.draw(hidden, (2.0, -1.0), Sampling(), uniforms)
    assert (broken[1] == -1).all() and torch.equal(broken[[0, 2]], whole[[0, 2]])
    assert (head.draw(hidden, (1.0, 0.0), Sampling(), uniforms) >= 0).all()  # the broken branch is not read


def test_only_the_depth_transformer_knows_of_codes_before():
    codes = torch.tensor([[1, 5], [2, 5]])
    hidden = hidden_states(1).expand(2, -1)
    for config in HEADS:
        head = built(config, 4, 8)
        first = joint(head, hidden[0], (4, 8)).logsumexp(1)
        second = -head.loss(hidden, codes) - first[codes[:, 0]]
        assert torch.allclose(second[0], second[1], atol=1e-5) != isinstance(config, DepthTransformerConfig)


def test_bits_are_those_of_the_number():
    """The likeliest code has the bits whose logits are positive, the lowest first."""
    head = BitHeadConfig().build(3, layout(8))
    head.to_logits.weight.data = torch.eye(3)
    code = head.draw(torch.tensor([[[5.0, -5.0, 5.0]]]), (1.0,), Sampling(0.0), torch.zeros(1, 1))
    assert code.item() == 0b101


def test_sizes_of_bits_are_powers_of_two():
    with pytest.raises(ValueError, match=r"sizes of streams must be powers of 2 for a head of bits, got \(8, 12\)"):
        BitHeadConfig().build(DIM, layout(8, 12))
