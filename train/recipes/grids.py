"""Recipes whose codes lie on a grid: what differs is mostly the quantizer."""

from dataclasses import replace

from rebus.tokenizers.code_projection import BranchProjectionConfig
from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.any_size_vit import AnySizeVitPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.binary import LookupFreeConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.index_backprop import IndexBackpropConfig
from rebus.tokenizers.quantizers.parallel import BranchConfig, ParallelConfig
from rebus.tokenizers.quantizers.product import ProductConfig
from rebus.tokenizers.quantizers.scalar_after_training import ScalarAfterTrainingConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.train.recipes.sizes import MINI_DECODER, MINI_ENCODER, Size, mini, pixels_only, published
from rebus.train.tokenizer_stage import TokenizerStageConfig

MINI_CNN = CnnEncoderConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, dim=64, num_groups=8)
MINI_CNN_DECODER = CnnPixelDecoderConfig(channels=32, multipliers=(1, 2, 2), num_blocks=1, dim=64, num_groups=8)


def llamagen(size: Size) -> TokenizerStageConfig:
    """LlamaGen's VQ-16: convolutions, and short codes of unit length that learn by gradients.

    Source: Sun et al., "Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
    https://arxiv.org/abs/2406.06525, sec. 2.1; its code, https://github.com/FoundationVision/LlamaGen.
    """
    if size == "mini":
        codes = VectorConfig(codebook_size=1024, dim=16, normalized=True, update="gradient")
        return mini(
            ImageTokenizerConfig(encoder=MINI_CNN, quantizer=codes, pixel_decoder=MINI_CNN_DECODER), pixels_only()
        )
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(),
            quantizer=VectorConfig(codebook_size=16384, dim=8, normalized=True, update="gradient"),
            pixel_decoder=CnnPixelDecoderConfig(),
        ),
        pixels_only(),
        batch_size=128,
    )


def parti(size: Size) -> TokenizerStageConfig:
    """The ViT-VQGAN of Parti: a transformer on either side of short codes of unit length.

    Source: Yu et al., "Vector-quantized Image Modeling with Improved VQGAN", https://arxiv.org/abs/2110.04627, sec. 3;
    Yu et al., "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation",
    https://arxiv.org/abs/2206.10789, sec. 2.1.
    """
    codes = VectorConfig(codebook_size=1024, dim=32, normalized=True, update="gradient")
    if size == "mini":
        tokenizer = ImageTokenizerConfig(encoder=MINI_ENCODER, quantizer=codes, pixel_decoder=MINI_DECODER)
        return mini(tokenizer, pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VitEncoderConfig(patch_px=8, dim=512, depth=8, num_heads=8),
            quantizer=VectorConfig(codebook_size=8192, dim=32, normalized=True, update="gradient"),
            pixel_decoder=VitPixelDecoderConfig(dim=512, depth=8, num_heads=8),
        ),
        pixels_only(),
    )


def ett(size: Size) -> TokenizerStageConfig:
    """ETT's tokenizer: index backpropagation, so that every code learns at every step.

    Source: Wang et al., "End-to-End Vision Tokenizer Tuning", https://arxiv.org/abs/2505.10562, sec. 3; Shi et al.,
    "Scalable Image Tokenization with Index Backpropagation Quantization", https://arxiv.org/abs/2412.02692, sec. 3.2.
    """
    if size == "mini":
        codes = IndexBackpropConfig(codebook_size=1024, dim=32, entropy=0.05)
        return mini(ImageTokenizerConfig(encoder=MINI_ENCODER, quantizer=codes, pixel_decoder=MINI_DECODER))
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(num_blocks=4),
            quantizer=IndexBackpropConfig(codebook_size=131072, dim=256, entropy=0.05),
            pixel_decoder=CnnPixelDecoderConfig(num_blocks=4),
        )
    )


def fqgan(size: Size) -> TokenizerStageConfig:
    """FQGAN with two code books: adapters of one encoder, whose features are kept apart.

    Source: Bai et al., "Factorized Visual Tokenization and Generation", https://arxiv.org/abs/2411.16681, sec. 3.
    Differs: see `BranchProjection`.
    """
    short = VectorConfig(codebook_size=512 if size == "mini" else 16384, dim=8, normalized=True, update="gradient")
    codes = ParallelConfig(
        branches=(BranchConfig(name="semantic", quantizer=short), BranchConfig(name="visual", quantizer=short)),
        disentanglement=0.1,
    )
    if size == "mini":
        projection = BranchProjectionConfig(code_dims=(8, 8), hidden_dim=128)
        return mini(
            ImageTokenizerConfig(
                encoder=MINI_ENCODER, projection=projection, quantizer=codes, pixel_decoder=MINI_DECODER
            )
        )
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(dim=512),
            projection=BranchProjectionConfig(code_dims=(8, 8), hidden_dim=2048),
            quantizer=codes,
            pixel_decoder=CnnPixelDecoderConfig(),
        )
    )


def wetok(size: Size) -> TokenizerStageConfig:
    """WeTok: groups of eight bits.

    Source: Zhuang et al., "WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction",
    https://arxiv.org/abs/2508.05599, sec. 3.
    Differs: the decoder takes no noise; with the adversarial term, `NoisyCnnPixelDecoderConfig` does.
    """
    if size == "mini":
        codes = LookupFreeConfig(bits=8, groups=2)
        painter = replace(MINI_CNN_DECODER, cosine_start=False)  # signs are no coefficients
        return mini(ImageTokenizerConfig(encoder=MINI_CNN, quantizer=codes, pixel_decoder=painter), pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(channels=256, num_blocks=4, attention=False),
            quantizer=LookupFreeConfig(bits=8, groups=4),
            pixel_decoder=CnnPixelDecoderConfig(channels=256, num_blocks=4, attention=False),
        ),
        pixels_only(),
    )


def tokenbridge(size: Size) -> TokenizerStageConfig:
    """TokenBridge: each channel of a continuous auto-encoder's latents is rounded after the training.

    Source: Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation",
    https://arxiv.org/abs/2503.16430, sec. 3.
    """
    if size == "mini":
        codes = ScalarAfterTrainingConfig(dim=4, levels=16)
        tokenizer = ImageTokenizerConfig(encoder=MINI_ENCODER, quantizer=codes, pixel_decoder=MINI_DECODER)
        return mini(tokenizer, pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(dim=16),
            quantizer=ScalarAfterTrainingConfig(dim=16, levels=64),
            pixel_decoder=CnnPixelDecoderConfig(),
        ),
        pixels_only(),
    )


def meditok(size: Size) -> TokenizerStageConfig:
    """MedITok, as UniTok: eight code books, each for its share of the channels.

    Source: Ma et al., "MedITok: A Unified Tokenizer for Medical Image Synthesis and Interpretation",
    https://arxiv.org/abs/2505.19225, sec. 3; Ma et al., "UniTok", https://arxiv.org/abs/2502.20321, sec. 3.3.
    Differs: plain vision transformers, where theirs begin with convolutions (ViTamin); a matrix projects to the codes.
    """
    book = VectorConfig(codebook_size=4096, dim=8, normalized=True, update="gradient")
    if size == "mini":
        few = VectorConfig(codebook_size=256, dim=8, normalized=True, update="gradient")
        codes = ProductConfig(quantizer=few, groups=2)
        return mini(ImageTokenizerConfig(encoder=MINI_ENCODER, quantizer=codes, pixel_decoder=MINI_DECODER))
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VitEncoderConfig(patch_px=16, dim=1024, depth=24, num_heads=16),
            quantizer=ProductConfig(quantizer=book, groups=8),
            pixel_decoder=VitPixelDecoderConfig(dim=1024, depth=24, num_heads=16),
        )
    )


def atoken(size: Size) -> TokenizerStageConfig:
    """AToken for pictures: transformers for any size, and eight finite scalar codes a patch.

    Source: Lu et al., "AToken: A Unified Tokenizer for Vision", https://arxiv.org/abs/2509.14476, sec. 3.
    """
    if size == "mini":
        codes = ProductConfig(quantizer=FiniteScalarConfig(levels=(4, 4, 4, 4)), groups=2)
        sizes = AnySizeVitEncoderConfig(dim=192, depth=3, num_heads=3)
        painter = AnySizeVitPixelDecoderConfig(dim=192, depth=4, num_heads=3)
        return mini(ImageTokenizerConfig(encoder=sizes, quantizer=codes, pixel_decoder=painter))
    return published(
        ImageTokenizerConfig(
            image_sizes_px=tuple((height, width) for height in (256, 384, 512) for width in (256, 384, 512)),
            encoder=AnySizeVitEncoderConfig(dim=1152, depth=27, num_heads=16),
            quantizer=ProductConfig(quantizer=FiniteScalarConfig(levels=(4,) * 6), groups=8),
            pixel_decoder=AnySizeVitPixelDecoderConfig(dim=1152, depth=27, num_heads=16),
        )
    )
