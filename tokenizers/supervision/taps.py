"""What layers inside a network put out, asked for by the layers' names."""

import difflib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rebus.tokenizers.image_tokenizer import ImageTokenizer


class Taps:
    """Keeps the last outputs of some of a network's layers until they are taken."""

    def __init__(self, network: nn.Module, layers: Iterable[str]) -> None:
        """Listens to layers, named as in ``network.named_modules()``.

        Raises:
            ValueError: if the network has no layer of a name.
        """
        self._outputs: dict[str, Tensor] = {}
        self._hooks = [
            layer_named(network, name).register_forward_hook(self._keep_as(name)) for name in dict.fromkeys(layers)
        ]

    def take(self) -> dict[str, Tensor]:
        """Returns the outputs since the last call by the layers' names, and forgets them."""
        outputs = dict(self._outputs)
        self._outputs.clear()
        return outputs

    def close(self) -> None:
        """Listens no more."""
        for hook in self._hooks:
            hook.remove()

    def _keep_as(self, name: str) -> Callable[..., None]:
        def keep(layer: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            del layer, inputs
            self._outputs[name] = output if isinstance(output, Tensor) else output[0]

        return keep


def layer_named(network: nn.Module, name: str) -> nn.Module:
    """Returns the layer of a network that has a name.

    Raises:
        ValueError: if there is none.
    """
    layers = {path: layer for path, layer in network.named_modules() if path}
    if name not in layers:
        near = difflib.get_close_matches(name, layers, n=3, cutoff=0.0)
        raise ValueError(f"layer must be one of the {type(network).__name__}, such as {', '.join(near)}, got {name}")
    return layers[name]


@torch.no_grad()
def layer_widths(tokenizer: ImageTokenizer, layers: Iterable[str]) -> dict[str, int]:
    """Returns how many channels the outputs of a tokenizer's layers have, as a black picture shows.

    Raises:
        ValueError: if it has no layer of a name, or painting a picture does not use it.
    """
    names = list(layers)
    taps, training = Taps(tokenizer, names), tokenizer.training
    height, width = tokenizer.config.sizes_px[0]
    black = torch.zeros(1, 3, height, width, device=next(tokenizer.parameters()).device)
    tokenizer.eval().paint(tokenizer.quantize(black))
    tokenizer.train(training)
    taps.close()
    outputs = taps.take()
    if idle := [name for name in names if name not in outputs]:
        raise ValueError(f"layer must be one that coding or painting a picture runs, got {', '.join(idle)}")
    return {name: output.shape[channel_axis(output)] for name, output in outputs.items()}


def channel_axis(output: Tensor) -> int:
    """Returns where the channels of a layer's output lie: second in a map, last in a sequence."""
    return 1 if output.ndim == 4 else -1
