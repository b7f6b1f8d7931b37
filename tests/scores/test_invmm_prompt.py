"""Prompts that are fitted: one-hot rows are the text, gradients arrive, and an inversion recovers what it is given."""

import pytest
import torch
from tests import tiny, tiny_families
from tests.scores.test_invmm import Bench

from diffmem.errors import ModelError, ScoreRefused
from diffmem.models.target import Target
from diffmem.randomness import generator
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
        conditions = prompts.to_check(job, 0, 8)
        assert len(conditions) == count
        with torch.no_grad():
            soft = denoiser.soft_prompt()
            exact = soft.encode(one_hot(soft, [5, 5, 5]), [None]).tensors["encoder_hidden_states"]
        assert torch.equal(conditions[-1].tensors["encoder_hidden_states"], exact) == (mode == "fast")
        drawn = gumbel_softmax(prompts._allowed(logits), torch.rand(logits.shape))
        assert (drawn[:, list(soft.forbidden)].max() == 0) == (mode == "fast"), "the released code bars no token"


@pytest.mark.parametrize(("family", "each"), [("text-unet", 1), ("sd3", 8)])
def test_the_published_procedure_draws_a_prompt_per_noise_and_at_every_check_a_new_one(family, each):
    """Released: gumbel_softmax(log_coeffs.expand(16, -1, -1)) at a step; at a check one draw (SD 1, 2) or 8 (SD 3)."""
    denoiser = Target.from_pipeline(MAKERS[family]()).denoiser
    settings = settings_for(denoiser, InvMMParameters(mode="paper", rows=3))
    assert settings.noises == 16
    prompts, soft = Prompts(denoiser, settings), denoiser.soft_prompt()
    jobs = [
        Inversion.begin(
            ImageItem(name, torch.zeros(3, 16, 16), torch.zeros(4, 8, 8), "a fox", denoiser.null()), 1.0,
            torch.device("cpu"), prompts.first_logits() + shift,
        )
        for name, shift in (("a", 0.0), ("b", torch.arange(soft.vocabulary) / 50))
    ]  # fmt: skip
    logits = torch.stack([job.values["logits"] for job in jobs])
    with torch.no_grad():
        condition = prompts.to_fit(jobs, logits, 0)
        assert len(condition) == 2 * 16
        for k, job in enumerate(jobs):
            u = torch.rand(16, 3, soft.vocabulary, generator=generator(0, "invmm", job.item.id, "prompt", 0)).double()
            # softmax((logits - log(-log u)) / 2) = exp(logits / 2) (-log u)^(-1/2), normalised
            weights = (logits[k].double() / 2).exp() * (-u.log()) ** -0.5
            rows = soft.encode((weights / weights.sum(-1, keepdim=True)).float(), ["a fox"] * 16)
            for name, value in rows.tensors.items():
                got = condition.select(torch.arange(16 * k, 16 * k + 16)).tensors[name]
                torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-3)
            first = condition.tensors["encoder_hidden_states"][16 * k : 16 * k + 16].flatten(1)
            assert len({row.numpy().tobytes() for row in first}) == 16
        checks = []
        for step in (50, 100):
            jobs[0].step = step
            (tried,) = prompts.to_check(jobs[0], 0, 8)
            assert len(tried) == each
            checks.append(tried.tensors["encoder_hidden_states"])
        assert not torch.equal(*checks)
        fast = Prompts(denoiser, settings_for(denoiser, InvMMParameters(prompt="invert", rows=3)))
        assert len(fast.to_fit(jobs, logits, 0)) == 2
        first = fast.to_check(jobs[0], 0, 8)[0].tensors["encoder_hidden_states"]
        jobs[0].step = 50
        assert torch.equal(first, fast.to_check(jobs[0], 0, 8)[0].tensors["encoder_hidden_states"])


def test_the_published_procedure_runs_to_its_end_on_every_family_with_prompts(denoiser):
    """Two steps of it with 75 rows (here all that fit), 16 noises, all samples at each check."""
    score = parse_image_score(
        "invmm:mode=paper,similarity=l2-tiled,steps=2,every=1,sampler_steps=2,guidance=1/3,samples=3"
    )
    x0 = 0.5 * torch.randn(denoiser.sample_shape, generator=torch.Generator().manual_seed(0))
    items = [ImageItem(f"i{k}", torch.zeros(3, 16, 16), x0, "a fox", denoiser.null()) for k in range(2)]
    score.check(denoiser)
    together = list(score.run(denoiser, items, Bench(2)))
    alone = [result for item in items for result in score.run(denoiser, [item], Bench(1))]
    for one, other in zip(sorted(together, key=lambda r: r.id), alone, strict=True):
        assert one.error is None and one.components["status"] == "not reached"
        assert one.components["kl_raw"] == pytest.approx(other.components["kl_raw"], rel=1e-3)
        # checks at steps 0, 1, 2 of 3 samples at guidance 1 (1 NFE) and 3 (2 NFE), and the best way once more
        assert one.nfe.forward in (2 * 16 + 3 * 3 * 2 * 3 + 3 * 2 * k for k in (1, 2))


def test_gumbel_softmax_draws_as_the_logits_say():
    logits = torch.tensor([0.0, 1.0, 2.0])
    uniform = torch.rand(20000, 3, generator=torch.Generator().manual_seed(0))
    drawn = gumbel_softmax(logits, uniform)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(20000))
    shares = torch.bincount(drawn.argmax(-1)) / 20000
    torch.testing.assert_close(shares, logits.softmax(0), atol=0.015, rtol=0)
    sharper = gumbel_softmax(logits, uniform, 0.1)
    assert sharper.max(-1).values.mean() > drawn.max(-1).values.mean()
