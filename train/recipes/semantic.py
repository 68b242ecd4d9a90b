"""Recipes whose codes are made for a language model: their features come from a tower that knows what things are.

At mini size no such tower is at hand: a small transformer learns from pictures and captions, and where a recipe has a
teacher, that is the shipped image tokenizer.
"""

from dataclasses import replace
from typing import Any

from rebus.model.command_line import SHIPPED_MODEL
from rebus.tokenizers.code_projection import BranchProjectionConfig
from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.tower import TowerEncoderConfig
from rebus.tokenizers.encoders.two_branch import TwoBranchEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.multi_scale import MultiScaleConfig
from rebus.tokenizers.layouts.queries import QueriesConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.tokenizers.layouts.slots import SlotsConfig
from rebus.tokenizers.layouts.two_grids import TwoGridsConfig
from rebus.tokenizers.pixel_decoders.any_size_vit import AnySizeVitPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.in_turn import InTurnConfig
from rebus.tokenizers.quantizers.index_backprop import IndexBackpropConfig
from rebus.tokenizers.quantizers.parallel import BranchConfig, ParallelConfig
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.shared_index import SharedIndexConfig
from rebus.tokenizers.quantizers.simvq import SimVQConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.supervision.distillation import DistillationConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.tokenizers.supervision.teachers import TokenizerTeacherConfig
from rebus.train.recipes.grids import MINI_CNN, MINI_CNN_DECODER
from rebus.train.recipes.sizes import MINI_CODES, MINI_DECODER, MINI_ENCODER, Size, mini, published
from rebus.train.tokenizer_stage import TokenizerStageConfig

_EVA_G: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 224,
}
_SIGLIP_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 256,
}
_TAUGHT = SupervisionConfig(
    region=0.0,
    contrastive=0.05,
    caption=0.1,
    distillation=DistillationConfig(teacher=TokenizerTeacherConfig(path=SHIPPED_MODEL / "image_tokenizer"), weight=0.1),
)
"""Words more than pixels."""


def seed(size: Size) -> TokenizerStageConfig:
    """SEED: 32 causal queries over a frozen tower, with codes that are told from those before them.

    Source: Ge et al., "Planting a SEED of Vision in Large Language Model", https://arxiv.org/abs/2307.08041, sec. 3.
    Differs: pixels are painted by a light head, too; their decoder is Stable Diffusion alone.
    """
    if size == "mini":
        return mini(_mini_seed(), _TAUGHT)
    return published(_seed_frame(QueriesConfig(num_queries=32, depth=12, num_heads=16, order="causal"), _SEED_CODES))


def seed2(size: Size) -> TokenizerStageConfig:
    """SEED-2: as `seed`, told to agree with one embedding of the whole picture.

    Source: Ge et al., "Making LLaMA SEE and Draw with SEED Tokenizer", https://arxiv.org/abs/2310.01218, sec. 3.
    Differs: as `seed`.
    """
    if size == "mini":
        assert _TAUGHT.distillation is not None
        pooled = replace(_TAUGHT.distillation, pooled=True, weight=0.5)
        return mini(_mini_seed(), replace(_TAUGHT, distillation=pooled))
    return published(_seed_frame(QueriesConfig(num_queries=32, depth=12, num_heads=16, order="causal"), _SEED_CODES))


def slot_mllm(size: Size) -> TokenizerStageConfig:
    """Slot-MLLM: slots that share out the picture among them, four residual codes each.

    Source: Chi et al., "Slot-MLLM: Object-Centric Visual Tokenization for Multimodal LLM",
    https://arxiv.org/abs/2505.17726, sec. 3.
    Differs: as `seed`.
    """
    if size == "mini":
        codes = ResidualConfig(quantizer=MINI_CODES, depth=4, is_shared=True)
        slots = SlotsConfig(num_slots=32, depth=2, num_heads=3)
        return mini(replace(_mini_seed(), layout=slots, quantizer=codes), _TAUGHT)
    codes = ResidualConfig(quantizer=VectorConfig(codebook_size=8192, dim=32), depth=4, is_shared=True)
    return published(_seed_frame(SlotsConfig(num_slots=32, depth=12, num_heads=16), codes))


def lavit(size: Size) -> TokenizerStageConfig:
    """LaVIT: patches that say little are left out, and what they say is merged into the others.

    Source: Jin et al., "Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization",
    https://arxiv.org/abs/2309.04669, sec. 3.1.
    Differs: as `seed`.
    """
    if size == "mini":
        layout = SelectMergeConfig(target_share=0.5, depth=2, num_heads=3)
        return mini(replace(_mini_seed(), layout=layout), _TAUGHT)
    codes = VectorConfig(codebook_size=16384, dim=32, normalized=True)
    return published(_seed_frame(SelectMergeConfig(depth=12, num_heads=16), codes, num_layers=40))


def xomni(size: Size) -> TokenizerStageConfig:
    """X-Omni's SigLIP-VQ: a tower's patches, pictures of any size, codes that a language model has to understand.

    Source: Geng et al., "X-Omni: Reinforcement Learning Makes Discrete Autoregressive Image Generative Models Great
    Again", https://arxiv.org/abs/2507.22058, sec. 3.
    Differs: nine sizes of picture, not every multiple of 16; no convolutions after the quantizer.
    """
    if size == "mini":
        encoder = AnySizeVitEncoderConfig(dim=192, depth=3, num_heads=3)
        codes = IndexBackpropConfig(codebook_size=1024, dim=64, normalized=True, skipped=0.1)
        painter = AnySizeVitPixelDecoderConfig(dim=192, depth=4, num_heads=3)
        return mini(ImageTokenizerConfig(encoder=encoder, quantizer=codes, pixel_decoder=painter), _TAUGHT)
    siglip = {**_SIGLIP_SO400M, "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 40}
    sides = (384, 768, 1152)
    return published(
        ImageTokenizerConfig(
            image_sizes_px=tuple((height, width) for height in sides for width in sides),
            encoder=TowerEncoderConfig(kind="siglip_vision_model", architecture={**siglip, "image_size": 384}),
            quantizer=IndexBackpropConfig(codebook_size=16384, dim=2048, normalized=True, skipped=0.1),
            pixel_decoder=AnySizeVitPixelDecoderConfig(dim=768, depth=12, num_heads=12),
        )
    )


def illume(size: Size) -> TokenizerStageConfig:
    """ILLUME: the features of a tower are quantized and rebuilt.

    Source: Wang et al., "ILLUME: Illuminating Your LLMs to See, Draw, and Self-Enhance",
    https://arxiv.org/abs/2412.06673, sec. 3.
    Differs: as `seed`; its code is not public, and the sizes of tower and code book are ours.
    """
    if size == "mini":
        tokenizer = ImageTokenizerConfig(encoder=MINI_ENCODER, quantizer=MINI_CODES, pixel_decoder=MINI_DECODER)
        return mini(tokenizer, _TAUGHT)
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=TowerEncoderConfig(kind="siglip_vision_model", architecture=_SIGLIP_SO400M, frozen=True),
            quantizer=VectorConfig(codebook_size=16384, dim=32),
            pixel_decoder=VitPixelDecoderConfig(dim=768, depth=12, num_heads=12),
        )
    )


def illume_plus(size: Size) -> TokenizerStageConfig:
    """ILLUME+'s DualViTok: meaning on a coarse grid, then pixels on a fine one, each with a code book of its own.

    Source: Huang et al., "ILLUME+: Illuminating Unified MLLM with Dual Visual Tokenization and Diffusion Refinement",
    https://arxiv.org/abs/2504.01934, sec. 3.1; its code, https://github.com/illume-unified-mllm/ILLUME_plus.
    Differs: the tower has the shape of SigLIP with patches of 28 px; pictures of one size, 448 px, which is a multiple
    of both strides; the pixel branch does not read the semantic codes before it is quantized.
    """
    if size == "mini":
        coarse = VitEncoderConfig(patch_px=32, dim=192, depth=3, num_heads=3)
        return mini(
            ImageTokenizerConfig(
                encoder=TwoBranchEncoderConfig(semantic=coarse, pixel=MINI_CNN, sequence_dim=192),
                layout=TwoGridsConfig(),
                quantizer=InTurnConfig(
                    num_first=16,
                    first=SimVQConfig(codebook_size=512, dim=32),
                    rest=SimVQConfig(codebook_size=1024, dim=32),
                ),
                pixel_decoder=MINI_CNN_DECODER,
            ),
            _TAUGHT,
        )
    tower = {**_SIGLIP_SO400M, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    return published(
        ImageTokenizerConfig(
            image_size_px=448,
            encoder=TwoBranchEncoderConfig(
                semantic=TowerEncoderConfig(architecture={**tower, "patch_size": 28, "image_size": 448}),
                pixel=CnnEncoderConfig(),
                sequence_dim=1280,
            ),
            layout=TwoGridsConfig(),
            quantizer=InTurnConfig(
                num_first=256,
                first=SimVQConfig(codebook_size=32768, dim=32),
                rest=SimVQConfig(codebook_size=98304, dim=32),
            ),
            pixel_decoder=CnnPixelDecoderConfig(channels=384),
        )
    )


def tokenflow(size: Size) -> TokenizerStageConfig:
    """TokenFlow: meaning and pixels share one id, scale after scale.

    Source: Qu et al., "TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation",
    https://arxiv.org/abs/2412.03069, sec. 3.
    Differs: what is told of the teacher's features is told by the supervision, not by a decoder that is kept.
    """
    if size == "mini":
        return mini(
            ImageTokenizerConfig(
                encoder=TwoBranchEncoderConfig(semantic=MINI_ENCODER, pixel=MINI_CNN),
                projection=BranchProjectionConfig(code_dims=(32, 8), reads=((0, 192), (192, 256))),
                layout=MultiScaleConfig(scales=(1, 2, 4, 8), num_phi=0, drop_rate=0.1),
                quantizer=SharedIndexConfig(quantizer=VectorConfig(codebook_size=1024, dim=40, commitment=1.0)),
                pixel_decoder=MINI_CNN_DECODER,
            ),
            _TAUGHT,
        )
    tower = {**_SIGLIP_SO400M, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    return published(
        ImageTokenizerConfig(
            image_size_px=224,
            encoder=TwoBranchEncoderConfig(
                semantic=TowerEncoderConfig(
                    kind="clip_vision_model", architecture={**tower, "num_attention_heads": 12, "image_size": 224}
                ),
                pixel=CnnEncoderConfig(),
            ),
            projection=BranchProjectionConfig(code_dims=(32, 8), reads=((0, 768), (768, 1024)), hidden_dim=768),
            layout=MultiScaleConfig(scales=(1, 2, 4, 6, 8, 10, 12, 14), num_phi=0, drop_rate=0.1),
            quantizer=SharedIndexConfig(quantizer=VectorConfig(codebook_size=32768, dim=40)),
            pixel_decoder=CnnPixelDecoderConfig(),
        )
    )


def dualtoken(size: Size) -> TokenizerStageConfig:
    """DualToken: pixels from a shallow layer of a tower, meaning from a deep one, residual codes for each.

    Source: Song et al., "DualToken: Towards Unifying Visual Understanding and Generation with Dual Visual
    Vocabularies", https://arxiv.org/abs/2503.14324, sec. 3; its code, https://github.com/songweii/DualToken.
    Differs: see `BranchProjection`.
    """
    if size == "mini":
        tower = {**_SIGLIP_SO400M, "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3}
        few = ResidualConfig(quantizer=replace(MINI_CODES, codebook_size=256), depth=2, is_shared=True)
        return mini(
            ImageTokenizerConfig(
                encoder=TowerEncoderConfig(
                    architecture={**tower, "num_attention_heads": 3, "image_size": 128}, taps=(1, 3)
                ),
                projection=BranchProjectionConfig(code_dims=(32, 32), reads=((0, 192), (192, 384))),
                quantizer=_pixels_and_meaning(few),
                pixel_decoder=MINI_DECODER,
            ),
            _TAUGHT,
        )
    many = ResidualConfig(quantizer=VectorConfig(codebook_size=16384, dim=32), depth=4, is_shared=True)
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=TowerEncoderConfig(architecture=_SIGLIP_SO400M, taps=(6, 26)),
            projection=BranchProjectionConfig(code_dims=(32, 32), reads=((0, 1152), (1152, 2304)), hidden_dim=1152),
            layout=GridConfig(),
            quantizer=_pixels_and_meaning(many),
            pixel_decoder=CnnPixelDecoderConfig(multipliers=(1, 1, 4, 4, 8)),
        )
    )


_SEED_CODES = VectorConfig(codebook_size=8192, dim=32)


def _mini_seed() -> ImageTokenizerConfig:
    return ImageTokenizerConfig(
        encoder=replace(MINI_ENCODER, depth=2),
        layout=QueriesConfig(num_queries=32, depth=2, num_heads=3, order="causal"),
        quantizer=MINI_CODES,
        pixel_decoder=MINI_DECODER,
    )


def _seed_frame(layout: Any, codes: Any, num_layers: int = 39) -> ImageTokenizerConfig:
    """Returns what SEED, Slot-MLLM and LaVIT have in common: layouts over the patches of a frozen EVA-CLIP-g."""
    tower = {**_EVA_G, "num_hidden_layers": num_layers}
    return ImageTokenizerConfig(
        image_size_px=224,
        encoder=TowerEncoderConfig(kind="clip_vision_model", architecture=tower, frozen=True),
        layout=layout,
        quantizer=codes,
        pixel_decoder=VitPixelDecoderConfig(dim=768, depth=4, num_heads=12),
    )


def _pixels_and_meaning(codes: ResidualConfig) -> ParallelConfig:
    return ParallelConfig(
        branches=(BranchConfig(name="pixel", quantizer=codes), BranchConfig(name="semantic", quantizer=codes))
    )
