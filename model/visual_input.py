"""What the language model sees at the positions of a picture: the input path, chosen apart from what predicts codes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.tokenizers.tokens import CodeLayout

Lookup = Callable[[Int[Tensor, "batch positions streams"]], Float[Tensor, "batch positions dim"]]
"""Returns the features that codes stand for, as ``Quantizer.lookup`` does."""
_NUM_CHECKED = 64


class VisualInput(Protocol):
    """Embeds the positions of pictures."""

    def of_codes(self, codes: Int[Tensor, "positions streams"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of codes, each counted from the first of its stream."""
        ...

    def of_features(self, features: Float[Tensor, "positions feature_dim"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of features that are given for a picture, in place of those of its codes.

        Raises:
            ValueError: if only codes are read, or the features have another width.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class CodeRowsConfig:
    """Rows of an embedding, as for any other id."""

    def build(self, dim: int, layout: CodeLayout) -> "CodeRows":
        """Builds the embedding for a language model of a width."""
        return CodeRows(dim, tuple(stream.size for stream in layout.streams))


class CodeRows(nn.Module):
    """One row of an embedding for each code; the rows of the streams of a position are added up."""

    starts: Tensor

    def __init__(self, dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = nn.Embedding(sum(sizes), dim)
        self.register_buffer("starts", _starts(sizes), persistent=False)

    def of_codes(self, codes: Int[Tensor, "positions streams"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of codes; see `VisualInput`."""
        return self.rows(codes + self.starts).sum(dim=1)

    def of_features(self, features: Float[Tensor, "positions feature_dim"]) -> Float[Tensor, "positions dim"]:
        """Raises, since only codes are read; see `VisualInput`."""
        raise ValueError(f"features must be left out where rows of codes are read, got {tuple(features.shape)}")


@dataclass(frozen=True, kw_only=True)
class ProjectedCodesConfig:
    """The image tokenizer's features of codes through a small MLP."""

    code_dim: int
    """Width of the features."""
    hidden_dim: int = 1024
    """Width inside the MLP."""

    def build(self, dim: int, layout: CodeLayout) -> "ProjectedCodes":
        """Builds the MLP for a language model of a width; the features of the codes are zeros until they are placed."""
        return ProjectedCodes(dim, tuple(stream.size for stream in layout.streams), self.code_dim, self.hidden_dim)


class ProjectedCodes(nn.Module):
    """The image tokenizer's features of codes through a small MLP: what codes have in common need not be learned anew.

    The features are kept with the model, frozen. An image tokenizer that learns along with it gives them itself, as
    ``of_features(tokenizer.embed(tokens))``, and gets gradients.

    Source: Qu et al., "TokenFlow", https://arxiv.org/abs/2412.03069; Wang et al., "End-to-End Vision Tokenizer
    Tuning", https://arxiv.org/abs/2505.10562 (ETT).
    """

    starts: Tensor
    table: Tensor

    def __init__(self, dim: int, sizes: tuple[int, ...], code_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("starts", _starts(sizes), persistent=False)
        self.register_buffer("table", torch.zeros(sum(sizes), code_dim))
        self.project = _mlp(code_dim, hidden_dim, dim)

    def place(self, lookup: Lookup) -> None:
        """Takes the features of the codes from a quantizer.

        Raises:
            ValueError: if they have another width, or those of a position are not the sum of what its codes add.
        """
        features = code_features(lookup, self.sizes, self.table.device)
        if features.shape[1] != self.table.shape[1]:
            raise ValueError(f"features of codes must have {self.table.shape[1]} channels, got {features.shape[1]}")
        self.table.copy_(features)

    def of_codes(self, codes: Int[Tensor, "positions streams"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of codes; see `VisualInput`."""
        return self.project(self.table[codes + self.starts].sum(dim=1))

    def of_features(self, features: Float[Tensor, "positions feature_dim"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of features of codes; see `VisualInput`."""
        return self.project(_checked(features, self.table.shape[1]).to(self.table))


@dataclass(frozen=True, kw_only=True)
class ContinuousFeaturesConfig:
    """The encoder's features before quantization for pictures that are given."""

    feature_dim: int
    """Width of the encoder's features."""
    code_dim: int
    """Width of the features of codes."""
    hidden_dim: int = 1024
    """Width inside each MLP."""

    def build(self, dim: int, layout: CodeLayout) -> "ContinuousFeatures":
        """Builds the MLPs for a language model of a width; the features of the codes are zeros until placed."""
        codes = ProjectedCodesConfig(code_dim=self.code_dim, hidden_dim=self.hidden_dim).build(dim, layout)
        return ContinuousFeatures(dim, codes, self.feature_dim, self.hidden_dim)


class ContinuousFeatures(nn.Module):
    """Features before quantization for pictures that are given; what the model writes itself it reads as codes.

    Source: Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization",
    https://arxiv.org/abs/2309.04669 (LaVIT); Huang et al., "ILLUME+", https://arxiv.org/abs/2504.01934.
    Differs: LaVIT reads its own codes as rows of the embedding.
    """

    def __init__(self, dim: int, codes: ProjectedCodes, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.codes = codes
        self.feature_dim = feature_dim
        self.project = _mlp(feature_dim, hidden_dim, dim)

    def of_codes(self, codes: Int[Tensor, "positions streams"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of codes; see `VisualInput`."""
        return self.codes.of_codes(codes)

    def of_features(self, features: Float[Tensor, "positions feature_dim"]) -> Float[Tensor, "positions dim"]:
        """Returns the embeddings of the encoder's features; see `VisualInput`."""
        return self.project(_checked(features, self.feature_dim).to(self.codes.table))


VisualInputConfig = CodeRowsConfig | ProjectedCodesConfig | ContinuousFeaturesConfig


@torch.no_grad()
def code_features(lookup: Lookup, sizes: tuple[int, ...], device: torch.device) -> Float[Tensor, "codes code_dim"]:
    """Returns what each code of all streams adds to the features of its position.

    So it is where streams are residuals, and where each has channels of its own.

    Raises:
        ValueError: if the features of a position are no such sum.
    """
    firsts = torch.zeros(1, 1, len(sizes), dtype=torch.long, device=device)
    parts = []
    for stream, size in enumerate(sizes):
        ids = firsts.repeat(1, size, 1)
        ids[0, :, stream] = torch.arange(size, device=device)
        parts.append(lookup(ids)[0] - (lookup(firsts)[0] if stream else 0))
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(size, (1, _NUM_CHECKED), generator=generator) for size in sizes]
    some = torch.stack(columns, dim=-1).to(device)
    sums = torch.stack([part[some[0, :, stream]] for stream, part in enumerate(parts)]).sum(dim=0)
    if not torch.allclose(sums, lookup(some)[0], rtol=1e-4, atol=1e-4):
        raise ValueError(
            "features of a position must be the sum of what its codes add, got a quantizer of another kind"
        )
    return torch.cat(parts)


def _mlp(dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden_dim, bias=False), nn.GELU(), nn.Linear(hidden_dim, out_dim, bias=False))


def _checked(features: Float[Tensor, "positions feature_dim"], dim: int) -> Float[Tensor, "positions feature_dim"]:
    if features.shape[1] != dim:
        raise ValueError(f"features must have {dim} channels, got {features.shape[1]}")
    return features


def _starts(sizes: tuple[int, ...]) -> Int[Tensor, " streams"]:
    return torch.tensor((0, *sizes[:-1])).cumsum(dim=0)
