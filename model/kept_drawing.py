"""Finetuning that keeps how a model draws: codes are learned from what a frozen teacher would draw, not from pictures.

So a model may be taught something else at a high rate, and goes on drawing as reinforcement taught it to.

Source: Li and Hoiem, "Learning without Forgetting", https://arxiv.org/abs/1606.09282, sec. 3: the answers of the model
before, to what is learned now, hold the old task in place.
Differs: the whole distribution over the codes of each position, at temperature 1, on pictures of the training itself.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from rebus.model.cross_entropy import linear_cross_entropy
from rebus.model.language_model import HeadTargets, LanguageBatch, final_states


def keeping_loss(
    model: PreTrainedModel, teacher: PreTrainedModel, batch: LanguageBatch
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Returns the mean loss of text plus the mean distance of the codes' distributions from the teacher's, in nats.

    Text and codes weigh the same, however many there are: few short answers are not lost among many codes.
    """
    hidden = final_states(model, batch)
    with torch.no_grad():
        taught = final_states(teacher, batch)
    text, *streams = batch.heads
    likelihood, _ = linear_cross_entropy(hidden[text.places], model.lm_head.weight[: text.stop], text.ids)
    text_loss = likelihood.sum() / batch.num_targets[0].clamp_min(1)
    distances = [_distance(_logs(model, hidden, head), _logs(teacher, taught, head)) for head in streams]
    distance = torch.stack(distances).sum() / batch.num_targets[1:].sum().clamp_min(1)
    return text_loss + distance, {"text_loss": text_loss.detach(), "code_distance": distance.detach()}


def _logs(
    model: PreTrainedModel, hidden: Float[Tensor, "positions dim"], head: HeadTargets
) -> Float[Tensor, "targets codes"]:
    return F.linear(hidden[head.places], model.lm_head.weight[head.start : head.stop]).float().log_softmax(dim=-1)


def _distance(learned: Float[Tensor, "targets codes"], taught: Float[Tensor, "targets codes"]) -> Float[Tensor, ""]:
    return F.kl_div(learned, taught, log_target=True, reduction="sum")
