"""The adapter of a borrowed decoder: codes of one image tokenizer to what one kind of base reads."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Int
from torch import Tensor

from rebus.model.borrowed_decoders.choice import FamilyConfig
from rebus.model.borrowed_decoders.code_features import LookupFeatures
from rebus.model.borrowed_decoders.contract import Condition, Head
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.quantizers.choice import QuantizerConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.tokens import CodeLayout, Tokens


@dataclass(frozen=True, kw_only=True)
class AdapterParts:
    """The configs that an adapter is built from."""

    family: FamilyConfig
    """What kind of base it serves, and how."""
    quantizer: QuantizerConfig
    """That of the image tokenizer."""


class CodeAdapter(ModelMixin, ConfigMixin):
    """All that is learned where the base stays frozen; saved and loaded as any model of diffusers."""

    @register_to_config
    def __init__(self, parts: dict[str, Any], layout: dict[str, Any], tokenizer_hash: str) -> None:
        """Builds an adapter with fresh weights from plain values, as ``config.json`` holds them.

        Args:
            parts: an ``AdapterParts``.
            layout: the codes' layout.
            tokenizer_hash: that of the image tokenizer.
        """
        super().__init__()
        configs = config_from_json(AdapterParts, parts)
        self.family = configs.family
        self.layout = CodeLayout.from_dict(layout)
        self.layout.check_one_size("a borrowed decoder")
        self.tokenizer_hash = tokenizer_hash
        self.features = self.family.features.build(self.layout, configs.quantizer.build())
        self.head: Head = self.family.build_head(self.features.dim, self.layout)

    @classmethod
    def of(cls, family: FamilyConfig, tokenizer: ImageTokenizer) -> "CodeAdapter":
        """Builds an adapter with fresh weights for the codes of an image tokenizer.

        Raises:
            ValueError: if pictures have several sizes, or the base cannot read such codes.
        """
        parts = AdapterParts(family=family, quantizer=tokenizer.config.quantizer)
        adapter = cls(config_to_json(parts), tokenizer.layout.to_dict(), tokenizer.hash)
        if isinstance(adapter.features, LookupFeatures):
            known: Any = tokenizer.quantizer
            adapter.features.quantizer.load_state_dict(known.state_dict())
        return adapter

    def forward(self, ids: Int[Tensor, "batch positions streams"]) -> Condition:
        """Returns what the base reads; -1 is a missing code, and all missing is no condition at all."""
        return self.head(self.features(ids), (ids >= 0).all(dim=-1))

    def ids(self, tokens: Tokens | Int[Tensor, "batch positions streams"]) -> Int[Tensor, "batch positions streams"]:
        """Returns codes, or a prefix of them, as ``forward`` takes them: -1 up to the length of the layout.

        Args:
            tokens: codes; plain ids may have -1 beyond a picture's length.

        Raises:
            ValueError: if they are of another layout, out of range, or too many.
        """
        if not isinstance(tokens, Tokens):
            lengths = (tokens >= 0).all(dim=-1).sum(dim=1)
            tokens = Tokens(tokens, lengths, self.layout)
        if tokens.layout != self.layout:
            raise ValueError(f"tokens must have the adapter's layout {self.layout}, got {tokens.layout}")
        return F.pad(tokens.ids, (0, 0, 0, self.layout.num_positions - tokens.ids.shape[1]), value=-1)

    def check_tokenizer(self, tokenizer_hash: str) -> None:
        """Refuses codes of another image tokenizer.

        Raises:
            ValueError: if the hash is not that of the training.
        """
        if tokenizer_hash != self.tokenizer_hash:
            raise ValueError(f"tokenizer_hash must be {self.tokenizer_hash}, as in training, got {tokenizer_hash}")
