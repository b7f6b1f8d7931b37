"""The building blocks: an autoencoder that is the identity, a tokenizer and text encoder made from a corpus."""

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from diffmem.errors import UsageError
from diffmem.testbeds.parts import clip_text_encoder, clip_tokenizer, identity_vae

CORPUS = ["a copper glacier", "the copper window", "seven glaciers", "A small, plain window"]
LEAST = 514


@settings(max_examples=20, deadline=None)
@given(
    channels=st.integers(1, 4),
    side=st.sampled_from([1, 4, 8, 17]),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["uniform", "black", "white", "one bright pixel"]),
)
def test_vae_is_the_identity_both_ways(channels, side, seed, kind):
    vae = identity_vae(channels, side)
    images = torch.rand((3, channels, side, side), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    if kind == "black":
        images = -torch.ones_like(images)
    elif kind == "white":
        images = torch.ones_like(images)
    elif kind == "one bright pixel":
        images = -torch.ones_like(images)
        images[..., 0, 0] = 1
    posterior = vae.encode(images).latent_dist
    assert (posterior.mean - images).abs().max() < 2e-5
    assert (posterior.sample() - images).abs().max() < 2e-5
    assert (vae.decode(images).sample - images).abs().max() < 2e-5


def test_vae_keeps_channels_apart():
    image = torch.zeros(1, 3, 8, 8)
    image[0, 1, 2, 5] = 1.0
    decoded = identity_vae(3, 8).decode(image).sample
    assert decoded[0, 1, 2, 5] == pytest.approx(1.0, abs=1e-5)
    assert decoded.abs().sum() == pytest.approx(1.0, abs=1e-4)


def test_vae_survives_saving_and_needs_no_scaling(tmp_path):
    identity_vae(1, 8).save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path)
    images = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    assert loaded.config.scaling_factor == 1
    assert (loaded.decode(images).sample - images).abs().max() < 2e-5


def test_vae_is_exact_to_rounding_in_bfloat16():
    images = (torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)).bfloat16()
    decoded = identity_vae(1, 8).to(torch.bfloat16).decode(images).sample
    assert (decoded - images).abs().max() <= 2**-7


def test_tokenizer_learns_whole_words_and_ignores_case():
    tokenizer = clip_tokenizer(CORPUS, 700, 16)
    assert tokenizer.tokenize("Copper WINDOW") == ["copper</w>", "window</w>"]
    ids = tokenizer("copper window").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(tokenizer) <= 700


def test_tokenizer_has_a_token_for_every_byte():
    tokenizer = clip_tokenizer(CORPUS, LEAST, 77)
    assert len(tokenizer) == LEAST
    text = "zq, ünï-42 雪"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.replace(" ", "").encode())
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "")


def test_tokenizer_is_a_function_of_the_corpus_and_survives_saving(tmp_path):
    first, second = clip_tokenizer(CORPUS, 700, 16), clip_tokenizer(CORPUS[::-1], 700, 16)
    assert first.get_vocab() == second.get_vocab()
    first.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 16
    for text in [*CORPUS, "an unheard-of word"]:
        assert loaded(text).input_ids == first(text).input_ids == second(text).input_ids


def test_tokenizer_refuses_a_vocabulary_without_all_bytes():
    with pytest.raises(UsageError, match=f"give {LEAST}"):
        clip_tokenizer(CORPUS, LEAST - 1, 16)


def test_text_encoder_fits_its_tokenizer():
    tokenizer = clip_tokenizer(CORPUS, 700, 12)
    encoder = clip_text_encoder(tokenizer, hidden=32, layers=1, heads=2, intermediate=48)
    ids = tokenizer(["copper", "a b c"], padding="max_length", return_tensors="pt").input_ids
    states = encoder(ids).last_hidden_state
    assert states.shape == (2, 12, 32)
    assert not encoder.training
    assert encoder.config.eos_token_id == tokenizer.eos_token_id
    # Causal attention: the first token cannot see what follows it.
    assert torch.allclose(states[0, 0], states[1, 0], atol=1e-6)
    assert not torch.allclose(states[0, 1], states[1, 1], atol=1e-3)
