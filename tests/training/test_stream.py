"""The training stream: duplication, captions and their changes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_sd, tiny_tokenizer
from tests.training.test_training import pictures, plan_of

from diffmem.models.conditioning import Conditioning
from diffmem.models.target import Target
from diffmem.randomness import generator
from diffmem.training import changes as plain
from diffmem.training.batch import Latents, Samples, add_noise, mix
from diffmem.training.captions import CaptionDraw, captions_of, cut_captions
from diffmem.training.changes import add_tokens, repeat_words, replace_caption
from diffmem.training.duplication import Order, repeated, weights
from diffmem.training.loop import Trainer
from diffmem.training.objective import noisy, target
from diffmem.training.plan import ChangesPlan, DataPlan, DuplicationPlan


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=1, max_size=12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_epoch_holds_each_image_as_often_as_its_weight(given_weights, seed):
    if sum(given_weights) == 0:
        with pytest.raises(ValueError, match="weights"):
            Order(given_weights, seed)
        return
    order, length = Order(given_weights, seed), int(sum(given_weights))
    for epoch in range(3):
        counts = Counter(order[epoch * length + i] for i in range(length))
        assert counts == Counter({i: int(w) for i, w in enumerate(given_weights) if w})
    assert order[5 * length] == Order(given_weights, seed)[5 * length]


def test_fractional_weights_hold_on_average():
    order = Order([0.25, 1.0], 3)
    counts = Counter(order[i] for i in range(2000))
    assert counts[0] / 2000 == pytest.approx(0.2, abs=0.03)


def test_repeated_images_are_the_stated_share_and_named_by_the_seed():
    ids = [str(i) for i in range(100)]
    plan = DuplicationPlan(regime="dup_both", share=0.05, weight=5)
    assert len(repeated(ids, plan, 0)) == 5
    assert repeated(ids, plan, 0) == repeated(ids, plan, 0) != repeated(ids, plan, 1)
    assert sorted(weights(ids, plan, 0))[-6:] == [1, 5, 5, 5, 5, 5]
    assert repeated(ids, DuplicationPlan(), 0) == frozenset()


def draws(changes=None, several=frozenset(), drop=0.0, image=0, count=400):
    tokenizer, _ = tiny_tokenizer()
    data = pictures()
    plan = DataPlan(images="x", caption_drop=drop)
    draw = CaptionDraw(captions_of(data, plan, tokenizer, 0), several, plan, ChangesPlan(**(changes or {})), tokenizer)
    return [draw(image, generator(0, "test", i)) for i in range(count)]


def test_captions_are_drawn_as_the_regime_says():
    assert set(draws()) == {"a picture 0"}
    assert set(draws({"multiple_captions": 2})) == {"a picture 0", "another name 0"}
    assert set(draws(several=frozenset({0}))) == {"a picture 0", "another name 0"}
    assert set(draws(several=frozenset({1}))) == {"a picture 0"}
    dropped = sum(text is None for text in draws(drop=0.25))
    assert dropped / 400 == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("change", ["caption_replacement", "token_addition", "word_repetition"])
def test_changes_happen_at_their_rate(change):
    changed = sum(text != "a picture 0" for text in draws({change: 0.3}))
    assert changed / 400 == pytest.approx(0.3, abs=0.08)


def test_each_change_does_what_it_is_called():
    tokenizer, _ = tiny_tokenizer()
    caption = "a red fox in snow"
    random = generator(0, "x")
    added = add_tokens(caption, tokenizer, random, 3).split()
    assert len(added) == 8 and [w for w in added if w in caption.split()][:1]
    repeated_words = repeat_words(caption, random, 2).split()
    assert len(repeated_words) == 7 and set(repeated_words) == set(caption.split())
    assert len(replace_caption(caption, tokenizer, random, 4).split()) == 4
    assert repeat_words("", random) == ""


def test_caption_regimes():
    tokenizer, _ = tiny_tokenizer()
    data = pictures()
    regimes = {
        name: captions_of(data, DataPlan(images="x", captions=name), tokenizer, 0)
        for name in ("fixed", "class", "random", "none")
    }
    assert set(regimes["fixed"]) == {("An image",)}
    assert regimes["class"][:2] == [("An image of 0",), ("An image of 1",)]
    assert len({c for (c,) in regimes["random"]}) == len(data)
    assert regimes["random"] == captions_of(data, DataPlan(images="x", captions="random"), tokenizer, 0)
    assert set(regimes["none"]) == {("",)}


def test_noise_and_mixing_of_embeddings():
    values = torch.zeros(200, 3, 16)
    cond = Conditioning({"encoder_hidden_states": values, "encoder_attention_mask": torch.ones(200, 3)}, 200)
    noisy_cond = add_noise(cond, 0.1, 0, [("t", i) for i in range(200)])
    assert noisy_cond.tensors["encoder_hidden_states"].std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy_cond.tensors["encoder_attention_mask"], torch.ones(200, 3))
    one = add_noise(cond.select([7]), 0.1, 0, [("t", 7)])
    assert torch.equal(one.tensors["encoder_hidden_states"][0], noisy_cond.tensors["encoder_hidden_states"][7])
    other = Conditioning({"encoder_hidden_states": values + 1, "encoder_attention_mask": torch.ones(200, 3)}, 200)
    mixed = mix(cond, other, torch.full((200,), 0.75))
    assert torch.allclose(mixed.tensors["encoder_hidden_states"], torch.tensor(0.25))


def test_captions_that_the_encoder_does_not_read_to_the_end_are_said():
    tokenizer, _ = tiny_tokenizer()
    limit = tokenizer.model_max_length
    short, long = "a " * (limit - 2), "a " * (limit - 1)  # the tokens of begin and end count
    assert [len(tokenizer(text).input_ids) for text in (short, long)] == [limit, limit + 1]
    assert cut_captions([(short,), (short, "a")], tokenizer) == []
    (note,) = cut_captions([(short,), (long, "a")], tokenizer)
    assert note.startswith(f"1 of 3 captions are longer than the {limit} tokens")


def test_plain_functions_on_tensors():
    random = generator(0, "plain")
    zeros = torch.zeros(50, 4, 32)
    assert plain.add_noise(zeros, random).std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(plain.add_noise(zeros, generator(1)), plain.add_noise(zeros, generator(1)))
    assert plain.add_noise(zeros.half(), random).dtype == torch.float16
    mixed = plain.mix(zeros[:2], zeros[:2] + 1, torch.tensor([0.75, 0.0]))
    assert torch.equal(mixed.mean((1, 2)), torch.tensor([0.25, 1.0]))
    assert sum(plain.happens(random) for _ in range(4000)) / 4000 == pytest.approx(0.1, abs=0.02)
    drawn = Counter(plain.draw_caption([str(i) for i in range(30)], random) for _ in range(4000))
    assert set(drawn) == {str(i) for i in range(20)} and max(drawn.values()) < 300


@pytest.mark.parametrize("a", [0.1, 2.0])
def test_a_mixed_caption_keeps_its_own_weight_by_beta_a_1(a):
    """Beta(a, 1): P(X <= x) = x^a, mean a / (a + 1), variance a / ((a + 1)^2 (a + 2))."""
    random = generator(0, "own", str(a))
    own = torch.tensor([plain.own_weight(a, random) for _ in range(4000)])
    spread = (a / ((a + 1) ** 2 * (a + 2))) ** 0.5
    assert own.mean() == pytest.approx(a / (a + 1), abs=4 * spread / 4000**0.5)  # at .1: .09, not .50
    assert own.std() == pytest.approx(spread, rel=0.08)
    for x in (0.01, 0.5):
        assert (own <= x).double().mean() == pytest.approx(x**a, abs=0.03)


def test_the_training_stream_mixes_at_the_released_weight():
    """Of two captions, half of the samples are mixed with themselves (weight 1), half with the other (mean .09)."""
    data, denoiser = pictures(2), Target.from_pipeline(tiny_sd()).denoiser
    plan = plan_of(data={"caption_drop": 0.0}, changes={"embedding_mixing": 0.1})
    draw = CaptionDraw(captions_of(data, plan.data, None, 0), frozenset(), plan.data, plan.changes, None)
    samples = Samples(plan, denoiser, Order([1.0, 1.0], 0), Latents(denoiser, data, False), draw)
    batch = samples.batch(range(400))
    encoded = denoiser.encode_prompts(["a picture 0", "a picture 1"]).tensors["encoder_hidden_states"].flatten(1)
    own = encoded[torch.tensor(batch.images)]
    other = encoded[1 - torch.tensor(batch.images)]
    rows = batch.cond.tensors["encoder_hidden_states"].flatten(1)
    weight = (((rows - other) * (own - other)).sum(1) / (own - other).square().sum(1)).detach()
    torch.testing.assert_close(weight[:, None] * own + (1 - weight[:, None]) * other, rows, atol=1e-4, rtol=1e-4)
    mixed = weight[weight < 1 - 1e-4]
    assert len(mixed) == pytest.approx(200, abs=40)
    assert mixed.mean() == pytest.approx(1 / 11, abs=0.06)


def test_samples_are_kept_by_the_norm_of_what_the_caption_adds():
    without = torch.zeros(3, 1, 2, 2)
    with_caption = torch.stack([torch.full((1, 2, 2), value) for value in (0.0, 0.5, 0.51)]).requires_grad_()
    assert plain.within(with_caption, without, 1.0).tolist() == [True, True, False]  # norms 0, 1, 1.02


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "flow", "score"])
def test_a_perfect_output_of_every_kind_gives_back_the_image(kind):
    from diffmem.models.parameterization import convert

    x0, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    alpha = torch.tensor([0.9, 0.5, 0.3], dtype=torch.float64)
    sigma = 1 - alpha if kind == "flow" else (1 - alpha**2).sqrt()
    x = noisy(x0, noise, alpha, sigma)
    output = target(kind, x0, noise, alpha, sigma)
    torch.testing.assert_close(convert(output, x, alpha, sigma, kind, "x0"), x0, rtol=1e-4, atol=1e-5)


def test_images_repeat_under_different_random_captions():
    """dup_image with random captions: 20 of each image, of four tokens each; other images keep their first."""
    random, others = {"captions": "random"}, frozenset({1})
    tokenizer, _ = tiny_tokenizer()
    plan = DataPlan(images="x", caption_drop=0.0, **random)
    captions = captions_of(pictures(), plan, tokenizer, 0, several=True)
    assert {len(set(among)) for among in captions} == {20}
    draw = CaptionDraw(captions, others, plan, ChangesPlan(), tokenizer)
    drawn = [{draw(image, generator(0, "test", i)) for i in range(300)} for image in (0, 1)]
    assert drawn == [{captions[0][0]}, set(captions[1])]


@pytest.mark.parametrize("captions", ["fixed", "class"])
def test_images_that_have_one_caption_repeat_with_it(tmp_path, captions):
    plan = plan_of(steps=1, data={"captions": captions}, duplication={"regime": "dup_image", "share": 0.5})
    trainer = Trainer(plan, tmp_path, pictures(), Target.from_pipeline(tiny_sd()), "cpu", True)
    assert any("dup_image is dup_both here" in note for note in trainer.notes)
