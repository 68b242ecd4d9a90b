"""What quantizers of several processes tell each other: sums and counts, so that all learn from the data of all."""

import torch.distributed as distributed
from jaxtyping import Float
from torch import Tensor


def num_processes() -> int:
    """Returns how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def add_over_processes(*tensors: Tensor) -> None:
    """Replaces tensors by their sums over processes; all must call it alike."""
    if num_processes() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def mean_over_processes(sums: Float[Tensor, "*shape"], count: Float[Tensor, ""]) -> Float[Tensor, "*shape"]:
    """Returns the sums of all processes over the counts of all processes; all must call it alike.

    The gradient is such that its average over processes, as a training takes it, is that of a single process which
    had all of the data; so nothing is to be exchanged on the way back.
    """
    total, total_count = sums.detach().clone(), count.detach().clone()
    add_over_processes(total, total_count)
    total_count = total_count.clamp_min(1)
    own = sums * (num_processes() / total_count)
    return total / total_count + (own - own.detach())
