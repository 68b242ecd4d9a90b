"""A Llama that reads and writes a picture position by position: what a stock class cannot express.

The body is a stock Llama over text and control ids. Beside it stand an input for the positions of pictures
(``visual_input.py``), a head for their codes (``heads.py``), and blocks that only pictures go through, if asked for.
It is an option for systems that need one of these; a stock model over the whole vocabulary (``language_model.py``) is
the default.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from rebus.model.cross_entropy import linear_cross_entropy
from rebus.model.heads import BitHead, DepthTransformer, HeadConfig, ParallelHeads, ParallelHeadsConfig
from rebus.model.language_model import LanguageModelConfig, attention_options, document_lengths, start_matrices
from rebus.model.llama_parts import LlamaParts, llama_parts
from rebus.model.picture_positions import GivenFeatures, PositionBatch
from rebus.model.sampling import Sampling
from rebus.model.visual_input import (
    CodeRows,
    CodeRowsConfig,
    ContinuousFeatures,
    ProjectedCodes,
    VisualInputConfig,
)
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class VisionLayersConfig:
    """Blocks before and after those of the language model that change pictures only.

    Text goes past them, but pictures see it there. Pictures have a final norm of their own then.

    Source: Geng et al., "X-Omni", https://arxiv.org/abs/2507.22058.
    Differs: the token that opens a picture goes through them too, so that all codes are predicted from behind them.
    """

    num_first: int = 4
    """Blocks before those of the language model."""
    num_last: int = 4
    """Blocks after them."""

    def __post_init__(self) -> None:
        if min(self.num_first, self.num_last) < 0 or self.num_first + self.num_last < 1:
            got = f"{self.num_first} and {self.num_last}"
            raise ValueError(f"num_first and num_last must be at least 0 and together at least 1, got {got}")


@dataclass(frozen=True, kw_only=True)
class VisualLlamaConfig:
    """A language model with its own input and head for pictures."""

    language: LanguageModelConfig = LanguageModelConfig()
    """The blocks that text goes through."""
    visual_input: VisualInputConfig = CodeRowsConfig()
    """What is seen of a picture."""
    head: HeadConfig = ParallelHeadsConfig()
    """What predicts the codes of a position."""
    vision_layers: VisionLayersConfig | None = None
    """Blocks for pictures alone; none by default."""

    def build(self, vocabulary: Vocabulary, generator: torch.Generator) -> "VisualLlama":
        """Builds the model with fresh weights, as those of ``LanguageModelConfig``.

        Raises:
            ValueError: if pictures may have several sizes.
        """
        if vocabulary.layout.grids:
            got = f"the sizes {vocabulary.layout.grids}"
            raise ValueError(f"pictures of a model that draws whole positions must all have one size, got {got}")
        extra = self.vision_layers
        num_layers = self.language.num_layers + (extra.num_first + extra.num_last if extra else 0)
        language = replace(self.language, num_layers=num_layers)
        llama = language.build_llama(vocabulary, vocabulary.control_range[1], generator)
        visual_input = self.visual_input.build(self.language.dim, vocabulary.layout)
        head = self.head.build(self.language.dim, vocabulary.layout)
        start_matrices(visual_input, generator)
        start_matrices(head, generator)
        return VisualLlama(self, vocabulary, llama, visual_input, head)


class VisualLlama(nn.Module):
    """A stock Llama with its own input and head for pictures; see `VisualLlamaConfig`."""

    starts: Tensor

    def __init__(
        self,
        config: VisualLlamaConfig,
        vocabulary: Vocabulary,
        llama: LlamaForCausalLM,
        visual_input: CodeRows | ProjectedCodes | ContinuousFeatures,
        head: ParallelHeads | DepthTransformer | BitHead,
    ) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.llama, self.visual_input, self.head = llama, visual_input, head
        layers, extra = range(llama.config.num_hidden_layers), config.vision_layers
        self.vision_blocks = frozenset(
            () if extra is None else (*layers[: extra.num_first], *layers[len(layers) - extra.num_last :])
        )
        self.vision_norm = None if extra is None else deepcopy(llama.model.norm)
        starts = [vocabulary.code_range(stream)[0] for stream in range(len(vocabulary.layout.streams))]
        self.register_buffer("starts", torch.tensor(starts), persistent=False)

    def embed(
        self, ids: Int[Tensor, "positions streams"], given: GivenFeatures | None = None
    ) -> Float[Tensor, "positions dim"]:
        """Returns what the first block reads.

        Raises:
            ValueError: if features are given to an input that reads codes only, or have another width.
        """
        is_code = ids[:, 0] >= self.vocabulary.control_range[1]
        embeddings = self.llama.model.embed_tokens(ids[:, 0].masked_fill(is_code, self.vocabulary.pad))
        embeddings[is_code] = self.visual_input.of_codes(ids[is_code] - self.starts)
        if given is not None:
            embeddings[given.places] = self.visual_input.of_features(given.features)
        return embeddings

    def is_vision(self, ids: Int[Tensor, "*batch streams"]) -> Bool[Tensor, "*batch"]:
        """Returns which positions go through the blocks for pictures: those of codes, and what opens a picture."""
        return (ids[..., 0] >= self.vocabulary.control_range[1]) | (ids[..., 0] == self.vocabulary.begin_picture)

    def forward(self, batch: PositionBatch) -> Float[Tensor, "positions dim"]:
        """Returns the final hidden states of packed documents, rows laid end to end."""
        body = self.llama.model
        flat = rearrange(batch.ids, "rows length streams -> (rows length) streams")
        hidden = rearrange(self.embed(flat, batch.given), "(rows length) dim -> rows length dim", rows=len(batch.ids))
        attention = attention_options(self.llama, batch.documents, batch.positions, document_lengths(batch.documents))
        turns = body.rotary_emb(hidden, position_ids=batch.positions)
        is_vision = self.is_vision(batch.ids).unsqueeze(-1)
        for index, block in enumerate(body.layers):
            changed = block(hidden, position_embeddings=turns, **attention)
            hidden = torch.where(is_vision, changed, hidden) if index in self.vision_blocks else changed
        normed = body.norm(hidden)
        if self.vision_norm is not None:
            normed = torch.where(is_vision, self.vision_norm(hidden), normed)
        return rearrange(normed, "rows length dim -> (rows length) dim")

    def loss(self, batch: PositionBatch) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Returns the mean negative log-likelihood of all ids to be learned in nats, and that of text and of codes.

        Every code counts as an id, so that the figures are those of a stock model that reads and writes them flat.
        """
        hidden = self(batch)
        text_hidden, weight = hidden[batch.text_places], self.llama.lm_head.weight
        text = linear_cross_entropy(text_hidden, weight, batch.text_ids)[0].sum()
        codes = self.head.loss(hidden[batch.code_places], batch.codes).sum()
        counts = batch.num_targets.clamp_min(1)
        metrics = {"text_loss": text.detach() / counts[0], "code_loss": codes.detach() / counts[1]}
        return (text + codes) / batch.num_targets.sum().clamp_min(1), metrics

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns the codes of the next position; see `CodeHead`."""
        return self.head.draw(hidden, weights, sampling, uniforms)

    def decoding_parts(self) -> LlamaParts:
        """Returns the weights of the body, arranged for decoding."""
        norm = None if self.vision_norm is None else self.vision_norm.weight.detach()
        return replace(llama_parts(self.llama), vision_blocks=self.vision_blocks, vision_norm=norm)

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"config": config_to_json(self.config), "vocabulary": self.vocabulary.to_dict()}
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        del state["llama.lm_head.weight"]  # the embedding once more
        safetensors.torch.save_file(state, folder / "model.safetensors")

    @staticmethod
    def load(folder: Path, device: str | torch.device = "cpu") -> "VisualLlama":
        """Reads a saved model, in eval mode and the dtype that it was saved in.

        Raises:
            ValueError: if the folder is no saved model of this kind or its weights do not fit its config.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} must hold a saved language model (config.json), got no such file")
        values = json.loads((folder / "config.json").read_text())
        if set(values) != {"config", "vocabulary"}:
            raise ValueError(f"{folder}: config.json must have config and vocabulary, got {sorted(values)}")
        config = config_from_json(VisualLlamaConfig, values["config"])
        model = config.build(Vocabulary.from_dict(values["vocabulary"]), torch.Generator().manual_seed(0))
        state = safetensors.torch.load_file(folder / "model.safetensors")
        try:
            embedding = state["llama.model.embed_tokens.weight"]
            model.to(embedding.dtype).load_state_dict({**state, "llama.lm_head.weight": embedding})
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{folder}: the weights must fit config.json, got {error}") from error
        return model.to(device).eval()
