import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebus.model import cross_entropy
from rebus.model.cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(cross_entropy, "TILE_SIZE", 16)


def problem(num_targets: int, num_ids: int = 103, dim: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and ids; every other id is the likeliest one."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_targets, dim, generator=generator)
    weight = torch.randn(num_ids, dim, generator=generator)
    ids = torch.randint(num_ids, (num_targets,), generator=generator)
    ids[::2] = (hidden @ weight.T).argmax(dim=1)[::2]
    return hidden.requires_grad_(), weight.requires_grad_(), ids


def plain(hidden, weight, ids):
    logits = F.linear(hidden, weight).float()
    right = logits.gather(1, ids.unsqueeze(1)).squeeze(1) == logits.amax(dim=1)
    return F.cross_entropy(logits, ids, reduction="none"), right


def results(function, hidden, weight, ids) -> list[torch.Tensor]:
    """Losses, those that are right, and gradients when each loss weighs differently."""
    losses, right = function(hidden, weight, ids)
    factors = torch.linspace(0.5, 2, len(ids))
    return [losses, right, *torch.autograd.grad((losses * factors).sum(), [hidden, weight])]


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("num_ids", [7, 16, 64, 103])
def test_float32_is_exact(num_ids):
    inputs = problem(37, num_ids)
    wanted, got = results(plain, *inputs), results(linear_cross_entropy, *inputs)
    assert torch.equal(got[1], wanted[1]) and got[1].any() and not got[1].all()
    for index in (0, 2, 3):
        assert relative_error(got[index], wanted[index]) < 1e-6


def test_logits_far_from_zero_do_not_overflow():
    hidden, weight, ids = problem(37)
    inputs = ((hidden * 100).detach().requires_grad_(), weight, ids)
    wanted, got = results(plain, *inputs), results(linear_cross_entropy, *inputs)
    assert wanted[0].max() > 1000
    for index in (0, 2, 3):
        assert relative_error(got[index], wanted[index]) < 1e-6


def test_bfloat16_is_as_near_to_the_truth_as_the_plain_way():
    inputs = problem(512)
    truth = results(plain, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, got = results(plain, *inputs), results(linear_cross_entropy, *inputs)
    assert got[0].dtype == got[2].dtype == got[3].dtype == torch.float32
    assert torch.equal(got[1], wanted[1])  # the same logits, rounded alike
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-5)
    for index in (2, 3):
        assert 1e-4 < relative_error(got[index], truth[index]) < 1.1 * relative_error(wanted[index], truth[index])


def test_no_target_no_loss():
    losses, right, *gradients = results(linear_cross_entropy, *problem(0))
    assert losses.shape == right.shape == (0,)
    assert [gradient.shape for gradient in gradients] == [(0, 24), (103, 24)]
    assert not gradients[1].any()


def test_a_frozen_weight_has_no_gradient():
    hidden, weight, ids = problem(37)
    (wanted,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, ids)[0].sum(), [hidden])
    linear_cross_entropy(hidden, weight.detach(), ids)[0].sum().backward()
    assert torch.equal(hidden.grad, wanted) and weight.grad is None


class LargestTensor(TorchDispatchMode):
    """Notes how many numbers the largest result of an operator has."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(result)]
        self.numel = max(self.numel, *sizes)
        return result


@pytest.mark.parametrize(("function", "largest"), [(plain, 400 * 1000), (linear_cross_entropy, 1000 * 24)])
def test_no_tensor_is_larger_than_the_weight(function, largest):
    inputs = problem(400, 1000)
    with LargestTensor() as seen:
        results(function, *inputs)
    assert seen.numel == largest


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_a_compiled_loss_calls_it_uncompiled():
    hidden, weight, ids = problem(37)
    compiled = torch.compile(lambda hidden: linear_cross_entropy(hidden * 2, weight, ids)[0].sum(), backend="eager")
    wanted = linear_cross_entropy(hidden * 2, weight, ids)[0].sum()
    got = compiled(hidden)
    assert torch.equal(got, wanted)
    assert torch.equal(*(torch.autograd.grad(one, [hidden])[0] for one in (got, wanted)))


def test_an_id_that_the_vocabulary_lacks_has_no_likelihood():
    hidden, weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.ones(10, 4)
    likelihood, right = linear_cross_entropy(hidden, weight, torch.tensor([-100, 9, 10]))
    assert likelihood.isnan().tolist() == [True, False, True] and not right[[0, 2]].any()
