"""Recipes whose codes are a sequence without a place in the picture."""

from dataclasses import replace

from rebus.tokenizers.autoencoder import AutoencoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.vae_latents import VaeLatentsEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.choice import LayoutConfig
from rebus.tokenizers.layouts.halting import HaltingQueriesConfig
from rebus.tokenizers.layouts.holistic_grid import HolisticGridConfig
from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.layouts.levels import ResidualLevelsConfig
from rebus.tokenizers.layouts.queries import QueriesConfig
from rebus.tokenizers.layouts.recurrent_crops import RecurrentCropsConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.binary import BinarySphericalConfig
from rebus.tokenizers.quantizers.choice import QuantizerConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.none import ContinuousConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.train.code_perturbation import CodePerturbationConfig
from rebus.train.recipes.grids import MINI_CNN
from rebus.train.recipes.sizes import (
    MINI_CODES,
    MINI_DECODER,
    MINI_PATCHES,
    Size,
    mini,
    pixels_only,
    published,
)
from rebus.train.tokenizer_stage import TokenizerStageConfig

_READ = QueriesConfig(num_queries=64, depth=2, num_heads=3)
_SHORT_CODES = VectorConfig(codebook_size=4096, dim=12, normalized=True, update="gradient")


def titok(size: Size) -> TokenizerStageConfig:
    """TiTok-L-32: free queries read the patches in the blocks of one transformer.

    Source: Yu et al., "An Image is Worth 32 Tokens for Reconstruction and Generation",
    https://arxiv.org/abs/2406.07550, sec. 3.2.
    Differs: no class token; pixels are painted at once, not the codes of another tokenizer first.
    """
    if size == "mini":
        return mini(_mini(_READ), pixels_only())
    return published(_titok_like(1024, 24, 16, QueriesConfig(num_queries=32, depth=24, num_heads=16, start="learned")))


def one_d_piece(size: Size) -> TokenizerStageConfig:
    """One-D-Piece-B-256: TiTok with one length, drawn for each batch, beyond which queries are dropped.

    Source: Miwa et al., "One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
    https://arxiv.org/abs/2501.10064, sec. 3.
    Differs: as `titok`.
    """
    lengths = LengthsConfig(draw="uniform", scope="batch")
    if size == "mini":
        return mini(_mini(replace(_READ, lengths=lengths)), pixels_only())
    queries = QueriesConfig(num_queries=256, depth=12, num_heads=12, start="learned", lengths=lengths)
    return published(_titok_like(768, 12, 12, queries))


def flextok(size: Size) -> TokenizerStageConfig:
    """FlexTok d18-d28: causal registers over the latents of an auto-encoder, cut at powers of two.

    Source: Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
    https://arxiv.org/abs/2502.13967, sec. 3.
    Differs: the decoder here paints pixels at once; the flow decoder is trained on the codes afterwards.
    """
    if size == "mini":
        registers = replace(_READ, order="causal", lengths=LengthsConfig())
        return mini(_mini(registers, FiniteScalarConfig(levels=(8, 8, 4, 4))), pixels_only())
    registers = QueriesConfig(
        num_queries=256, depth=18, num_heads=18, order="causal", start="learned", lengths=LengthsConfig()
    )
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VaeLatentsEncoderConfig(autoencoder=_autoencoder(latent_channels=16), patch=2, dim=1152),
            layout=registers,
            quantizer=FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5)),
            pixel_decoder=VitPixelDecoderConfig(dim=1792, depth=28, num_heads=28),
        ),
        pixels_only(),
    )


def gigatok(size: Size) -> TokenizerStageConfig:
    """GigaTok B-L: convolutions before queries that start from pooled features, and gradients that turn with codes.

    Source: Xiong et al., "GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image
    Generation", https://arxiv.org/abs/2504.08736, sec. 3.
    Differs: patches and queries attend to each other at once, where theirs have a second attention from queries to
    patches.
    """
    codes = VectorConfig(codebook_size=16384, dim=8, normalized=True, update="gradient", estimator="rotation")
    if size == "mini":
        few = replace(codes, codebook_size=1024, dim=16)
        return mini(replace(_mini(_READ, few), encoder=replace(MINI_CNN, dim=192)))
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(dim=768, attention=False),
            layout=QueriesConfig(num_queries=256, depth=12, num_heads=12),
            quantizer=codes,
            pixel_decoder=CnnPixelDecoderConfig(dim=1024, depth=24, num_heads=16, attention=False),
        )
    )


def robusttok(size: Size) -> TokenizerStageConfig:
    """RobustTok: the decoder learns from codes of which some are replaced by near ones.

    Source: Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis",
    https://arxiv.org/abs/2503.08354, sec. 3.
    """
    perturbation = CodePerturbationConfig(share=0.1, rate=1.0)
    if size == "mini":
        codes = replace(MINI_CODES, neighbours=100)
        return replace(mini(_mini(_READ, codes)), perturbation=perturbation)
    config = published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VitEncoderConfig(dim=768, depth=0),
            layout=QueriesConfig(num_queries=256, depth=12, num_heads=12, start="learned"),
            quantizer=VectorConfig(codebook_size=4096, dim=64, normalized=True, update="gradient", neighbours=100),
            pixel_decoder=VitPixelDecoderConfig(dim=768, depth=12, num_heads=12),
        )
    )
    return replace(config, perturbation=perturbation)


def instella(size: Size) -> TokenizerStageConfig:
    """Instella-T2I: queries whose codes are bits, 64 of them each.

    Source: Wang et al., "Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation",
    https://arxiv.org/abs/2506.21022, sec. 3.
    Differs: bits are signs with gradients passed straight through, not drawn; eight of them make up a stream; patches
    are not merged between the blocks.
    """
    if size == "mini":
        return mini(_mini(_READ, BinarySphericalConfig(bits=8, groups=2)), pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=1024,
            encoder=VitEncoderConfig(dim=768, depth=0),
            layout=QueriesConfig(num_queries=128, depth=12, num_heads=12, start="learned"),
            quantizer=BinarySphericalConfig(bits=8, groups=8),
            pixel_decoder=VitPixelDecoderConfig(dim=1024, depth=16, num_heads=16),
        ),
        pixels_only(),
    )


def layton(size: Size) -> TokenizerStageConfig:
    """Layton: queries read the latents of an auto-encoder, 256 codes for a picture of 1,024 pixels.

    Source: Xie et al., "Layton: Latent Consistency Tokenizer for 1024-pixel Image Reconstruction and Generation by 256
    Tokens", https://arxiv.org/abs/2503.08377, sec. 3.
    Differs: its code is not public, and its sizes are ours; the decoder here paints pixels at once.
    """
    if size == "mini":
        return mini(_mini(replace(_READ, num_queries=32)), pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=1024,
            encoder=VaeLatentsEncoderConfig(autoencoder=_autoencoder(latent_channels=4), patch=4, dim=1024),
            layout=QueriesConfig(num_queries=256, depth=12, num_heads=16, start="learned"),
            quantizer=VectorConfig(codebook_size=16384, dim=12, normalized=True, update="gradient"),
            pixel_decoder=VitPixelDecoderConfig(dim=1024, depth=12, num_heads=16),
        ),
        pixels_only(),
    )


def karl(size: Size) -> TokenizerStageConfig:
    """KARL: one pass says how many codes a picture needs for the error that is asked for.

    Source: Duggal et al., "Single-pass Adaptive Image Tokenization for Minimum Program Search",
    https://arxiv.org/abs/2507.07995, sec. 3.
    Differs: pixels are painted at once, not the codes of another tokenizer first.
    """
    if size == "mini":
        return mini(_mini(HaltingQueriesConfig(num_queries=64, depth=2, num_heads=3)), pixels_only())
    queries = HaltingQueriesConfig(num_queries=256, depth=8, num_heads=8)
    return published(_titok_like(1024, 8, 8, queries))


def hita(size: Size) -> TokenizerStageConfig:
    """Hita: queries for the whole picture, then its patches, with one code book.

    Source: Zheng et al., "Holistic Tokenizer for Autoregressive Image Generation", https://arxiv.org/abs/2507.02358,
    sec. 3.
    Differs: features of a frozen DINOv2 do not join those of the encoder; both kinds of codes have one code book.
    """
    if size == "mini":
        layout = HolisticGridConfig(num_holistic=16, depth=1, num_heads=3)
        return mini(replace(_mini(layout), encoder=replace(MINI_PATCHES, depth=2)))
    return published(
        ImageTokenizerConfig(
            image_size_px=336,
            encoder=CnnEncoderConfig(dim=512),
            layout=HolisticGridConfig(num_holistic=128, depth=6, num_heads=8),
            quantizer=VectorConfig(codebook_size=16384, dim=8, normalized=True, update="gradient"),
            pixel_decoder=CnnPixelDecoderConfig(dim=512, depth=3, num_heads=8),
        )
    )


def restok(size: Size) -> TokenizerStageConfig:
    """ResTok: levels of queries, each for what the levels before it leave over.

    Source: Zhang et al., "ResTok: Learning Hierarchical Residuals in 1D Visual Tokenizers for Autoregressive Image
    Generation", https://arxiv.org/abs/2601.03955, sec. 3.
    """
    if size == "mini":
        return mini(_mini(ResidualLevelsConfig(num_queries=64, depth=3, num_stages=3, num_heads=3)))
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=CnnEncoderConfig(dim=1024, attention=False),
            layout=ResidualLevelsConfig(num_queries=128, depth=24, num_heads=16),
            quantizer=VectorConfig(codebook_size=8192, dim=8, normalized=True, update="gradient"),
            pixel_decoder=CnnPixelDecoderConfig(dim=1024, depth=24, num_heads=16, attention=False),
        )
    )


def comit(size: Size) -> TokenizerStageConfig:
    """COMiT: a message that is rewritten crop by crop.

    Source: Davtyan et al., "Communication-Inspired Tokenization for Structured Image Representations",
    https://arxiv.org/abs/2602.20731, sec. 3.
    Differs: encoder and decoder are two transformers; see `RecurrentCrops`.
    """
    if size == "mini":
        layout = RecurrentCropsConfig(num_positions=64, depth=2, num_heads=3)
        return mini(replace(_mini(layout, FiniteScalarConfig(levels=(8, 8, 4, 4))), encoder=replace(MINI_PATCHES)))
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VaeLatentsEncoderConfig(autoencoder=_autoencoder(latent_channels=4), patch=2, dim=768),
            layout=RecurrentCropsConfig(num_positions=256, depth=12, num_heads=12, start="learned"),
            quantizer=FiniteScalarConfig(levels=(8, 8, 8, 5, 5, 5)),
            pixel_decoder=VitPixelDecoderConfig(dim=768, depth=12, num_heads=12),
        )
    )


def textok(size: Size) -> TokenizerStageConfig:
    """TexTok: encoder and decoder read the caption; features are not quantized at published size.

    Source: Zha et al., "Language-Guided Image Tokenization for Generation", https://arxiv.org/abs/2412.05796, sec. 3.
    Differs: see `TextCondition`; at mini size codes are discrete, as in TA-TiTok, so that it can be compared.
    """
    if size == "mini":
        return mini(replace(_mini(_READ), text=TextConditionConfig()), pixels_only())
    return published(
        ImageTokenizerConfig(
            image_size_px=256,
            encoder=VitEncoderConfig(dim=768, depth=0),
            layout=QueriesConfig(num_queries=32, depth=12, num_heads=12, start="learned"),
            quantizer=ContinuousConfig(dim=8, kl=1e-6),
            pixel_decoder=VitPixelDecoderConfig(dim=768, depth=12, num_heads=12),
            text=TextConditionConfig(num_pieces=32_000, length=128, dim=768, depth=12, num_heads=12),
        ),
        pixels_only(),
    )


def _autoencoder(latent_channels: int) -> AutoencoderConfig:
    """Returns one of the shape of Stable Diffusion's; its weights are the user's to name."""
    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    sizes = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": latent_channels}
    return AutoencoderConfig(architecture={**sizes, "down_block_types": down, "up_block_types": up})


def _mini(layout: LayoutConfig, codes: QuantizerConfig = MINI_CODES) -> ImageTokenizerConfig:
    return ImageTokenizerConfig(encoder=MINI_PATCHES, layout=layout, quantizer=codes, pixel_decoder=MINI_DECODER)


def _titok_like(
    dim: int, depth: int, num_heads: int, layout: LayoutConfig, codes: QuantizerConfig = _SHORT_CODES
) -> ImageTokenizerConfig:
    """Returns a tokenizer whose blocks are all in the layout, where patches and queries read each other."""
    return ImageTokenizerConfig(
        image_size_px=256,
        encoder=VitEncoderConfig(dim=dim, depth=0),
        layout=layout,
        quantizer=codes,
        pixel_decoder=VitPixelDecoderConfig(dim=dim, depth=depth, num_heads=num_heads),
    )
