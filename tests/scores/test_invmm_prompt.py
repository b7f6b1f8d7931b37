"""Prompts that are fitted: one-hot rows are the text, gradients arrive, and an inversion recovers what it is given."""

import pytest
import torch
from tests import tiny, tiny_families
from tests.scores.test_invmm import Bench

from diffmem.errors import ModelError, ScoreRefused
from diffmem.models.target import Target
from diffmem.scores.image.base import ImageItem
from diffmem.scores.image.invmm.prompts import Prompts, gumbel_softmax
from diffmem.scores.image.invmm.settings import InvMMParameters, settings_for
from diffmem.scores.image.invmm.state import Inversion
from diffmem.scores.spec import parse_image_score

MAKERS = {"text-unet": tiny.tiny_sd, "sdxl": tiny_families.sdxl, "sd3": tiny_families.sd3}


@pytest.fixture(scope="module", params=MAKERS)
def denoiser(request):
    return Target.from_pipeline(MAKERS[request.param]()).denoiser


def one_hot(soft, tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), soft.vocabulary).float()[None]


def test_one_hot_rows_encode_as_their_text(denoiser):
    soft = denoiser.soft_prompt()
    tokenizer = denoiser.pipeline.tokenizer
    tokens = tokenizer("a fox", add_special_tokens=False).input_ids
    with torch.no_grad():
        ours, theirs = soft.encode(one_hot(soft, tokens), ["a fox"]), denoiser.encode_prompts(["a fox"])
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, value in theirs.tensors.items():
        torch.testing.assert_close(ours.tensors[name], value, rtol=1e-5, atol=1e-5)
    assert soft.text(tokens).replace(" ", "") == "afox"
    assert not any(module.get_input_embeddings()._forward_hooks for module in soft.modules)


def test_gradients_reach_every_row_and_other_prompts_differ(denoiser):
    soft = denoiser.soft_prompt()
    logits = torch.zeros(2, 3, soft.vocabulary, requires_grad=True)
    condition = soft.encode(logits.softmax(-1), ["a fox", "a fox"])
    weights = torch.randn(condition.tensors["encoder_hidden_states"].shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((condition.tensors["encoder_hidden_states"] * weights).sum(), logits)
    assert (gradient.abs().amax(-1) > 0).all()
    assert soft.rows == 14
    with pytest.raises(ModelError, match="too long"):
        soft.encode(torch.zeros(1, 15, soft.vocabulary), ["a fox"])


def test_an_inversion_fits_the_prompt_and_says_it(denoiser):
    x0 = 0.5 * torch.randn(denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    pixels = torch.zeros(3, 16, 16)
    score = parse_image_score(
        "invmm:prompt=invert,steps=2,every=1,rows=4,noises=2,sampler_steps=2,guidance=2,keep=true"
    )
    score.check(denoiser)
    before = {name: p.requires_grad for name, p in denoiser.network.named_parameters()}
    items = [ImageItem(f"i{k}", pixels, x0, "a fox", denoiser.null()) for k in range(2)]
    results = list(score.run(denoiser, items, Bench(2)))
    for result in results:
        assert result.error is None
        assert result.components["status"] == "not reached"
        assert isinstance(result.components["prompt"], str)
        assert set(result.tensors) == {"mu", "log_var"}
    assert results[0].components["prompt"] != results[1].components["prompt"], "each image has its own noise"
    assert {name: p.requires_grad for name, p in denoiser.network.named_parameters()} == before


def test_a_missing_caption_is_that_images_error():
    denoiser = Target.from_pipeline(tiny_families.sd3()).denoiser
    score = parse_image_score("invmm:prompt=invert,steps=1,rows=2,noises=1,sampler_steps=1")
    items = [ImageItem(str(c), torch.zeros(3, 16, 16), torch.zeros(4, 8, 8), c, denoiser.null()) for c in (None, "a")]
    results = {r.id: r for r in score.run(denoiser, items, Bench(2))}
    assert "caption, which is missing" in results["None"].error
    assert results["a"].error is None


def test_families_that_cannot_say_so():
    denoiser = Target.from_pipeline(tiny_families.pixart()).denoiser
    with pytest.raises(ScoreRefused, match="prompt=caption"):
        parse_image_score("invmm:prompt=invert").check(denoiser)
    parse_image_score("invmm").check(denoiser)


@pytest.mark.parametrize("spec", ["invmm:prompt=invert", "invmm:prompt=caption", "vgr-trace:condition=caption"])
def test_a_model_that_takes_no_prompt_refuses_to_be_asked_under_one(spec):
    denoiser = Target.from_pipeline(tiny.tiny_ddpm()).denoiser
    with pytest.raises(ScoreRefused, match="takes no"):
        parse_image_score(spec).check(denoiser)
    parse_image_score(spec.partition(":")[0]).check(denoiser)


def test_the_likeliest_tokens_are_tried_only_in_fast_mode():
    denoiser = Target.from_pipeline(tiny.tiny_sd()).denoiser
    item = ImageItem("i", torch.zeros(3, 16, 16), torch.zeros(4, 8, 8), None, denoiser.null())
    for mode, count in (("fast", 2), ("paper", 1)):
        prompts = Prompts(denoiser, settings_for(denoiser, InvMMParameters(mode=mode, prompt="invert", rows=3)))
        logits = prompts.first_logits()
        logits[:, 5] = 3.0
        job = Inversion.begin(item, 1.0, torch.device("cpu"), logits)
        conditions = prompts.to_check(job, 0)
        assert len(conditions) == count
        with torch.no_grad():
            soft = denoiser.soft_prompt()
            exact = soft.encode(one_hot(soft, [5, 5, 5]), [None]).tensors["encoder_hidden_states"]
        assert torch.equal(conditions[-1].tensors["encoder_hidden_states"], exact) == (mode == "fast")
        barred = gumbel_softmax(prompts._allowed(logits), torch.rand(logits.shape))
        assert barred[:, list(soft.forbidden)].max() == 0


def test_gumbel_softmax_draws_as_the_logits_say():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    drawn = gumbel_softmax(logits, uniform)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20000))
    shares = torch.bincount(drawn.argmax(-1)) / 20000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)
    sharper = gumbel_softmax(logits, uniform, 0.1)
    assert sharper.max(-1).values.mean() > drawn.max(-1).values.mean()
