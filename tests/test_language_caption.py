"""The caption as a language model tells it from the codes."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.language_caption import LanguageCaption, LanguageCaptionConfig

PAD = 3
CANVAS = Canvas(feature_dim=2, num_features=5, on_grid=True, grids=((1, 5),), patch_px=8)


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=19, num_key_value_heads=1))


def build(learns=False, weight=1.0):
    return LanguageCaption(llama(), CANVAS, 19, PAD, weight=weight, learns=learns).train()


def test_it_is_the_models_own_loss_of_the_caption(inputs):
    term, taught = build(weight=0.5), inputs()
    model, captions = llama().eval(), taught.captions
    codes = torch.nn.functional.layer_norm(term.project(taught.coded.features), (16,)) * term.scale
    embeds = torch.cat([codes, model.get_input_embeddings()(captions)], dim=1)
    labels = torch.cat([torch.full((6, 5), -100), captions.masked_fill(captions == PAD, -100)], dim=1)
    labels[:, 5] = -100  # the piece that opens the text is given
    expected = model(inputs_embeds=embeds, labels=labels).loss
    torch.testing.assert_close(term(taught), {"language_caption": 0.5 * expected})
    words = model.get_input_embeddings().weight.norm(dim=-1).mean()
    torch.testing.assert_close(codes.norm(dim=-1).mean(), words, rtol=1e-2, atol=0)


def test_padding_and_missing_codes_change_nothing(inputs):
    term, taught = build(), inputs()
    longer = replace(taught, captions=torch.nn.functional.pad(taught.captions, (0, 4), value=PAD))
    torch.testing.assert_close(term(taught), term(longer))
    coded = replace(taught.coded, features_mask=torch.arange(5).expand(6, 5) < 3)
    other = replace(coded, features=torch.where(coded.features_mask[..., None], coded.features, 9.0))
    short = term(replace(taught, coded=coded))
    torch.testing.assert_close(short, term(replace(taught, coded=other)))
    assert not torch.allclose(short["language_caption"], term(taught)["language_caption"])


@pytest.mark.parametrize("learns", [False, True])
def test_gradients_reach_the_codes_and_only_a_model_that_learns(learns, inputs):
    term, taught = build(learns), inputs()
    features = taught.coded.features.requires_grad_()
    term(taught)["language_caption"].backward()
    assert features.grad.any() and term.project[0].weight.grad.any()
    assert all((parameter.grad is not None) == learns for parameter in term.model.parameters())
    assert next(term.model.children()).training == learns


@pytest.mark.slow
def test_it_teaches_features_the_caption(inputs):
    term, taught = build(learns=True), inputs()
    features = taught.coded.features.requires_grad_()
    optimizer = torch.optim.AdamW([features, *term.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = term(taught)["language_caption"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    # Without the codes the same model no longer knows which caption it was.
    blind = replace(taught, coded=replace(taught.coded, features=features.detach().flip(0)))
    assert term(blind)["language_caption"] > 3 * losses[-1]


def test_it_is_loaded_from_a_folder_and_must_know_the_pieces(exports, text_tokenizer, tmp_path):
    config = LanguageCaptionConfig(path=exports / "language_model")
    term = config.build(CANVAS, text_tokenizer.num_pieces, text_tokenizer.special.pad)
    assert not any(parameter.requires_grad for parameter in term.model.parameters())
    with pytest.raises(ValueError, match="must know all 5000 pieces of the captions, got "):
        config.build(CANVAS, 5000, 3)
    with pytest.raises(ValueError, match="must hold a model of transformers"):
        LanguageCaptionConfig(path=tmp_path).build(CANVAS, 19, PAD)
